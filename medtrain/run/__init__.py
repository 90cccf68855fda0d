"""The run folder: layout, status, provenance, logging, seeds."""
