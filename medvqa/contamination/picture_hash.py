"""Encoded picture -> perceptual hashes by `imagehash`; see docs/contamination.md for why these."""

from typing import TYPE_CHECKING

from medvqa.data.image import ImageBytes, load_rgb

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

SIDE = 16  # 16 x 16 bits: 64 bits take one radiograph for another
NUM_BYTES = SIDE * SIDE // 8
CROPS = tuple(percent / 100 for percent in range(11))  # cut off at each side
THUMBNAIL_PX = 256
FLAT_GREY_LEVELS = 1.0
# Hashes of another version are not comparable; the cache keeps them apart.
VERSION = "phash256-2"


def perceptual_hashes(name: str, data: bytes, *, mirrored: bool) -> bytes:
    """Return the hashes of the picture and of its middle without 1 to 10 % of each side.

    Args:
        name: What an error message calls the picture.
        data: Encoded file.
        mirrored: Also those of the picture mirrored left to right, upside down, and both.

    Returns:
        (1 or 4 orientations) x 11 hashes of 32 bytes, or nothing for a picture without contrast:
        its hash would be noise that equals any other blank picture's.

    Raises:
        UserError: If the picture cannot be decoded.
    """
    from PIL import Image, ImageStat

    grey = load_rgb(ImageBytes(name, data), enough_px=THUMBNAIL_PX).convert("L")
    size = (THUMBNAIL_PX, THUMBNAIL_PX)
    upright = grey.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)
    if ImageStat.Stat(upright).stddev[0] < FLAT_GREY_LEVELS:
        return b""
    orientations = [upright]
    if mirrored:
        turns = Image.Transpose
        for turn in (turns.FLIP_LEFT_RIGHT, turns.FLIP_TOP_BOTTOM, turns.ROTATE_180):
            orientations.append(upright.transpose(turn))
    return b"".join(_hash(picture, crop) for picture in orientations for crop in CROPS)


def _hash(picture: "Image.Image", crop: float) -> bytes:
    import imagehash
    import numpy as np
    from PIL import Image

    low, high = picture.width * crop, picture.width * (1 - crop)
    # The size that the library would scale to itself, by a filter five times as slow.
    size = (4 * SIDE, 4 * SIDE)
    small = picture.resize(size, Image.Resampling.BILINEAR, box=(low, low, high, high))
    return np.packbits(imagehash.phash(small, hash_size=SIDE).hash).tobytes()


def hash_words(hashes: bytes) -> "NDArray[np.uint64]":
    """Return (orientations, crops, 4) words of 64 bits."""
    import numpy as np

    return np.frombuffer(hashes, dtype=np.uint64).reshape(-1, len(CROPS), NUM_BYTES // 8)
