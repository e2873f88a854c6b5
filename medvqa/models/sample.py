"""One encoded example: token ids and image patches, not yet padded."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch

IGNORED = -100  # PyTorch's cross-entropy skips this label


@dataclass(frozen=True)
class Sample:
    """One encoded example.

    Attributes:
        prompt_ids: Token ids up to and with the header of the assistant's turn.
        answer_ids: Token ids of the answer and the end of the turn.
        pixel_values: (P, D) patches of all images in order.
        image_grid_thw: (images, 3) patches in time, height, width.
        image_keys: One key per image; equal keys mean equal patches.
    """

    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]
    pixel_values: "torch.Tensor | None"
    image_grid_thw: "torch.Tensor | None"
    image_keys: tuple[str, ...] = ()

    @property
    def num_tokens(self) -> int:
        """Tokens of prompt and answer, image tokens included."""
        return len(self.prompt_ids) + len(self.answer_ids)


class Decoded(NamedTuple):
    """Greedy answers of a batch.

    Attributes:
        tokens: (B, N) new token ids on the CPU; behind the end token only end tokens.
        logprobs: (B, N) log-probability of each, on the CPU; 0 behind the end token.
        first_logprobs: (B, V) log-probabilities of the first new token, on the model's device.
    """

    tokens: "torch.Tensor"
    logprobs: "torch.Tensor"
    first_logprobs: "torch.Tensor"

    def joined(self, other: "Decoded", end_token_id: int) -> "Decoded":
        """Return the answers of both batches, the shorter ones padded."""
        import torch

        width = max(self.tokens.shape[1], other.tokens.shape[1])

        def padded(name: str, fill: float) -> "torch.Tensor":
            parts = [getattr(self, name), getattr(other, name)]
            pad = torch.nn.functional.pad
            return torch.cat([pad(p, (0, width - p.shape[1]), value=fill) for p in parts])

        first = torch.cat([self.first_logprobs, other.first_logprobs])
        return Decoded(padded("tokens", end_token_id), padded("logprobs", 0.0), first)


class TokenCount(NamedTuple):
    """Tokens of one sample: those of prompt and answer, and those of its images."""

    text: int
    image: int

    @property
    def total(self) -> int:
        """What `model.max_length_tokens` limits."""
        return self.text + self.image
