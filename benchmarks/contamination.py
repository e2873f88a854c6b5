"""What the contamination gate finds, and what it confuses.

    python -m benchmarks.contamination recall VQA_RAD      edited copies, and different pictures
    python -m benchmarks.contamination phantoms            how near phantoms of two splits come

VQA_RAD holds the authors' files. `recall` edits each of the 315 pictures and compares it with all
originals as the gate compares a training picture with an evaluation picture. The records are
results/contamination_*.json.
"""

import io
import json
import random
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import imagehash
import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from benchmarks.runs import Row, parser_of, provenance
from medvqa.config.data import SourceConfig
from medvqa.contamination.near import MAX_DISTANCE
from medvqa.contamination.overlap import find_overlap
from medvqa.contamination.picture_hash import hash_words, perceptual_hashes
from medvqa.data.pool import load_examples
from medvqa.data.storage.cache import Cache
from medvqa.data.vqa_rad import IMAGE_FOLDER, JSON_NAME
from medvqa.tracking.record import write_json

Picture = Image.Image
RESULTS = Path(__file__).parent / "results"
DISTANCES = [*range(17), 20, 24, 28, 31]
TAIL = [*DISTANCES, 40, 48, 56, 64, 72, 80]
NUM_NEAREST = 12
SPLITS = ("test", "validation", "shifted")
GATE = "gate: phash 16 with crops"
METHODS = (GATE, "phash 16", "phash 8", "dhash 16", "whash 8")


def files_of(directory: Path) -> list[Path]:
    """Return VQA-RAD's 315 pictures."""
    return sorted((directory / IMAGE_FOLDER).glob("*.jpg"))


# --- Recall --------------------------------------------------------------------------------------


def jpeg(quality: int, image: Picture) -> Picture:
    """Encode as a JPEG."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


def scaled(factor: float, image: Picture) -> Picture:
    """Resize both sides."""
    size = (round(image.width * factor), round(image.height * factor))
    return image.resize(size, Image.Resampling.LANCZOS)


def cropped(lost: float, rng: random.Random | None, image: Picture) -> Picture:
    """Keep a window of 1 - lost of width and height, in the middle or at a random place."""
    x, y = (rng.random(), rng.random()) if rng else (0.5, 0.5)
    left, top = x * lost * image.width, y * lost * image.height
    right, bottom = left + (1 - lost) * image.width, top + (1 - lost) * image.height
    return image.crop((round(left), round(top), round(right), round(bottom)))


def off_each_side(share: float) -> Callable[[Picture], Picture]:
    """Return the edit that cuts this share off each of the four sides."""
    return partial(cropped, 2 * share, None)


def edits() -> dict[str, Callable[[Picture], Picture]]:
    """Return the edits; those at random places begin with the same one in each dictionary."""
    return {
        "resized to 50 %": partial(scaled, 0.5),
        "resized to 200 %": partial(scaled, 2.0),
        "JPEG quality 60": partial(jpeg, 60),
        "JPEG quality 30": partial(jpeg, 30),
        "PNG": lambda image: image,
        **{f"{100 * x:g} % off each side": off_each_side(x) for x in (0.02, 0.05, 0.10, 0.075)},
        "2 % off, window anywhere": partial(cropped, 0.02, random.Random(0)),
        "5 % off, window anywhere": partial(cropped, 0.05, random.Random(1)),
        "10 % off, window anywhere": partial(cropped, 0.10, random.Random(2)),
        "mirrored": ImageOps.mirror,
        "upside down": ImageOps.flip,
        "brightness x 0.7": lambda image: ImageEnhance.Brightness(image).enhance(0.7),
        "brightness x 1.3": lambda image: ImageEnhance.Brightness(image).enhance(1.3),
        "contrast x 0.7": lambda image: ImageEnhance.Contrast(image).enhance(0.7),
        "contrast x 1.4": lambda image: ImageEnhance.Contrast(image).enhance(1.4),
        "50 %, 3 % off each side, quality 30": lambda image: jpeg(
            30, off_each_side(0.03)(scaled(0.5, image))
        ),
    }


def hashes_of(method: str, pictures: Sequence[Picture], *, mirrored: bool) -> np.ndarray:
    """Return (pictures, orientations, crops, words): the gate's hashes, or one of imagehash's."""
    if method == GATE:
        encoded = []
        for picture in pictures:
            picture.save(buffer := io.BytesIO(), "BMP")
            encoded.append(buffer.getvalue())
        return np.stack([hash_words(perceptual_hashes("", b, mirrored=mirrored)) for b in encoded])
    function, _, size = method.partition(" ")
    turns = [lambda i: i, ImageOps.mirror, ImageOps.flip, lambda i: i.rotate(180)]
    turns = turns if mirrored else turns[:1]
    hash_of = partial(getattr(imagehash, function), hash_size=int(size))
    # 256 x 256 saves time; the library scales the pictures to 64 x 64 or less.
    grey = [p.convert("L").resize((256, 256), Image.Resampling.BILINEAR) for p in pictures]
    bits = np.array([[[hash_of(turn(p)).hash.ravel()] for turn in turns] for p in grey])
    return np.packbits(bits, axis=-1).view(np.uint64)


def distances(training: np.ndarray, evaluation: np.ndarray) -> np.ndarray:
    """Return (training, evaluation) smallest distances of a whole and a crop, as the gate's."""
    rows = []
    for crops in training[:, 0]:
        whole = crops[0] ^ evaluation  # (evaluation, orientations, crops, words)
        parts = crops[None, None] ^ evaluation[:, :, :1]
        both = [np.bitwise_count(x).sum(axis=-1, dtype=np.int64) for x in (whole, parts)]
        rows.append(np.minimum(*(bits.min(axis=(1, 2)) for bits in both)))
    return np.stack(rows)


