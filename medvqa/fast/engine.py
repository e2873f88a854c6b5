"""The fused engine: the plain engine's mathematics in fewer and larger GPU kernels.

Sequences are packed without padding, and the decoder layer is written out. Logits are computed for
answer tokens only, and pictures go through the tower together. docs/engine.md has measurements.
"""

from collections.abc import Sequence

import numpy as np
import torch

from medvqa.fast.graphs import TILE
from medvqa.fast.packing import PackedModel
from medvqa.fast.prefix import answer, log_probabilities
from medvqa.fast.transfer import integers_to_device
from medvqa.models.activations import PLAIN_SCALE_BYTES
from medvqa.models.loaded import LoadedModel
from medvqa.models.sample import Decoded, Sample

# With gradients of activations and logits: 3.85 MB per token were measured where 3.47 are kept
# (Qwen3-VL-8B on an H100, peaks of 4, 8, 32 and 64 samples).
TRANSIENT = 1.12


class FusedEngine(PackedModel):
    """Trains and answers with packed sequences.

    Attributes:
        adapts_in_compute_type: Whether the adapter may compute in the model's type.
    """

    adapts_in_compute_type = True

    def __init__(self, loaded: LoadedModel) -> None:
        super().__init__(loaded)
        self._end_token_id = int(loaded.processor.tokenizer.eos_token_id)

    def loss(
        self, samples: Sequence[Sample], num_answer_tokens: int | torch.Tensor
    ) -> torch.Tensor:
        """Return the answer tokens' summed cross-entropy over `num_answer_tokens`.

        Args:
            samples: What is computed at once.
            num_answer_tokens: Of the whole effective batch.
        """
        rows = [sample.prompt_ids + sample.answer_ids for sample in samples]
        num_added = self.decoder.num_added_tokens(sum(map(len, rows)))
        if num_added:  # one more sequence, which no other sees and no loss covers
            rows.append((self._end_token_id,) * num_added)
        packed = self.pack(samples, rows)
        targets = np.concatenate([sample.answer_ids for sample in samples])
        # A token is predicted by the one before it.
        ends = np.cumsum([sample.num_tokens for sample in samples]) - 1
        places = [
            end - np.arange(len(s.answer_ids), 0, -1) for s, end in zip(samples, ends, strict=True)
        ]
        arrays = (np.concatenate(places), targets)
        rows_on_device, targets_on_device = integers_to_device(arrays, self._loaded.device)
        hidden = self.decoder.train(packed, training=bool(self._inner.training))
        logits = self.logits(hidden[rows_on_device])
        total = torch.nn.functional.cross_entropy(
            logits.float(), targets_on_device, reduction="sum"
        )
        return total / num_answer_tokens

    def answer(self, samples: Sequence[Sample], max_new_tokens: int) -> Decoded:
        """Return new tokens with log-probabilities; equal beginnings of prompts come once."""
        return answer(self, samples, max_new_tokens, self._end_token_id)

    def pass_bytes(self, num_tokens: int, *, recomputes: bool) -> int:
        """Return the bytes that a training pass takes beside what is there, about.

        Args:
            num_tokens: Of the samples; they are filled up.
            recomputes: Whether layers are computed again in the backward pass.
        """
        kept = self.decoder.kept_bytes(num_tokens + TILE, recomputes=recomputes)
        packed = sum(p.nbytes for p in self._inner.parameters() if p.dtype is torch.uint8)
        return int(TRANSIENT * kept + packed * 2 * PLAIN_SCALE_BYTES)  # two weights in a byte

    @property
    def captured_bytes(self) -> int:
        """GPU memory that captured passes keep for later steps, also of the next run."""
        return self.decoder.graphs.num_bytes

    def release_memory(self) -> bool:
        """Give back what only saves time; return whether there was anything."""
        return self.decoder.forget_passes()

    def stop_capturing(self) -> bool:
        """Capture no pass from now on; return whether that is new."""
        return self.decoder.graphs.stop()

    def keep_one_length(self) -> bool:
        """Capture passes of one length only, to which shorter ones are filled up.

        Returns:
            Whether that is new.
        """
        return self.decoder.keep_one_length()

    @property
    def recomputes(self) -> bool:
        """Whether the backward pass computes layers again."""
        return self.decoder.recomputes

    def recompute_layers(self) -> bool:
        """Keep only the layers' inputs for the backward pass; return whether that is new."""
        return self.decoder.recompute()

    def log_probabilities(self, samples: Sequence[Sample]) -> list[list[float]]:
        """Return those of each answer token; equal beginnings of prompts are computed once."""
        return log_probabilities(self, samples)
