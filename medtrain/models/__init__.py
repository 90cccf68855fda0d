"""Networks: registered components that map images to logits."""
