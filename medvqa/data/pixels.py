"""Pixels of any depth -> 8-bit RGB."""

from typing import TYPE_CHECKING, Any

from medvqa.config.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

# Modes with more than eight bits; Pillow would cut them off instead of scaling them.
DEEP_MODES = ("I", "I;16", "I;16B", "I;16L", "F")
# Of the pixels; a burnt-in label or one hot pixel would otherwise flatten everything else.
WINDOW_PERCENTILES = (0.5, 99.5)


def to_rgb(image: "Image.Image") -> "Image.Image":
    """Return 8-bit RGB; more bits are windowed by percentiles, transparency falls on black.

    Raises:
        UserError: If pixels are NaN or infinite.
    """
    import numpy as np
    from PIL import Image

    if image.mode in DEEP_MODES:
        return Image.fromarray(windowed(np.asarray(image))).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "black"), layer).convert("RGB")
    return image.convert("RGB")


def windowed(
    values: "NDArray[Any]", low: float | None = None, high: float | None = None
) -> "NDArray[np.uint8]":
    """Return the values scaled so that low becomes 0 and high 255; what lies outside is clipped.

    Without bounds they are the `WINDOW_PERCENTILES` of the values, or minimum and maximum where
    almost all pixels are equal.
    """
    import numpy as np

    floats = np.asarray(values, dtype=np.float64)
    if not np.isfinite(floats).all():
        raise UserError("has pixels that are NaN or infinite; replace them")
    if low is None or high is None:
        low, high = np.percentile(floats, WINDOW_PERCENTILES)
        if low == high:
            low, high = floats.min(), floats.max()
    scaled = np.clip((floats - low) / ((high - low) or 1.0), 0, 1) * 255
    return np.rint(scaled).astype(np.uint8)
