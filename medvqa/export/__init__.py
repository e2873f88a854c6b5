"""A finished run -> a directory that others can load: weights with their papers."""
