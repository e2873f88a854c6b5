"""Records on disk and their mirror in Weights & Biases; may import config and data."""
