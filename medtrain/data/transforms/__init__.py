"""Augmentation: drawn per sample on the host, applied per batch on the device."""
