"""What an agent asks -> a question that is safe to answer; nothing here runs a model.

Agents pass on text from documents and web pages, so query and images are untrusted input. An image
is decoded by the evaluator's own code, from six formats only. Only its pixels go on, without the
metadata in which medical files carry names.
"""

import hashlib
import io
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from medvqa.config.errors import UserError
from medvqa.data.example import ImageSource
from medvqa.data.image import (
    ImageBytes,
    ImageTooLargeError,
    ImageUnsuitableError,
    image_size,
    load_rgb,
)
from medvqa.serve.errors import ErrorKind, ToolError
from medvqa.serve.reference import Images, read_reference, references, shown

if TYPE_CHECKING:
    from PIL import Image

# Pillow's other decoders are for rare files; one of them starts another program (EPS).
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
# What chat templates of Qwen and its relatives separate turns and pictures with.
CONTROL_TOKEN = re.compile(r"<\|[^|<>\s]{1,64}\|>")


@dataclass(kw_only=True)
class Limits:
    """Caps; what is above is refused, never cut.

    Attributes:
        max_image_bytes: Of one encoded image.
        max_image_pixels: Of one image, by its header, before it is decoded.
    """

    max_query_chars: int = 4000
    max_images: int = 8
    max_image_bytes: int = 20_000_000
    max_image_pixels: int = 50_000_000


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question about no, one or several images.

    Attributes:
        images: In the order in which the text speaks of them.
        max_new_tokens: A limit below the evaluator's; the evaluator's own if None.
        num_ignored: References that meant no image.
    """

    text: str
    images: tuple[ImageSource, ...]
    max_new_tokens: int | None = None
    num_ignored: int = 0


class Intake:
    """Checks questions and reads their images.

    Args:
        allowed_roots: Existing directories that local images may lie below; none allows none.
        limits: Caps.
    """

    def __init__(self, allowed_roots: Sequence[Path], limits: Limits) -> None:
        self._roots = [root.resolve() for root in allowed_roots]
        self._limits = limits

    def accept(self, query: str, images: Images) -> Question:
        """Return the question with its images read and their headers checked.

        Raises:
            ToolError: On the first thing that is not allowed, missing, broken or too large; a
                question is never answered without an image that was asked about.
        """
        text = self._query(query)
        named, num_ignored = references(images)
        limit = self._limits.max_images
        if len(named) > limit:
            message = f"{len(named)} images; the limit is {limit} per question"
            raise ToolError(ErrorKind.too_many_images, message)
        return Question(text=text, images=tuple(map(self._image, named)), num_ignored=num_ignored)

    def _query(self, query: str) -> str:
        if not isinstance(query, str):
            raise ToolError(ErrorKind.query_not_allowed, "the query must be a string")
        limit = self._limits.max_query_chars
        if len(query) > limit:
            raise ToolError(
                ErrorKind.query_too_long, f"{len(query):,} characters; the limit is {limit:,}"
            )
        if not query.strip():
            raise ToolError(ErrorKind.query_empty, "ask a question")
        if re.search(r"[\ud800-\udfff\0]", query):
            raise ToolError(ErrorKind.query_not_allowed, "the query is no valid text")
        control = CONTROL_TOKEN.search(query)
        if control:
            raise ToolError(
                ErrorKind.query_not_allowed,
                f"the query holds the control token {shown(control[0])}; leave it out",
            )
        return query.strip()

    def _image(self, reference: str) -> "CheckedImage":
        data = read_reference(reference, self._roots, max_bytes=self._limits.max_image_bytes)
        return CheckedImage(shown(reference), data, self._limits.max_image_pixels)


class CheckedImage:
    """An encoded image from outside, whose header has been checked; it decodes itself.

    Whatever fails is a `ToolError` that names the image.

    Attributes:
        digest: The SHA-256 of the encoded image.
        num_pixels: By its header.
    """

    def __init__(self, name: str, data: bytes, max_pixels: int) -> None:
        self.name = name
        self.digest = hashlib.sha256(data).hexdigest()
        self._source = ImageBytes(name, data)
        self._max_pixels = max_pixels
        with _image_errors():
            size = image_size(self._source, formats=FORMATS, max_pixels=max_pixels)
        self.num_pixels = math.prod(size)

    def load_rgb(self) -> "Image.Image":
        """Decode it as the evaluator does, without metadata."""
        with _image_errors():
            picture = load_rgb(self._source, formats=FORMATS, max_pixels=self._max_pixels)
        picture.info.clear()
        return picture

    def read(self) -> bytes:
        """Return its pixels as PNG, for another program to decode."""
        buffer = io.BytesIO()
        self.load_rgb().save(buffer, "PNG", compress_level=1)
        return buffer.getvalue()


@contextmanager
def _image_errors() -> Iterator[None]:
    try:
        yield
    except ImageTooLargeError as error:
        raise ToolError(ErrorKind.too_large, str(error)) from None
    except ImageUnsuitableError as error:
        raise ToolError(ErrorKind.model_refused, str(error)) from None
    except UserError as error:
        raise ToolError(ErrorKind.image_unreadable, str(error)) from None
