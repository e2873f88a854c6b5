"""The alignment's batches: texts about pictures, with fresh views of the pictures."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from medvqa.data.example import Example
from medvqa.fast.packing import rotary_positions
from medvqa.models.encode import Encoder
from medvqa.models.sample import Sample
from tools.speaking_language import MERGE, PATCH_PX
from tools.speaking_pictures import patches, views
from tools.speaking_vision import autocast

if TYPE_CHECKING:
    import torch


class Rows:
    """Encoded texts about pictures; the pictures' patches are replaced by mild views.

    Args:
        encoder: The base's.
        examples: One text about one picture each.
        places: Row of `canvases` by name of a picture.
        canvases: (N, 3, 512, 512) bytes.
        generator: On the CPU.
    """

    def __init__(
        self,
        encoder: Encoder,
        examples: Sequence[Example],
        places: Mapping[str, int],
        canvases: "torch.Tensor",
        generator: "torch.Generator",
    ) -> None:
        self._encoder, self._canvases, self._generator = encoder, canvases, generator
        self._by_size: dict[tuple[int, int], list[tuple[Sample, int]]] = {}
        for example in examples:
            sample, place = encoder.encode(example), places[example.image_ids[0]]
            assert sample.image_grid_thw is not None
            _, rows, columns = sample.image_grid_thw[0].tolist()
            size = rows * PATCH_PX, columns * PATCH_PX
            self._by_size.setdefault(size, []).append((sample, place))

    def batch(self, batch_size: int) -> "dict[str, torch.Tensor]":
        """Return a batch of texts about pictures of one size, with fresh views of them."""
        import torch

        sizes = list(self._by_size)
        weights = torch.tensor([float(len(self._by_size[size])) for size in sizes])
        size = sizes[int(torch.multinomial(weights, 1, generator=self._generator))]
        group = self._by_size[size]
        rows = torch.randint(len(group), (batch_size,), generator=self._generator).tolist()
        device = self._canvases.device
        samples = [group[row][0] for row in rows]
        batch = self._encoder.training_batch(samples)
        batch["position_ids"] = _positions(samples, batch["input_ids"].shape[1], self._encoder)
        stored = self._canvases[torch.tensor([group[row][1] for row in rows], device=device)]
        images = views(stored, size, self._generator, strength=0.2)
        batch["pixel_values"] = patches(images, PATCH_PX, MERGE)
        return {name: tensor.to(device) for name, tensor in batch.items()}


def _positions(samples: Sequence[Sample], width: int, encoder: Encoder) -> "torch.Tensor":
    """Return rotary positions (3, N, width), which transformers derives far more slowly."""
    import torch

    positions = torch.zeros(3, len(samples), width, dtype=torch.long)
    for index, sample in enumerate(samples):
        assert sample.image_grid_thw is not None
        row, grids = sample.prompt_ids + sample.answer_ids, sample.image_grid_thw.tolist()
        places = rotary_positions(
            row, grids, image_token_id=encoder.image_token_id, merge_size=MERGE
        )
        positions[:, index, : len(row)] = torch.from_numpy(places)
    return positions


def language_loss(model: Any, batch: "dict[str, torch.Tensor]") -> "torch.Tensor":
    """Return the mean cross-entropy of the answers."""
    with autocast(batch["input_ids"].device.type):
        loss: torch.Tensor = model(**batch).loss
    return loss
