"""What an agent asks -> a question that is safe to answer; nothing here runs a model.

Agents pass on what they were told, so query and images are a stranger's input. A picture is decoded
by the evaluator's own code and goes on as an RGB PNG: its pixels, without the metadata in which
medical files carry names, and nothing for another decoder to trip over.
"""

import base64
import binascii
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from medvqa.config.errors import UserError
from medvqa.data.image import ImageBytes, ImageTooLargeError, load_rgb
from medvqa.serve.local_file import read_below
from medvqa.serve.references import Images, references, scheme_of, shown
from medvqa.serve.remote import Fetcher
from medvqa.serve.tool_error import ErrorKind, ToolError

# Pillow's other decoders are for rare files; one of them starts another program (EPS).
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
DATA_URL = re.compile(r"data:image/[a-z0-9.+-]+;base64,", re.IGNORECASE)
# What chat templates of Qwen and its relatives separate turns and pictures with.
CONTROL_TOKEN = re.compile(r"<\|[^|<>\s]{1,64}\|>")
REMOTE = ("http", "https")


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

    def __post_init__(self) -> None:
        """Check bounds."""
        for name, value in vars(self).items():
            if value <= 0:
                raise ValueError(f"limits.{name} must be above 0, got {value}")


@dataclass(frozen=True, kw_only=True)
class Accepted:
    """A question that passed.

    Attributes:
        images: RGB pictures as PNG, in the order of the list.
        num_ignored: Entries of the list that meant no image.
    """

    query: str
    images: tuple[ImageBytes, ...]
    num_ignored: int


class Intake:
    """Checks questions and reads their images.

    Args:
        allowed_roots: Existing directories that local images may lie below; none allows none.
        limits: Caps.
        fetcher: Reads remote images; None refuses them.
    """

    def __init__(
        self, allowed_roots: Sequence[Path], limits: Limits, fetcher: Fetcher | None
    ) -> None:
        self._roots = [root.resolve() for root in allowed_roots]
        self._limits = limits
        self._fetcher = fetcher

    def accept(self, query: str, images: Images) -> Accepted:
        """Return the question with its images read and decoded.

        Raises:
            ToolError: On the first thing that is not allowed, missing, broken or too large; a
                question is never answered without an image that was asked about.
        """
        text = self._query(query)
        kept, num_ignored = references(images)
        limit = self._limits.max_images
        if len(kept) > limit:
            raise ToolError(
                ErrorKind.too_many_images, f"{len(kept)} images; the limit is {limit} a question"
            )
        return Accepted(query=text, images=tuple(map(self._image, kept)), num_ignored=num_ignored)

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

    def _image(self, reference: str) -> ImageBytes:
        return self._decoded(shown(reference), self._read(reference))

    def _read(self, reference: str) -> bytes:
        scheme = scheme_of(reference)
        if scheme == "data":
            return self._data_url(reference)
        if scheme in REMOTE and self._fetcher is not None:
            return self._fetcher.fetch(reference)
        if scheme in REMOTE:
            problem = "is remote, and the tool's config names no allowed_hosts"
        elif "://" in reference or scheme == "file":
            problem = "has a scheme that is not supported; give a path, an http(s) or a data: URL"
        else:
            return read_below(reference, self._roots, max_bytes=self._limits.max_image_bytes)
        raise ToolError(ErrorKind.image_not_allowed, f"image {shown(reference)} {problem}")

    def _data_url(self, reference: str) -> bytes:
        header = DATA_URL.match(reference)
        if header is None:
            raise ToolError(
                ErrorKind.image_unreadable,
                f"image {shown(reference)} does not begin with data:image/<type>;base64,",
            )
        limit = self._limits.max_image_bytes
        too_large = ToolError(
            ErrorKind.too_large, f"image {shown(reference)} holds more than {limit:,} bytes"
        )
        if (len(reference) - header.end()) // 4 * 3 > limit + 2:  # up to two are padding
            raise too_large
        try:
            data = base64.b64decode(reference[header.end() :], validate=True)
        except (binascii.Error, ValueError):  # ValueError: not ASCII
            raise ToolError(
                ErrorKind.image_unreadable, f"image {shown(reference)} is no valid base64"
            ) from None
        if len(data) > limit:
            raise too_large
        return data

    def _decoded(self, name: str, data: bytes) -> ImageBytes:
        try:
            picture = load_rgb(
                ImageBytes(name, data), formats=FORMATS, max_pixels=self._limits.max_image_pixels
            )
        except ImageTooLargeError as error:
            raise ToolError(ErrorKind.too_large, str(error)) from None
        except UserError as error:
            raise ToolError(ErrorKind.image_unreadable, str(error)) from None
        picture.info.clear()
        buffer = io.BytesIO()
        picture.save(buffer, "PNG", compress_level=1)
        return ImageBytes(name, buffer.getvalue())
