"""What the contamination gate finds of edited copies, and which different pictures it confuses.

    python benchmarks/contamination_recall.py ../shared/data/vqa_rad

Each of VQA-RAD's 315 pictures is edited and compared with all originals as the gate compares a
training picture with an evaluation picture. Writes benchmarks/results/contamination_recall.json.
"""

import argparse
import io
import json
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagehash
import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from medvqa.contamination.picture_hash import hash_words, perceptual_hashes
from medvqa.data.vqa_rad import IMAGE_FOLDER, JSON_NAME
from medvqa.tracking.environment import provenance
from medvqa.tracking.record import write_json

Picture = Image.Image
RESULT = Path(__file__).parent / "results" / "contamination_recall.json"
DISTANCES = [*range(17), 20, 24, 28, 31]
TAIL = [*DISTANCES, 40, 48, 56, 64, 72, 80]
LOOKED_AT = 12


def jpeg(quality: int) -> Callable[[Picture], Picture]:
    """Return an edit that encodes as a JPEG."""

    def edit(image: Picture) -> Picture:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality)
        return Image.open(io.BytesIO(buffer.getvalue())).convert("RGB")

    return edit


def scaled(factor: float) -> Callable[[Picture], Picture]:
    """Return an edit that resizes both sides."""

    def edit(image: Picture) -> Picture:
        size = (round(image.width * factor), round(image.height * factor))
        return image.resize(size, Image.Resampling.LANCZOS)

    return edit


def centred(share: float) -> Callable[[Picture], Picture]:
    """Return an edit that cuts this share off each of the four sides."""

    def edit(image: Picture) -> Picture:
        x, y = image.width * share, image.height * share
        return image.crop((round(x), round(y), round(image.width - x), round(image.height - y)))

    return edit


def anywhere(share: float, seed: int) -> Callable[[Picture], Picture]:
    """Return an edit that keeps a window of 1 - share of width and height at a random place."""
    rng = random.Random(seed)

    def edit(image: Picture) -> Picture:
        width, height = image.width * (1 - share), image.height * (1 - share)
        x, y = rng.random() * share * image.width, rng.random() * share * image.height
        return image.crop((round(x), round(y), round(x + width), round(y + height)))

    return edit


EDITS: dict[str, Callable[[Picture], Picture]] = {
    "resized to 50 %": scaled(0.5),
    "resized to 200 %": scaled(2.0),
    "JPEG quality 60": jpeg(60),
    "JPEG quality 30": jpeg(30),
    "PNG": lambda image: image,
    "2 % off each side": centred(0.02),
    "5 % off each side": centred(0.05),
    "10 % off each side": centred(0.10),
    "7.5 % off each side": centred(0.075),
    "2 % off, window anywhere": anywhere(0.02, 0),
    "5 % off, window anywhere": anywhere(0.05, 1),
    "10 % off, window anywhere": anywhere(0.10, 2),
    "mirrored": ImageOps.mirror,
    "upside down": ImageOps.flip,
    "brightness x 0.7": lambda image: ImageEnhance.Brightness(image).enhance(0.7),
    "brightness x 1.3": lambda image: ImageEnhance.Brightness(image).enhance(1.3),
    "contrast x 0.7": lambda image: ImageEnhance.Contrast(image).enhance(0.7),
    "contrast x 1.4": lambda image: ImageEnhance.Contrast(image).enhance(1.4),
    "50 %, 3 % off each side, quality 30": lambda i: jpeg(30)(centred(0.03)(scaled(0.5)(i))),
}


def gate_hashes(pictures: list[Picture], *, mirrored: bool) -> np.ndarray:
    """Return (n, orientations, crops, 4) words, as the gate stores them."""
    hashes = []
    for picture in pictures:
        buffer = io.BytesIO()
        picture.save(buffer, "BMP")
        hashes.append(hash_words(perceptual_hashes("", buffer.getvalue(), mirrored=mirrored)))
    return np.stack(hashes)


def gate_distances(training: np.ndarray, evaluation: np.ndarray) -> np.ndarray:
    """Return (training, evaluation) smallest distances over orientations and crops."""
    rows = []
    for crops in training[:, 0]:
        whole = crops[0] ^ evaluation  # (evaluation, orientations, crops, 4)
        parts = crops[None, None] ^ evaluation[:, :, :1]
        both = [np.bitwise_count(x).sum(axis=-1, dtype=np.int64) for x in (whole, parts)]
        rows.append(np.minimum(*(bits.min(axis=(1, 2)) for bits in both)))
    return np.stack(rows)


