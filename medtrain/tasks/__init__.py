"""What a batch means."""
