"""Config groups: YAML and overrides in, a typed and checked `Config` out; imports no folder."""
