"""Composed configuration: Hydra groups in, one checked tree of plain values out."""
