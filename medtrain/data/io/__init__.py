"""Image files: read into arrays in one frame, and written back."""