def plain_hashes(kind: str, pictures: list[Picture], *, mirrored: bool) -> np.ndarray:
    """Return (n, orientations, bits) of one of imagehash's hashes.

    Pictures are scaled to 256 x 256 first, to save time; the library scales them to 64 or less.
    """
    function, _, size = kind.partition(" ")
    hash_of = getattr(imagehash, function)
    edits = [lambda i: i, ImageOps.mirror, ImageOps.flip, lambda i: i.rotate(180)]
    grey = [p.convert("L").resize((256, 256), Image.Resampling.BILINEAR) for p in pictures]
    return np.array(
        [
            [hash_of(e(p), hash_size=int(size)).hash.ravel() for e in edits[: 4 if mirrored else 1]]
            for p in grey
        ]
    )


def plain_distances(training: np.ndarray, evaluation: np.ndarray) -> np.ndarray:
    """Return (training, evaluation) smallest distances over orientations."""
    return np.stack([(t[0] != evaluation).sum(axis=-1).min(axis=1) for t in training])


Method = tuple[Callable[..., np.ndarray], Callable[[np.ndarray, np.ndarray], np.ndarray]]


def methods() -> dict[str, Method]:
    """Return hashing and distance of the gate and of its alternatives."""
    plain = {
        kind: (lambda p, mirrored, kind=kind: plain_hashes(kind, p, mirrored=mirrored),
               plain_distances)
        for kind in ("phash 16", "phash 8", "dhash 16", "whash 8")
    }  # fmt: skip
    return {"gate: phash 16 with crops": (gate_hashes, gate_distances), **plain}


def crop_resistant(pictures: list[Picture], edits: list[str]) -> dict[str, Any]:
    """Return recall and confusions of imagehash's own crop-resistant hash, at its own rule."""
    originals = [imagehash.crop_resistant_hash(picture) for picture in pictures]
    n = len(originals)
    pairs = [(i, j) for i in range(n) for j in range(i)]
    return {
        "rule": "one segment within 25 % of its bits (the library's default)",
        "recall": {
            name: sum(
                imagehash.crop_resistant_hash(EDITS[name](p)).matches(o)
                for p, o in zip(pictures, originals, strict=True)
            )
            / n
            for name in edits
        },
        "confused_pairs": sum(originals[i].matches(originals[j]) for i, j in pairs),
        "num_pairs": len(pairs),
        "num_pictures": n,
    }


def main() -> None:
    """Measure every method on every edit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path, help="the authors' files")
    parser.add_argument("--crop-resistant", type=int, default=40, help="pictures for the slow one")
    options = parser.parse_args()
    files = sorted((options.directory / IMAGE_FOLDER).glob("*.jpg"))
    rows = json.loads((options.directory / JSON_NAME).read_text())
    cases = {row["image_name"]: row["image_case_url"] for row in rows}
    pictures = [Image.open(path).convert("RGB") for path in files]
    upper = np.triu_indices(len(files), 1)
    known = methods()
    originals = {name: hashes_of(pictures, mirrored=True) for name, (hashes_of, _) in known.items()}
    recall: dict[str, dict[str, dict[str, float]]] = {name: {} for name in known}
    for edit, function in EDITS.items():
        edited = [function(picture) for picture in pictures]
        for name, (hashes_of, distances) in known.items():
            own = np.diag(distances(hashes_of(edited, mirrored=False), originals[name]))
            recall[name][edit] = {str(d): float((own <= d).mean()) for d in DISTANCES}
        sys.stderr.write(f"{edit} done\n")
    figures: dict[str, Any] = {}
    for name, (_, distances) in known.items():
        between = distances(originals[name][:, :1], originals[name])[upper]
        nearest = np.argsort(between, kind="stable")[:LOOKED_AT]
        pairs = [[files[upper[side][k]].name for side in (0, 1)] for k in nearest]
        figures[name] = {
            "recall": recall[name],
            "confused_pairs": {str(d): int((between <= d).sum()) for d in TAIL},
            "nearest_pairs": [
                {
                    "pictures": pair,
                    "distance": int(between[k]),
                    "same_case": len({cases.get(picture, picture) for picture in pair}) == 1,
                }
                for k, pair in zip(nearest, pairs, strict=True)
            ],
        }
    every = max(1, len(pictures) // options.crop_resistant)
    slow_edits = ["resized to 50 %", "JPEG quality 30", "5 % off each side"]
    write_json(
        RESULT,
        {
            **provenance(),
            "imagehash": imagehash.__version__,
            "num_pictures": len(files),
            "num_pairs": len(upper[0]),
            "methods": figures,
            "crop_resistant_hash": crop_resistant(pictures[::every], slow_edits),
        },
    )


if __name__ == "__main__":
    main()
