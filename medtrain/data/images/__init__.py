"""Labelled images, bags, views and tabular values: from files to batches."""
