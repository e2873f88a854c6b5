"""Files or hub repositories in, `Example` rows out; may import config."""
