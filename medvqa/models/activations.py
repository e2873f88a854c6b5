"""Bytes that a decoder layer keeps for its backward pass; docs/preflight.md has the checks."""

from dataclasses import dataclass

# Bytes that autograd keeps per token and layer in 16 bits, counted from the saved tensors. The four
# numbers are per unit of hidden size, query width, key-value width and MLP.
KEPT = {
    ("norm", "plain"): (18, 10, 8, 8),
    ("norm", "fused"): (4, 6, 6, 4),
    ("no norm", "plain"): (19, 6, 4, 8),
    ("no norm", "fused"): (4, 6, 6, 4),
}
# With dropout each adapted layer also keeps its masked input, or its mask.
KEPT_BY_DROPOUT = {"plain": (20, 4, 0, 4), "fused": (10, 2, 0, 2)}
PLAIN_SCALE_BYTES = 4 / 64  # of each weight in 4 bits, which the fused engine keeps beside


@dataclass(frozen=True, kw_only=True)
class LayerShapes:
    """Widths of a decoder layer.

    Attributes:
        has_query_norm: Whether queries and keys are normalised (Qwen3).
    """

    hidden: int
    query_width: int
    key_width: int
    mlp: int
    has_query_norm: bool


def kept_bytes(shapes: LayerShapes, engine: str, *, dropout: float) -> int:
    """Return the bytes that autograd keeps per token and layer, computing in 16 bits."""
    plain = KEPT["norm" if shapes.has_query_norm else "no norm", engine]
    more = KEPT_BY_DROPOUT[engine] if dropout else (0, 0, 0, 0)
    widths = (shapes.hidden, shapes.query_width, shapes.key_width, shapes.mlp)
    return sum((a + b) * width for a, b, width in zip(plain, more, widths, strict=True))
