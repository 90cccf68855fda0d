"""Pictures of data and results: arrays in, uint8 [H, W, 3] out."""
