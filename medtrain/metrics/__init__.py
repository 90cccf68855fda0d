"""Metrics of a case on its source grid and their summary over cases."""
