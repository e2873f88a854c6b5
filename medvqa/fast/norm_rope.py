"""How heads are normed and rotated: what the kernels of both kinds are given."""

from typing import NamedTuple

import torch


class NormRope(NamedTuple):
    """How the heads of queries and keys are normed and rotated by their positions.

    Attributes:
        q_weight: (D,) of the queries' norm; None where the architecture has none.
        k_weight: Of the keys' norm.
        eps: Of both norms.
        cos: (N, D / 2); one half, the other is the same.
        sin: As `cos`.
    """

    q_weight: torch.Tensor | None
    k_weight: torch.Tensor | None
    eps: float
    cos: torch.Tensor
    sin: torch.Tensor
