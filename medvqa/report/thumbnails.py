"""Pictures of the questions as thumbnails; runs keep no pictures, so their data is read again."""

import base64
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from medvqa.config.data import SourceConfig
from medvqa.config.errors import UserError
from medvqa.config.typed import typed_group
from medvqa.data.example import Example, ImageSource
from medvqa.data.image import load_rgb
from medvqa.data.pool import at_most, load_pool
from medvqa.report.arms import Arm
from medvqa.tracking.progress import track

LONGEST_SIDE_PX = 256
JPEG_QUALITY = 70


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """Thumbnails, each stored once.

    Attributes:
        urls: Picture -> JPEG as a data URL.
        shown: Cluster of a question -> its pictures, in the question's order.
        notes: What could not be shown and why, one line each.
    """

    urls: Mapping[str, str]
    shown: Mapping[str, tuple[str, ...]]
    notes: tuple[str, ...]


NONE = Pictures(urls={}, shown={}, notes=("pictures were left out on request",))


def read_pictures(arms: Sequence[Arm]) -> Pictures:
    """Return the pictures of every evaluation set of the arms, from where the runs' configs say.

    Data that is not on this machine costs its pictures, not the report.
    """
    urls: dict[str, str] = {}
    shown: dict[str, tuple[str, ...]] = {}
    notes: list[str] = []
    for name, source, limit, seed in _sources(arms):
        try:
            examples = at_most(load_pool(source, seed=seed), limit, seed=seed).examples
        except (UserError, OSError) as error:
            notes.append(f"no pictures of {name}: {str(error).splitlines()[0]}")
            continue
        for example in examples:
            shown["+".join(example.image_ids)] = example.image_ids
        notes += _add_thumbnails(urls, examples)
    return Pictures(urls=urls, shown=shown, notes=tuple(notes))


def _sources(arms: Sequence[Arm]) -> list[tuple[str, SourceConfig, int | None, int]]:
    """Return the different evaluation sources of the arms with limit and seed of their samples."""
    sources: dict[str, tuple[str, SourceConfig, int | None, int]] = {}
    for arm in arms:
        data = arm.config["data"]
        for name, values in data["evaluation"].items():
            limit, seed = data.get("evaluation_limit"), int(data.get("seed", 0))
            key = json.dumps([values, limit, seed], sort_keys=True)
            sources.setdefault(key, (name, typed_group(SourceConfig, values), limit, seed))
    return list(sources.values())


def _add_thumbnails(urls: dict[str, str], examples: Sequence[Example]) -> list[str]:
    broken = []
    for example in track(examples, description="pictures for the page"):
        for key, image in zip(example.image_ids, example.images, strict=True):
            try:
                urls[key] = urls.get(key) or thumbnail(image)
            except UserError as error:
                broken.append(str(error))
    return [f"{len(broken)} pictures cannot be shown, first: {broken[0]}"] if broken else []


def thumbnail(image: ImageSource) -> str:
    """Return the picture as a small JPEG in a data URL."""
    small = load_rgb(image)
    small.thumbnail((LONGEST_SIDE_PX, LONGEST_SIDE_PX))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=JPEG_QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
