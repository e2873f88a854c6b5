"""Radiology-like pictures drawn from a few facts; the facts are what the questions ask about."""

import hashlib
import io
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Field = NDArray[np.float64]

MODALITIES = ("ct", "mri", "x-ray", "ultrasound")
SHIFTED_MODALITY = "scintigraphy"
CHOICES = {
    "modality": MODALITIES,
    "organ": ("brain", "chest", "abdomen"),
    "side": ("left", "right"),
    "tone": ("bright", "dark"),
    "size": ("small", "large"),
}
SIZE_PX = 128
RADIUS_PX = {"small": 6.0, "large": 9.5}


@dataclass(frozen=True)
class Scene:
    """All facts of one phantom, and the seed of what is mere appearance.

    Attributes:
        num_lesions: 0 to 3, all on one side of the picture, with the same tone and size.
        seed: Position, scale, gain and noise.
    """

    modality: str
    organ: str
    num_lesions: int
    side: str
    tone: str
    size: str
    seed: int


@dataclass(frozen=True)
class PhantomImage:
    """A picture that is drawn when it is read."""

    name: str
    scene: Scene

    def read(self) -> bytes:
        """Return the phantom as an 8-bit grey PNG of 128 x 128 pixels."""
        import numpy as np
        from PIL import Image

        pixels = np.rint(np.clip(draw(self.scene), 0, 1) * 255).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
        return buffer.getvalue()

    def fingerprint(self) -> str:
        """Return the facts and what draws them: the picture follows from these alone."""
        return f"{self.scene}:{_drawing()}"


@cache
def _drawing() -> str:
    """Return what changes with this code or with a library that it draws with."""
    code = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
    return f"{code}:{metadata.version('numpy')}:{metadata.version('pillow')}"


def draw(scene: Scene) -> "Field":
    """Return the (128, 128) intensities in about [0, 1]."""
    import numpy as np

    rng = np.random.default_rng(scene.seed)
    row, column = np.mgrid[0:SIZE_PX, 0:SIZE_PX].astype(np.float64)
    y = (row - 64 + rng.uniform(-3, 3)) / (58 * rng.uniform(0.95, 1.04))
    x = (column - 64 + rng.uniform(-3, 3)) / (58 * rng.uniform(0.95, 1.04))
    body = _body(scene.organ, x, y)
    tissue = 0.5 + 0.03 * np.sin(3 * x + rng.uniform(0, 6)) * np.cos(3 * y + rng.uniform(0, 6))
    image = np.where(body, tissue, 0.02)
    image = _organ_marks(scene.organ, image, x, y)
    image = _lesions(scene, image, x, y, rng)
    image = _modality_look(scene.modality, image, body, (x, y), rng)
    return image * rng.uniform(0.92, 1.05)


def _body(organ: str, x: "Field", y: "Field") -> "NDArray[np.bool_]":
    if organ == "brain":
        return (x / 0.78) ** 2 + (y / 0.95) ** 2 < 1
    if organ == "chest":
        return (abs(x) / 0.97) ** 4 + (abs(y) / 0.82) ** 4 < 1
    return (x / 0.97) ** 2 + (y / 0.72) ** 2 < 1


def _organ_marks(organ: str, image: "Field", x: "Field", y: "Field") -> "Field":
    import numpy as np

    if organ == "brain":  # skull and midline
        ring = (x / 0.78) ** 2 + (y / 0.95) ** 2
        image = np.where((ring < 1) & (ring > 0.84), 0.85, image)
        return np.where((abs(x) < 0.025) & (ring < 0.8), 0.25, image)
    if organ == "chest":  # two lung fields; the lesions lie inside them
        for centre in (-0.45, 0.45):
            lung = ((x - centre) / 0.36) ** 2 + (y / 0.62) ** 2 < 1
            image = np.where(lung, 0.38, image)
        return image
    spine = (x / 0.13) ** 2 + ((y - 0.5) / 0.13) ** 2 < 1  # spine and kidneys
    image = np.where(spine, 0.9, image)
    for centre in (-0.2, 0.2):
        kidney = ((x - centre) / 0.08) ** 2 + ((y - 0.3) / 0.12) ** 2 < 1
        image = np.where(kidney, 0.66, image)
    return image


def _lesions(
    scene: Scene, image: "Field", x: "Field", y: "Field", rng: "np.random.Generator"
) -> "Field":
    import numpy as np

    sign = -1 if scene.side == "left" else 1
    radius = RADIUS_PX[scene.size] / 58
    # One slot per lesion, so far apart that the largest lesions do not touch.
    slots = rng.permutation([-0.44, -0.06, 0.32])[: scene.num_lesions]
    if scene.organ == "abdomen":
        slots = slots * 0.9 - 0.06
    for slot in slots:
        centre_x = sign * rng.uniform(0.4, 0.48)
        centre_y = slot + rng.uniform(-0.02, 0.02)
        disc = (x - centre_x) ** 2 + (y - centre_y) ** 2 < radius**2
        image = np.where(disc, 1.0 if scene.tone == "bright" else 0.06, image)
    return image


def _modality_look(
    modality: str,
    image: "Field",
    body: "NDArray[np.bool_]",
    coordinates: tuple["Field", "Field"],
    rng: "np.random.Generator",
) -> "Field":
    import numpy as np

    x, y = coordinates
    noise = rng.standard_normal(image.shape)
    if modality == "ct":  # flat and clean, on the scanner's table
        table = (abs(y - 0.99) < 0.02) & (abs(x) < 0.8)
        return np.where(table, 0.8, image + 0.02 * noise)
    if modality == "mri":  # coil shading, no table, ripple in the background
        shade = 0.8 + 0.25 * x
        return image * shade + np.where(body, 0.0, 0.08 + 0.06 * np.sin(22 * y)) + 0.03 * noise
    if modality == "x-ray":  # a white field with ribs across the body
        ribs = 0.12 * (np.sin(17 * y + 4 * abs(x)) > 0.6)
        return np.where(body, 0.12 + 0.75 * image + ribs, 0.95) + 0.03 * noise
    if modality == "ultrasound":  # speckle in a fan
        fan = (abs(x) < 0.35 + 0.55 * (y + 1)) & (y > -0.97)
        return np.where(fan, image * (1 + 0.35 * noise) + 0.06, 0.0)
    return _blur(image, 3) * 0.9 + 0.05 * np.sqrt(abs(image)) * noise  # scintigraphy: few counts


def _blur(image: "Field", radius: int) -> "Field":
    import numpy as np

    kernel = np.ones(2 * radius + 1) / (2 * radius + 1)
    smooth = np.apply_along_axis(np.convolve, 0, image, kernel, "same")
    return np.apply_along_axis(np.convolve, 1, smooth, kernel, "same")
