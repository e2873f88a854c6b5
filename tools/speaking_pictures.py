"""Pictures that a speaking base sees before its alignment, and the views that are cut from them.

None is of VQA-RAD: photographs and scans that packages of PyPI ship, and phantoms.
"""

import hashlib
import io
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from medvqa.data.image import load_rgb
from medvqa.data.nifti import NiftiSlice
from medvqa.data.phantom import draw_scene
from medvqa.data.phantom_drawing import PhantomImage
from tools.speaking_language import wheel

if TYPE_CHECKING:
    import torch
    from PIL import Image

    Uniform = Callable[[float, float], torch.Tensor]  # one number per canvas, from a range

PHOTOGRAPHS = {
    "scikit_image": "skimage/data/",
    "scikit_learn": "sklearn/datasets/images/",
    "imgaug": "imgaug/quokka.jpg",
    "ultralytics": "ultralytics/assets/",
}
MIN_BYTES = 30_000  # smaller files are icons and test patterns
VOLUME = "nilearn/datasets/data/mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"
SLICES = {"sagittal": range(30, 165, 5), "coronal": range(30, 200, 5), "axial": range(30, 160, 5)}
CANVAS_PX = 512  # each picture is stored as a square of this side


def packaged(parts: Path) -> Iterator[tuple[str, bytes]]:
    """Yield name and bytes of each photograph and of the volume, by package."""
    for package, beginning in PHOTOGRAPHS.items():
        with zipfile.ZipFile(wheel(parts, package)) as archive:
            for entry in sorted(archive.infolist(), key=lambda entry: entry.filename):
                name = entry.filename
                is_picture = name.startswith(beginning) and name.endswith((".jpg", ".png"))
                if is_picture and entry.file_size >= MIN_BYTES:
                    yield name, archive.read(entry)
    with zipfile.ZipFile(wheel(parts, "nilearn")) as archive:
        yield VOLUME, archive.read(VOLUME)


def fingerprint(parts: Path) -> str:
    """Return the SHA-256 over all packaged pictures."""
    digest = hashlib.sha256()
    for name, data in packaged(parts):
        digest.update(name.encode() + hashlib.sha256(data).digest())
    return digest.hexdigest()


def packaged_pictures(parts: Path, work: Path) -> Iterator["Image.Image"]:
    """Yield the photographs, and slices of the volume in three planes."""
    from PIL import Image

    for name, data in packaged(parts):
        if name != VOLUME:
            yield Image.open(io.BytesIO(data)).convert("RGB")
            continue
        volume = work / Path(VOLUME).name
        volume.write_bytes(data)
        for plane, numbers in SLICES.items():
            for number in numbers:
                yield load_rgb(NiftiSlice(Path(f"{volume}#{plane}={number}")))


def phantom_pictures(num: int, *, seed: int) -> list[PhantomImage]:
    """Return phantoms from a generator of their own, in no split of `data=phantom`."""
    import numpy as np

    rng = np.random.default_rng([seed, 24])
    return [PhantomImage(f"speaking-{number:06d}", draw_scene(rng)) for number in range(num)]


def canvases(pictures: Sequence["Image.Image"], device: str) -> "torch.Tensor":
    """Return all pictures as one tensor (N, 3, 512, 512) of bytes, whatever their own shape."""
    import numpy as np
    import torch

    side = (CANVAS_PX, CANVAS_PX)
    arrays = [np.asarray(picture.convert("RGB").resize(side)) for picture in pictures]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous().to(device)


def views(
    stored: "torch.Tensor", size: tuple[int, int], generator: "torch.Generator", *, strength: float
) -> "torch.Tensor":
    """Return one random view (N, 3, height, width) in [0, 1] of each of N canvases.

    Args:
        stored: (N, 3, 512, 512) bytes.
        size: Height and width.
        generator: On the CPU.
        strength: At 1, views are small, turned, flipped, inverted and grey. At 0.2, a picture
            hardly changes and is never flipped, since left and right have a meaning.
    """
    import torch

    def uniform(low: float, high: float) -> torch.Tensor:
        return torch.rand(len(stored), generator=generator) * (high - low) + low

    turned = _turned(stored, size, uniform, strength)
    return _toned(turned, uniform, strength)


def _turned(
    stored: "torch.Tensor", size: tuple[int, int], uniform: "Uniform", strength: float
) -> "torch.Tensor":
    """Return windows of the canvases: scaled, turned, stretched and flipped."""
    import torch

    scale = torch.exp(uniform(-1.6 * strength, 0.12))
    angle = uniform(-0.6, 0.6) * strength
    stretch = torch.exp(uniform(-0.3, 0.3) * strength)
    flip = torch.where((uniform(0, 1) < 0.5) & (strength > 0.5), -1.0, 1.0)
    free = (1 - scale).clamp(min=0.1)
    theta = torch.zeros(len(stored), 2, 3)
    theta[:, 0, 0] = flip * scale * stretch * angle.cos()
    theta[:, 0, 1] = -scale * angle.sin()
    theta[:, 1, 0] = flip * scale * angle.sin()
    theta[:, 1, 1] = scale / stretch * angle.cos()
    theta[:, 0, 2] = uniform(-1, 1) * free
    theta[:, 1, 2] = uniform(-1, 1) * free
    shape = [len(stored), 3, *size]
    grid = torch.nn.functional.affine_grid(theta.to(stored.device), shape, align_corners=False)
    return torch.nn.functional.grid_sample(stored.float() / 255, grid, align_corners=False)


def _toned(view: "torch.Tensor", uniform: "Uniform", strength: float) -> "torch.Tensor":
    """Return the views with other colours, contrast and brightness."""
    import torch

    def column(values: torch.Tensor) -> torch.Tensor:
        return values.view(-1, 1, 1, 1).to(view.device)

    grey = column((uniform(0, 1) < 0.5) & (strength > 0.5))
    view = torch.where(grey, view.mean(1, keepdim=True), view)
    inverted = column((uniform(0, 1) < 0.15) & (strength > 0.5))
    view = torch.where(inverted, 1 - view, view)
    view = view.clamp(1e-4, 1) ** column(torch.exp(uniform(-0.6, 0.6) * strength))
    gain, offset = 1 + uniform(-0.5, 0.3) * strength, uniform(-0.15, 0.15) * strength
    return (view * column(gain) + column(offset)).clamp(0, 1)


def patches(images: "torch.Tensor", patch_px: int, merge: int) -> "torch.Tensor":
    """Return the patches (P, values) that Qwen2-VL's processor gives for images in [0, 1]."""
    num, channels, height, width = images.shape
    rows, columns = height // (patch_px * merge), width // (patch_px * merge)
    cut = (images * 2 - 1).view(num, channels, rows, merge, patch_px, columns, merge, patch_px)
    cut = cut.permute(0, 2, 5, 3, 6, 1, 4, 7).unsqueeze(6)  # still picture: both frames alike
    return cut.expand(-1, -1, -1, -1, -1, -1, 2, -1, -1).reshape(
        num * rows * columns * merge**2, channels * 2 * patch_px**2
    )
