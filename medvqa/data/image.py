"""Image sources and their decoding: long, because everybody who shows a picture imports both."""

import hashlib
import io
import stat
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from medvqa.config.errors import UserError, about, first_line, printable
from medvqa.data.dicom import is_dicom, open_dicom, read_header
from medvqa.data.example import ImageSource
from medvqa.data.pixels import to_rgb

if TYPE_CHECKING:
    from PIL import Image

MAX_PIXELS = 50_000_000  # three times a large mammogram; decoded it takes 150 MB
MAX_BYTES = 256_000_000  # of one encoded picture
MAX_VOLUME_BYTES = 2_000_000_000  # of one volume of slices
MAX_ASPECT_RATIO = 200  # Qwen's image processors refuse more
SETTLED_S = 2.0  # a file system's clock may be that coarse


class ImageTooLargeError(UserError):
    """More pixels than may be decoded: a bomb, or simply too much."""


class ImageUnsuitableError(UserError):
    """A sound picture that no model here takes: several frames, or too long and narrow."""


@dataclass(frozen=True)
class ImageFile:
    """An image in a file of its own."""

    path: Path

    @property
    def name(self) -> str:
        """The path."""
        return str(self.path)

    def read(self) -> bytes:
        """Return the file's bytes."""
        with about(f"cannot read image {printable(self.path)}"):
            return read_regular(self.path, MAX_BYTES)

    def fingerprint(self) -> str | None:
        """Return what changes with the file; see `file_fingerprint`."""
        return file_fingerprint(self.path)


@dataclass(frozen=True)
class ImageBytes:
    """An image that a data set keeps inside its rows."""

    name: str
    data: bytes = field(repr=False)

    def read(self) -> bytes:
        """Return the encoded image."""
        return self.data


def read_regular(path: Path, max_bytes: int | None = None) -> bytes:
    """Return the bytes of a file; see `regular_size`."""
    try:
        size = regular_size(path)
        if max_bytes is not None and size > max_bytes:
            raise UserError(f"it has {size:,} bytes; the limit is {max_bytes:,}")
        return path.read_bytes()
    except OSError as error:
        raise UserError(error.strerror or str(error)) from error


def regular_size(path: Path) -> int:
    """Return the bytes of a file; a pipe or a device would never end.

    Raises:
        UserError: With the reason alone: missing, unreadable, or no regular file.
    """
    try:
        state = path.stat()
        if not stat.S_ISREG(state.st_mode):
            raise UserError("it is no regular file")
        return state.st_size
    except OSError as error:
        raise UserError(error.strerror or str(error)) from error
    except UserError:
        raise
    except ValueError as error:  # a null byte or a lone surrogate in the name
        raise UserError(str(error)) from error


def image_id(source: ImageSource) -> str:
    """Return the start of the SHA-256 of the encoded image: equal ids mean equal files."""
    return hashlib.sha256(source.read()).hexdigest()[:16]


def file_fingerprint(path: Path) -> str | None:
    """Return place, size, inode and times; the change time moves with every write.

    None if the file is absent, or so new that a second write could leave the same times.
    """
    try:
        state = path.stat()
    except (OSError, ValueError):
        return None
    if time.time() - state.st_ctime < SETTLED_S:
        return None
    times = f"{state.st_mtime_ns}:{state.st_ctime_ns}"
    return f"{printable(path.absolute())}:{state.st_dev}:{state.st_ino}:{state.st_size}:{times}"


def load_rgb(
    source: ImageSource,
    *,
    formats: tuple[str, ...] | None = None,
    max_pixels: int | None = None,
    enough_px: int | None = None,
) -> "Image.Image":
    """Decode to 8-bit RGB, upright.

    Transparency falls on black, as the background of most radiographs is; `to_rgb` says what
    becomes of more than eight bits.

    Args:
        source: Encoded picture.
        formats: Pillow's names of the decoders that may be tried; all if None.
        max_pixels: Above it, the picture is refused by its header, before it is decoded;
            `MAX_PIXELS` if None.
        enough_px: A JPEG may come out smaller, both sides at least this; that decodes faster.

    Raises:
        ImageTooLargeError: Naming the image, if it has more pixels.
        UserError: Naming the image, if it is missing, broken, animated or too long and narrow.
    """
    own = getattr(source, "load_rgb", None)  # a source with stricter limits decodes itself
    if own is not None:
        picture: Image.Image = own()
        return picture
    with _opened(source, formats, max_pixels) as image:
        if enough_px is not None:
            image.draft("RGB", (enough_px, enough_px))
        return _decoded(image)


def check_decodes(source: ImageSource) -> None:
    """Raise the `UserError` that `load_rgb` would, if the picture is missing or damaged.

    A JPEG is read to its end but not computed at full size, in a quarter of the time.
    """
    with _opened(source) as image:
        image.draft(None, (max(1, image.width // 8), max(1, image.height // 8)))
        _decoded(image)


@contextmanager
def _opened(
    source: ImageSource, formats: tuple[str, ...] | None = None, max_pixels: int | None = None
) -> "Iterator[Image.Image]":
    """Open the picture, checked; whatever fails while it is open names it."""
    from PIL import Image, UnidentifiedImageError

    data, name = source.read(), printable(source.name)
    limit = MAX_PIXELS if max_pixels is None else max_pixels
    try:
        with warnings.catch_warnings():
            # Our own limit speaks below.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            if is_dicom(data) and (formats is None or "DICOM" in formats):
                header = read_header(data)
                _check_size(int(header.Columns), int(header.Rows), limit)
                yield open_dicom(data)
            else:
                with Image.open(io.BytesIO(data), formats=formats) as image:
                    _check(image, limit)
                    yield image
    except UserError as error:
        raise type(error)(f"image {name} {error}") from None
    except Image.DecompressionBombError:  # Pillow refuses some before we can count
        raise ImageTooLargeError(
            f"image {name} has too many pixels; the limit is {limit:,}"
        ) from None
    except UnidentifiedImageError as error:  # its own text is a memory address
        raise UserError(f"image {name} is broken or no image: unknown format") from error
    except Exception as error:  # decoders of broken files raise a dozen unrelated types
        raise UserError(f"image {name} is broken or no image: {first_line(error)}") from error


def image_size(
    source: ImageSource, *, formats: tuple[str, ...] | None = None, max_pixels: int | None = None
) -> tuple[int, int]:
    """Return (width, height) of the upright picture from the file's head alone.

    `formats` and `max_pixels` limit it as in `load_rgb`.

    Raises:
        UserError: As `load_rgb`, but for what only decoding brings to light.
    """
    from PIL import ExifTags

    with _opened(source, formats, max_pixels) as image:
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
        return (image.height, image.width) if turned else image.size


def _decoded(image: "Image.Image") -> "Image.Image":
    from PIL import ImageOps

    image.load()
    return to_rgb(ImageOps.exif_transpose(image))


def _check(image: "Image.Image", max_pixels: int) -> None:
    _check_size(image.width, image.height, max_pixels)
    num_frames = getattr(image, "n_frames", 1)
    # A phone's MPO file is a JPEG with a preview, a gain map or the other eye behind it.
    if num_frames > 1 and image.format != "MPO":
        raise ImageUnsuitableError(
            f"has {num_frames} frames; save the frame that the question is about"
        )


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise ImageTooLargeError(f"has {width * height:,} pixels; the limit is {max_pixels:,}")
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise ImageUnsuitableError(
            f"is {width} x {height} pixels; one side may be at most {MAX_ASPECT_RATIO} times the "
            "other: crop or pad it"
        )
