"""Metrics of a case on its source grid, and of a whole split of images, zones, grades, quantities or survival times."""
