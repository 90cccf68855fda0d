"""Side effects of a run: tables, pictures, progress, early stopping."""
