"""The fused engine: encoded samples in, losses and answers out; may import models and below."""