def measure_method(method: str, directory: Path, pictures: Sequence[Picture]) -> Row:
    """Return recall by edit and distance, the confused pairs, and the nearest of them."""
    names = [path.name for path in files_of(directory)]
    cases = {row["image_name"]: row["image_case_url"]
             for row in json.loads((directory / JSON_NAME).read_text())}  # fmt: skip
    originals = hashes_of(method, pictures, mirrored=True)
    recall = {}
    for edit, function in edits().items():
        edited = hashes_of(method, [function(picture) for picture in pictures], mirrored=False)
        own = np.diag(distances(edited, originals))
        recall[edit] = {str(d): float((own <= d).mean()) for d in DISTANCES}
    upper = np.triu_indices(len(names), 1)
    between = distances(originals, originals)[upper]
    nearest = []
    for place in np.argsort(between, kind="stable")[:NUM_NEAREST]:
        pair = [names[side[place]] for side in upper]
        is_one_case = len({cases.get(name, name) for name in pair}) == 1
        distance = int(between[place])
        nearest.append({"pictures": pair, "distance": distance, "same_case": is_one_case})
    return {
        "recall": recall,
        "confused_pairs": {str(d): int((between <= d).sum()) for d in TAIL},
        "nearest_pairs": nearest,
    }


def recall(directory: Path) -> None:
    """Measure every method on every edit."""
    pictures = [Image.open(path).convert("RGB") for path in files_of(directory)]
    methods = {method: measure_method(method, directory, pictures) for method in METHODS}
    write_json(RESULTS / "contamination_recall.json", {**provenance(), "methods": methods})


# --- Phantoms ------------------------------------------------------------------------------------


def phantoms(num_seeds: int = 6) -> None:
    """Compare the training phantoms of each seed with its other splits."""
    nearest: dict[str, dict[str, list[int]]] = {}
    with tempfile.TemporaryDirectory() as place, Cache(Path(place)) as cache:
        for seed in range(num_seeds):
            training, *others = (
                load_examples(SourceConfig(name="phantom", split=split), seed=seed)
                for split in ("train", *SPLITS)
            )
            sets = dict(zip(SPLITS, others, strict=True))
            overlap = find_overlap(training, sets, cache, max_distance=MAX_DISTANCE)
            found: dict[str, list[int]] = {split: [] for split in SPLITS}
            for match in overlap.matches:
                split = match.evaluation.split("-")[1]
                found[split].append(-1 if match.distance is None else match.distance)
            nearest[str(seed)] = {split: sorted(d)[:5] for split, d in found.items()}
    values = {**provenance(), "nearest_pairs_by_seed_and_split": nearest}
    write_json(RESULTS / "contamination_phantoms.json", values)


def main() -> None:
    """Measure one of the two."""
    parser = parser_of(__doc__)
    parser.add_argument("what", choices=("recall", "phantoms"))
    parser.add_argument("directory", type=Path, nargs="?", help="VQA_RAD")
    options = parser.parse_args()
    if options.what == "phantoms":
        phantoms()
    elif options.directory is None:
        parser.error("recall needs VQA_RAD")
    else:
        recall(options.directory)


if __name__ == "__main__":
    main()
