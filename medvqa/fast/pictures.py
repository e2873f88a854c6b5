"""The features of the pictures in samples: new pictures go through the tower together."""

from collections.abc import Sequence
from contextlib import nullcontext

import torch

from medvqa.fast.tower import Tower
from medvqa.fast.transfer import patches_to_device
from medvqa.models.adapter import VISION_TOWER
from medvqa.models.loaded import LoadedModel
from medvqa.models.patches import PictureCache
from medvqa.models.sample import Sample


def keeps_features(loaded: LoadedModel) -> bool:
    """Whether a picture's features are kept for its next question.

    Not where the vision tower itself is trained, and not on a CPU. There a batch's composition
    changes the last bits, so a continued run would no longer equal an uninterrupted one.
    """
    return loaded.device.type != "cpu" and loaded.has_frozen_vision


class Pictures:
    """Gives the vision tower's features of the pictures in samples.

    Attributes:
        merge_size: Patches per side that become one token.
    """

    def __init__(self, loaded: LoadedModel) -> None:
        self.merge_size = int(loaded.processor.image_processor.merge_size)
        self._loaded = loaded
        self._cache = loaded.features if keeps_features(loaded) else None
        self._tower = Tower(getattr(loaded.inner.model, VISION_TOWER), loaded.device)

    def features(self, samples: Sequence[Sample]) -> list[torch.Tensor] | None:
        """Return features of all pictures in order: the tower's last and middle layers'."""
        pictures: list[tuple[str, torch.Tensor, torch.Tensor]] = []
        for sample in samples:
            if sample.pixel_values is None or sample.image_grid_thw is None:
                continue
            grids = sample.image_grid_thw
            patches = sample.pixel_values.split_with_sizes(grids.prod(-1).tolist())
            pictures += zip(sample.image_keys, patches, grids, strict=True)
        if not pictures:
            return None
        if self._cache is not None:
            every = self._remembered(self._cache, pictures)
        else:
            every = self._compute([p for _, p, _ in pictures], [grid for *_, grid in pictures])
        return [torch.cat(layer) for layer in zip(*every, strict=True)]

    def _remembered(
        self, cache: PictureCache, pictures: Sequence[tuple[str, torch.Tensor, torch.Tensor]]
    ) -> list[Sequence[torch.Tensor]]:
        """Return each picture's features; the tower computes those that the cache lacks."""
        features = {key: cache.get(key) or () for key, *_ in pictures}
        missing = {key: (p, grid) for key, p, grid in pictures if not features[key]}
        if missing:
            patches, grids = zip(*missing.values(), strict=True)
            with torch.no_grad():
                computed = self._compute(patches, grids)
            for key, layers in zip(missing, computed, strict=True):
                # Copies: a view would keep the whole batch's features alive.
                features[key] = tuple(layer.clone() for layer in layers)
                cache.keep(key, *features[key])
        return [features[key] for key, *_ in pictures]

    def _compute(
        self, patches: Sequence[torch.Tensor], grids: Sequence[torch.Tensor]
    ) -> list[Sequence[torch.Tensor]]:
        """Return the layers' features of each picture."""
        pixels = patches_to_device(patches, self._loaded.device)
        sizes = [len(own) // self.merge_size**2 for own in patches]
        # Where the tower is trained, its adapter may be in float32. Features that are kept are the
        # same whoever asks first.
        with nullcontext() if self._cache is not None else self._loaded.autocast():
            layers = self._tower.features(pixels, [tuple(grid.tolist()) for grid in grids])
        return [
            list(own)
            for own in zip(*(layer.split_with_sizes(sizes) for layer in layers), strict=True)
        ]
