"""What differs between families: pictures, sizes, adapted layers; may import config and data."""
