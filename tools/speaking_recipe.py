"""All sizes and steps that decide the weights of a speaking base."""

import hashlib
import json
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All that decides the weights, but the parts and the rows.

    Attributes:
        version: Of this code; raised when a change of code changes the weights.
        embed_dim: Width of the vision tower.
        distill_steps: On phantoms and photographs, once for all splits.
        adapt_steps: Distillation that also sees the split's training pictures.
        align_steps: With the frozen language model.
        distill_weight: Of the distillation's loss during the alignment.
    """

    version: int = 1
    embed_dim: int = 384
    depth: int = 8
    num_heads: int = 6
    phantoms: int = 1500
    distill_steps: int = 1500
    distill_batch: int = 192
    distill_rate: float = 1e-3
    adapt_steps: int = 100
    adapt_rate: float = 5e-4
    align_steps: int = 300
    align_batch: int = 32
    align_rate: float = 3e-4
    distill_weight: float = 1.0
    seed: int = 0


def recipe_hash(*parts: Any) -> str:
    """Return a short hash of a recipe's JSON."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]
