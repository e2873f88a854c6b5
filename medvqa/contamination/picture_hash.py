"""Pictures -> SHA-256 and perceptual hashes by `imagehash`; docs/contamination.md says why these.

Each picture is read once, by several threads, and its hashes are cached.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from medvqa.config.errors import UserError
from medvqa.data.example import Fingerprinted, ImageSource
from medvqa.data.image import ImageBytes, load_rgb
from medvqa.data.storage.cache import Cache

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


@dataclass(frozen=True)
class HashedPicture:
    """What the gate knows of one picture.

    Attributes:
        hashes: See `perceptual_hashes`; empty for a picture without contrast.
        error: Why it cannot be read; then there are no hashes.
    """

    name: str
    sha256: bytes
    hashes: bytes
    error: str | None = None


def hash_pictures(
    sources: Sequence[ImageSource], cache: Cache, *, mirrored: bool
) -> Iterator[HashedPicture]:
    """Yield one result per source, in order; a picture that cannot be read yields its error."""
    # Decoding and scaling leave the interpreter's lock, so threads use all cores.
    with _threads() as pool:
        yield from pool.map(lambda source: _hashed(source, cache, mirrored=mirrored), sources)


def contents_sha256(sources: Sequence[ImageSource], cache: Cache) -> str:
    """Return a hash over the bytes of the pictures, in order; one that cannot be read has none."""

    def content(source: ImageSource) -> bytes:
        try:
            return _content(source, cache)[0]
        except UserError:  # the check of the pictures names it
            return bytes(32)

    with _threads() as pool:
        return hashlib.sha256(b"".join(pool.map(content, sources))).hexdigest()


def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=len(os.sched_getaffinity(0)))


def _content(source: ImageSource, cache: Cache) -> tuple[bytes, bytes | None]:
    """Return the SHA-256 of the encoded picture, and the picture where it had to be read."""
    # Taken before reading: a file that changes meanwhile has another one next time.
    fingerprint = source.fingerprint() if isinstance(source, Fingerprinted) else None
    sha256 = cache.get(fingerprint)
    if sha256 is not None:
        return sha256, None
    data = source.read()
    sha256 = hashlib.sha256(data).digest()
    cache.keep(fingerprint, sha256)
    return sha256, data


def _hashed(source: ImageSource, cache: Cache, *, mirrored: bool) -> HashedPicture:
    prefix = f"{VERSION} {mirrored} "
    try:
        sha256, data = _content(source, cache)
        hashes = cache.get(prefix + sha256.hex())
        if hashes is None:
            if data is None:  # it may have changed since its fingerprint was taken
                data = source.read()
                sha256 = hashlib.sha256(data).digest()
            hashes = perceptual_hashes(source.name, data, mirrored=mirrored)
            cache.keep(prefix + sha256.hex(), hashes)
    except UserError as error:
        return HashedPicture(source.name, b"", b"", str(error))
    return HashedPicture(source.name, sha256, hashes)


def perceptual_hashes(name: str, data: bytes, *, mirrored: bool) -> bytes:
    """Return the hashes of the picture and of its middle without 1 to 10 % of each side.

    Args:
        name: What an error message calls the picture.
        data: Encoded file.
        mirrored: Also those of the picture mirrored left to right, upside down, and both.

    Returns:
        (1 or 4 orientations) x 11 hashes of 32 bytes. A picture without contrast has none, because
        blank pictures would have equal hashes.

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
