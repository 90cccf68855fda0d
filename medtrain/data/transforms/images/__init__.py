"""Augmentation of pictures and volumes that are classified: one at a time, before they are stacked to a batch."""
