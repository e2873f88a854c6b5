"""A training pool and evaluation sets in, their overlap and the allowed rows out."""
