"""The fused engine: the plain engine's mathematics in fewer and larger GPU kernels.

Sequences are packed without padding, the decoder layer is written out, logits are those of answer
tokens only, and pictures go through the tower together. docs/engine.md says what was measured.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from medvqa.fast.decoder import Decoder, Packed
from medvqa.fast.graphs import TILE
from medvqa.fast.pictures import Pictures
from medvqa.fast.prefix import answer, log_probabilities
from medvqa.fast.transfer import integers_to_device
from medvqa.models.activations import PLAIN_SCALE_BYTES
from medvqa.models.loaded import LoadedModel
from medvqa.models.sample import Decoded, Sample

# With gradients of activations and logits: 3.85 MB per token were measured where 3.47 are kept
# (Qwen3-VL-8B on an H100, peaks of 4, 8, 32 and 64 samples).
TRANSIENT = 1.12


class FusedEngine:
    """Computes packed sequences with the loaded model's own weights.

    Attributes:
        adapts_in_compute_type: Whether the adapter may compute in the model's type.
        decoder: The language model's layers.
        image_token_id: Stands once for each merged patch of a picture.
    """

    adapts_in_compute_type = True

    def __init__(self, loaded: LoadedModel) -> None:
        self.image_token_id = int(loaded.processor.image_token_id)
        self.decoder = Decoder(loaded)
        self._end_token_id = int(loaded.processor.tokenizer.eos_token_id)
        self._loaded = loaded
        self._inner = loaded.inner
        self._pictures = Pictures(loaded)

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
        if num_added:  # as a sequence that no other sees and that no loss asks for
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
        return self.decoder.graphs.forget()

    def stop_capturing(self) -> bool:
        """Capture no pass from now on; return whether that is new."""
        return self.decoder.graphs.stop()

    def recompute_layers(self) -> bool:
        """Keep only the layers' inputs for the backward pass; return whether that is new."""
        return self.decoder.recompute()

    def log_probabilities(self, samples: Sequence[Sample]) -> list[list[float]]:
        """Return those of each answer token; equal beginnings of prompts are computed once."""
        return log_probabilities(self, samples)

    def pack(self, samples: Sequence[Sample], rows: Sequence[Sequence[int]]) -> Packed:
        """Return the embeddings of token ids, with the samples' pictures.

        Args:
            samples: Whose pictures are needed.
            rows: Token ids, one row per sample; further rows have no pictures.
        """
        ids = np.concatenate(rows)
        grids = [*map(_grids, samples), *[[]] * (len(rows) - len(samples))]
        image_token, merge = self.image_token_id, self._pictures.merge_size
        positions = np.concatenate(
            [
                rotary_positions(row, own, image_token_id=image_token, merge_size=merge)
                for own, row in zip(grids, rows, strict=True)
            ],
            axis=1,
        )
        places = np.flatnonzero(ids == image_token)
        arrays = (ids, positions.ravel(), places)
        on_device, flat, picture_rows = integers_to_device(arrays, self._loaded.device)
        x = self.embed(on_device)
        lengths = [len(row) for row in rows]
        features = self._pictures.features(samples)
        if features is None:
            return Packed(x, flat.view(3, -1), lengths)
        pooled, *deep = features
        assert len(places) == len(pooled), "pictures and their tokens differ in number"
        x = x.index_copy(0, picture_rows, pooled.to(x.dtype))
        return Packed(x, flat.view(3, -1), lengths, picture_rows, deep)

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the embeddings (N, H) of token ids (N,)."""
        result: torch.Tensor = self._inner.get_input_embeddings()(ids)
        return result

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the logits of rows of the last layer's result."""
        result: torch.Tensor = self._inner.lm_head(self.decoder.last_norm(hidden))
        return result


def _grids(sample: Sample) -> list[tuple[int, int, int]]:
    return [] if sample.image_grid_thw is None else sample.image_grid_thw.tolist()


def rotary_positions(
    row: Sequence[int],
    grids: Sequence[tuple[int, int, int]],
    *,
    image_token_id: int,
    merge_size: int,
) -> Any:
    """Return each token's time, height and width as an array (3, T).

    Text counts on in all three; a picture's tokens differ by their row and column, and the text
    behind it goes on from its largest coordinate (Wang et al., Qwen2-VL, 2024). It is what the
    model's own `get_rope_index` gives, without a loop over tokens.

    Args:
        row: Token ids of one sequence.
        grids: Patches in time, height and width of its pictures, in order.
        image_token_id: Stands once for each merged patch.
        merge_size: Patches per side that become one token.
    """
    parts, start, position = [], 0, 0
    for time, height, width in grids:
        first = row.index(image_token_id, start)
        shape = (time, height // merge_size, width // merge_size)
        parts.append(np.tile(np.arange(position, position + first - start), (3, 1)))
        position += first - start
        parts.append(np.indices(shape).reshape(3, -1) + position)
        position += max(shape[1:])
        start = first + parts[-1].shape[1]
    parts.append(np.tile(np.arange(position, position + len(row) - start), (3, 1)))
    return np.concatenate(parts, axis=1)
