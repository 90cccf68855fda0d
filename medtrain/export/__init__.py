"""Export of trained networks: TorchScript, ONNX and torch.export files with a manifest and a parity check."""
