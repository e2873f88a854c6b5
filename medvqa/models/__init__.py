"""A config in; a loaded model, its adapter and its encoder out; may import config and data."""
