"""Runs against each other, on the cases that all of them have judged."""
