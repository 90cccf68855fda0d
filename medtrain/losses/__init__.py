"""Losses on logits and labels, in float32."""
