"""Searching for good settings: the space, the study, the workers and the report."""
