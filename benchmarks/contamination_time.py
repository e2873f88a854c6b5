"""How long the contamination gate takes, up to 650,000 training pictures.

    python -m benchmarks.contamination_time VQA_RAD

VQA_RAD holds the authors' files. The whole gate runs on 12,149 rows against all 2,248 questions;
each row has a picture file of its own. Then the comparison runs alone, with synthetic hashes.
"""

import os
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.contamination import RESULTS, files_of
from benchmarks.runs import Row, parser_of, provenance, timed
from medvqa.config.contamination import ContaminationConfig
from medvqa.config.data import SourceConfig
from medvqa.contamination.near import NearIndex
from medvqa.contamination.overlap import find_overlap
from medvqa.contamination.picture_hash import hash_words, perceptual_hashes
from medvqa.data.example import Example
from medvqa.data.image import ImageFile
from medvqa.data.pool import load_examples
from medvqa.data.storage.cache import Cache
from medvqa.tracking.record import write_json

BLOCK = 2048


def write_pool(sources: list[Path], directory: Path, num_rows: int) -> list[Example]:
    """Write one JPEG per row: two real radiographs blended, at a real picture's size."""
    rng = np.random.default_rng(0)
    small = [Image.open(path).convert("L").resize((512, 512)) for path in sources]
    sizes = [Image.open(path).size for path in sources]
    rows = []
    for number in range(num_rows):
        a, b, c = rng.choice(len(small), 3, replace=False)
        picture = Image.blend(small[a], small[b], float(rng.uniform(0.35, 0.65)))
        path = directory / f"{number}.jpg"
        picture.resize(sizes[c]).convert("RGB").save(path, quality=85)
        rows.append(
            Example(
                id=str(number), images=(ImageFile(path),), question=f"Question {number % 3000}?",
                answers=(f"answer {number % 500}",), answer_type="open", type_origin="rule",
                source="synthetic", split="train", image_ids=(str(number),),
            )
        )  # fmt: skip
    return rows


def whole_gate(directory: Path, num_rows: int) -> Row:
    """Time the gate with an empty and with a filled cache."""
    source = SourceConfig(name="vqa_rad", path=str(directory), split="all")
    sets = {"all": load_examples(source, seed=0)}
    limit = ContaminationConfig().max_distance
    result: Row = {"num_rows": num_rows}
    with tempfile.TemporaryDirectory() as place:
        pool = write_pool(files_of(directory), Path(place), num_rows)
        time.sleep(3)  # fingerprints of files that are newer are not trusted
        for name in ("empty_cache", "filled_cache"):
            with Cache(Path(place) / "cache") as cache:
                search = partial(find_overlap, pool, sets, cache, max_distance=limit)
                result[name], _ = timed(search)
        result["cache_bytes"] = sum(p.stat().st_size for p in (Path(place) / "cache").iterdir())
    return result


def synthetic(base: np.ndarray, number: int, rng: np.random.Generator) -> np.ndarray:
    """Return (number, 11, 4) hashes whose bits are as skewed as those of real pictures.

    A third of a real hash's bits are drawn anew, by each bit's own frequency. The eleven crops
    differ from their neighbours in 20 bits, as measured on real pictures.
    """
    bits = np.unpackbits(base.view(np.uint8).reshape(len(base), -1), axis=1)
    fresh = rng.random((number, 256)) < bits.mean(axis=0)
    chosen = bits[rng.integers(len(bits), size=number)]
    crops = [np.where(rng.random((number, 256)) < 1 / 3, fresh, chosen).astype(np.uint8)]
    for _ in range(10):
        crops.append(crops[-1] ^ (rng.random((number, 256)) < 20 / 256).astype(np.uint8))
    return np.packbits(np.stack(crops, axis=1), axis=2).view(np.uint64)


def comparison(evaluation: np.ndarray, size: int) -> Row:
    """Time the search of so many training pictures, as `find_overlap` does it block by block."""
    rng = np.random.default_rng(size)
    base = np.ascontiguousarray(evaluation[:, 0, 0])
    limit = ContaminationConfig().max_distance
    cropped_index = NearIndex(evaluation.reshape(-1, 4), max_distance=limit)
    whole_index = NearIndex(evaluation[:, :, 0].reshape(-1, 4), max_distance=limit)
    seconds, num_found = 0.0, 0
    for first in range(0, size, BLOCK):
        hashes = synthetic(base, min(BLOCK, size - first), rng)
        hashes[0, 0] = base[first % len(base)]  # a copy in every block must be found
        started = time.perf_counter()
        query, index, _ = cropped_index.search(hashes[:, 0])
        whole_index.search(hashes[:, 1:].reshape(-1, 4))
        seconds += time.perf_counter() - started
        num_found += bool(((query == 0) & (index // 44 == first % len(base))).any())
    planted = {"planted": -(-size // BLOCK), "planted_found": num_found}
    return {"num_training_pictures": size, "search_wall_seconds": round(seconds, 2), **planted}


def main() -> None:
    """Time the gate, the hashing of real files, and the comparison as the pool grows."""
    parser = parser_of(__doc__)
    parser.add_argument("directory", type=Path, metavar="VQA_RAD")
    parser.add_argument("--rows", type=int, default=12149)
    parser.add_argument("--sizes", type=int, nargs="+", default=[12149, 65000, 650000])
    parser.add_argument("--out", type=Path, default=RESULTS / "contamination.json")
    options = parser.parse_args()
    files = files_of(options.directory)
    hashing, _ = timed(
        lambda: [perceptual_hashes("", path.read_bytes(), mirrored=False) for path in files]
    )
    stored = [perceptual_hashes("", path.read_bytes(), mirrored=True) for path in files]
    evaluation = np.stack([hash_words(hashes) for hashes in stored])
    values = {
        "load_average": os.getloadavg(),
        "seconds_per_picture": {name: spent / len(files) for name, spent in hashing.items()},
        "whole_gate": whole_gate(options.directory, options.rows),
        "growth": [comparison(evaluation, size) for size in options.sizes],
    }
    write_json(options.out, {**provenance(), **values})


if __name__ == "__main__":
    main()
