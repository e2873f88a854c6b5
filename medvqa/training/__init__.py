"""A planned order and a loaded model in; a trained adapter and step logs out."""
