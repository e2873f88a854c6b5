"""Odd values, damaged bytes and rare pictures for `tests.fuzz`; all follow from a seed."""

import io
import json
import random
import string
from functools import cache
from typing import Any

ODD_TEXTS = tuple(
    "|".join(
        (
            " |\0|\ud83d|\u2028|é|肺|<image>|<|im_end|>|NaN|yes|A|1|-1|1e999|../../etc/passwd",
            "/dev/zero|~|~nobody/x|%00|${data}|${oc.env:HOME}|'|\"|\\|\n|#3|a.nii|a.nii.gz#axial=x",
            "data:image/png;base64,AAAA|data:image/png,x|data:,|http://x/y|file:///etc/passwd|{}",
            "null|{id}.png|{|x.0.y|loop.png|pipe.png|folder.png|socket.png|\x1b[31m|\u202e|\r\n",
            "2020-01-01|0x10|1_000|+5|٣|½|True|\ufeff|[q_proj]",
        )
    ).split("|")
)
ODD_VALUES = (
    *("", "a" * 300, "[" * 50, "/" * 5000, None, True, False, 0, -1, 1, 2**63, -(2**70), 10**400),
    *(1e308, 5e-324, float("nan"), float("inf"), 0.5, [], {}, [[]], [None], {"text": None}),
    *({"a": {"b": [1]}}, {"": ""}, {1: 2}, b"bytes", ["a", "b"], list(range(2000))),
)


def odd(rng: random.Random) -> Any:
    """Return some value that a field rarely holds."""
    kind = rng.random()
    if kind < 0.45:
        return rng.choice(ODD_TEXTS)
    if kind < 0.85:
        return rng.choice(ODD_VALUES)
    if kind < 0.9:
        return json.loads("[" * 20 + "]" * 20)
    return "".join(rng.choice(string.printable) for _ in range(rng.randrange(40)))


def mutated(value: Any, rng: random.Random) -> Any:
    """Return a copy of plain values in which something is changed, left out or added."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        copy = dict(value)
        key = rng.choice(sorted(copy))
        action = rng.random()
        if action < 0.15:
            del copy[key]
        elif action < 0.3:
            copy[str(odd(rng))] = odd(rng)
        else:
            copy[key] = mutated(copy[key], rng)
        return copy
    if isinstance(value, list) and value and rng.random() < 0.7:
        items = list(value)
        place = rng.randrange(len(items))
        items[place] = mutated(items[place], rng)
        return items
    return odd(rng)


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Return the bytes cut, changed in a few places, or joined with themselves."""
    copy = bytearray(data)
    if rng.random() < 0.3:
        copy = copy[: rng.randrange(len(copy) + 1)]
    for _ in range(rng.randrange(4)):
        if copy:
            copy[rng.randrange(len(copy))] = rng.randrange(256)
    return bytes(copy + data if rng.random() < 0.05 else copy)


def as_json(value: Any) -> str:
    """Return JSON, with texts for what JSON has no word for."""
    return json.dumps(value, default=repr)


def as_bytes(text: str, rng: random.Random) -> bytes:
    """Return the text, at times in another encoding, with other line ends, or damaged."""
    if rng.random() < 0.1:
        return text.encode(rng.choice(("utf-16", "utf-8-sig", "utf-7")), "surrogatepass")
    if rng.random() < 0.1:
        text = text.replace("\n", rng.choice(("\r\n", "\r", "\n\n", "\u2028")))
    data = text.encode("utf-8", "surrogatepass")
    return damaged(data, rng) if rng.random() < 0.3 else data


@cache
def encoded_pictures() -> tuple[bytes, ...]:
    """Return small pictures of each kind and mode, sound ones first, then odd ones."""
    import numpy as np
    from PIL import Image

    noise = np.random.default_rng(0).integers(0, 255, (12, 16, 3), dtype=np.uint8)
    picture = Image.fromarray(noise)
    deep = Image.fromarray(noise[..., 0].astype(np.uint16) * 200)
    frames: dict[str, Any] = {"save_all": True, "append_images": [picture.rotate(90)]}
    clear: dict[str, Any] = {"transparency": 0}
    kinds: list[tuple[Any, str, dict[str, Any]]] = [
        *((picture, name, {}) for name in ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "PPM", "MPO")),
        *((picture.convert(mode), "PNG", {}) for mode in ("1", "L", "LA", "RGBA")),
        *((picture.convert("CMYK"), name, {}) for name in ("JPEG", "TIFF")),
        *((picture.convert("P"), name, clear) for name in ("PNG", "GIF")),
        *((deep, "PNG", {}), (deep, "TIFF", {}), (picture.convert("F"), "TIFF", {})),
        *((picture, name, frames) for name in ("GIF", "PNG", "TIFF", "MPO")),
        *((Image.new("L", size), "PNG", {}) for size in ((1, 1), (1000, 2), (8000, 8000))),
    ]
    encoded = []
    for image, name, options in kinds:
        buffer = io.BytesIO()
        image.save(buffer, name, **options)
        encoded.append(buffer.getvalue())
    return (*encoded, b"", b"GIF89a", b"\0" * 128 + b"DICM" + b"\0" * 64, b"%!PS-Adobe-3.0 EPSF\n")
