"""The loop and its parts; building, starting, continuing and opening runs."""
