"""How long the contamination gate takes, and how that grows to 650,000 training pictures.

    python benchmarks/contamination.py ../shared/data/vqa_rad

Two measurements. The whole gate on 12,149 rows, each with a picture file of its own, against all
2,248 VQA-RAD questions, with an empty cache and with a filled one. And the comparison alone, with
synthetic hashes at growing numbers of training pictures.

Writes benchmarks/results/contamination.json.
"""

import argparse
import os
import resource
import sys
import tempfile
import time
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from medvqa.config.contamination import ContaminationConfig
from medvqa.config.data import SourceConfig
from medvqa.contamination.near import NearIndex
from medvqa.contamination.overlap import find_overlap
from medvqa.contamination.picture_hash import hash_words, perceptual_hashes
from medvqa.data.example import Example
from medvqa.data.image import ImageFile
from medvqa.data.pool import load_examples
from medvqa.data.storage.cache import Cache
from medvqa.data.vqa_rad import IMAGE_FOLDER
from medvqa.tracking.environment import provenance
from medvqa.tracking.record import write_json

RESULT = Path(__file__).parent / "results" / "contamination.json"
BLOCK = 2048
MAX_DISTANCE = ContaminationConfig().max_distance


def clocks() -> tuple[float, float]:
    """Return wall and CPU seconds."""
    return time.perf_counter(), time.process_time()


def seconds_since(start: tuple[float, float]) -> dict[str, float]:
    """Return wall and CPU seconds since then."""
    now = clocks()
    return {"wall": round(now[0] - start[0], 2), "cpu": round(now[1] - start[1], 2)}


def write_pool(sources: list[Path], directory: Path, num_rows: int) -> list[Example]:
    """Write one JPEG per row: two real radiographs blended, at a real picture's size."""
    rng = np.random.default_rng(0)
    small = [Image.open(path).convert("L").resize((512, 512)) for path in sources]
    rows = []
    for number in range(num_rows):
        a, b = rng.choice(len(small), 2, replace=False)
        picture = Image.blend(small[a], small[b], float(rng.uniform(0.35, 0.65)))
        path = directory / f"{number}.jpg"
        with Image.open(sources[int(rng.integers(len(sources)))]) as other:
            picture.resize(other.size).convert("RGB").save(path, quality=85)
        rows.append(
            Example(
                id=str(number),
                images=(ImageFile(path),),
                question=f"Question {number % 3000}?",
                answers=(f"answer {number % 500}",),
                answer_type="open",
                type_origin="rule",
                source="synthetic",
                split="train",
                image_ids=(str(number),),
            )
        )
    return rows


def whole_gate(directory: Path, num_rows: int) -> dict[str, Any]:
    """Time the gate with an empty and with a filled cache."""
    evaluation = load_examples(
        SourceConfig(name="vqa_rad", path=str(directory), split="all"), seed=0
    )
    files = sorted((directory / IMAGE_FOLDER).glob("*.jpg"))
    result: dict[str, Any] = {"num_rows": num_rows, "num_evaluation_rows": len(evaluation)}
    with tempfile.TemporaryDirectory() as place:
        pool = write_pool(files, Path(place), num_rows)
        result["mean_file_bytes"] = round(
            sum(image.path.stat().st_size for row in pool for image in row.images) / num_rows  # type: ignore[attr-defined]
        )
        time.sleep(3)  # fingerprints of files that are newer are not trusted
        for name in ("empty_cache", "filled_cache"):
            start = clocks()
            with Cache(Path(place) / "cache") as cache:
                overlap = find_overlap(pool, {"all": evaluation}, cache, max_distance=MAX_DISTANCE)
            result[name] = seconds_since(start)
        result["num_look_alikes"] = overlap.sets[0].num_alike
        result["cache_bytes"] = sum(p.stat().st_size for p in (Path(place) / "cache").iterdir())
    return result


def hashing_rate(directory: Path) -> dict[str, float]:
    """Time reading, decoding and hashing VQA-RAD's own files, one thread, no cache."""
    files = sorted((directory / IMAGE_FOLDER).glob("*.jpg"))
    start = clocks()
    for path in files:
        perceptual_hashes(path.name, path.read_bytes(), mirrored=False)
    spent = seconds_since(start)
    return {"num_pictures": len(files), **{k: v / len(files) for k, v in spent.items()}}


def synthetic(base: np.ndarray, number: int, rng: np.random.Generator) -> np.ndarray:
    """Return (number, 11, 4) hashes whose bits are as skewed as those of real pictures.

    A third of a real hash's bits are drawn anew, by each bit's own frequency; the eleven crops
    differ from their neighbours in 20 bits, as measured.
    """
    bits = np.unpackbits(base.view(np.uint8).reshape(len(base), -1), axis=1)
    fresh = rng.random((number, 256)) < bits.mean(axis=0)
    chosen = bits[rng.integers(len(bits), size=number)]
    bits_now = np.where(rng.random((number, 256)) < 1 / 3, fresh, chosen).astype(np.uint8)
    crops = [bits_now]
    for _ in range(10):
        crops.append(crops[-1] ^ (rng.random((number, 256)) < 20 / 256).astype(np.uint8))
    return np.packbits(np.stack(crops, axis=1), axis=2).view(np.uint64)


@cache
def evaluation_hashes(directory: Path) -> np.ndarray:
    """Return (pictures, orientations, crops, 4) words of VQA-RAD's pictures, as the gate's."""
    files = sorted((directory / IMAGE_FOLDER).glob("*.jpg"))
    stored = [perceptual_hashes(p.name, p.read_bytes(), mirrored=True) for p in files]
    return np.stack([hash_words(hashes) for hashes in stored])


def growth(directory: Path, sizes: list[int]) -> list[dict[str, Any]]:
    """Time the comparison with VQA-RAD's pictures, as `find_overlap` does it block by block."""
    evaluation = evaluation_hashes(directory)
    base = np.ascontiguousarray(evaluation[:, 0, 0])
    results = []
    for size in sizes:
        rng = np.random.default_rng(size)
        start = clocks()
        cropped = NearIndex(evaluation.reshape(-1, 4), max_distance=MAX_DISTANCE)
        whole = NearIndex(evaluation[:, :, 0].reshape(-1, 4), max_distance=MAX_DISTANCE)
        building, search, num_pairs, num_planted, num_found = seconds_since(start), 0.0, 0, 0, 0
        for first in range(0, size, BLOCK):
            hashes = synthetic(base, min(BLOCK, size - first), rng)
            hashes[0, 0] = base[first % len(base)]  # a copy in every block must be found
            num_planted += 1
            clock = time.perf_counter()
            query, index, _ = cropped.search(hashes[:, 0])
            whole.search(hashes[:, 1:].reshape(-1, 4))
            search += time.perf_counter() - clock
            num_pairs += len(query)
            num_found += bool(((query == 0) & (index // 44 == first % len(base))).any())
        results.append(
            {
                "num_training_pictures": size,
                "num_evaluation_pictures": len(evaluation),
                "index_seconds": building,
                "search_wall_seconds": round(search, 2),
                "pairs_found": num_pairs,
                "planted": num_planted,
                "planted_found": num_found,
                "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            }
        )
        sys.stderr.write(f"{results[-1]}\n")
    return results


def brute_force(directory: Path, size: int) -> dict[str, Any]:
    """Time comparing every pair, on fewer pictures, for what the index saves."""
    evaluation = evaluation_hashes(directory).reshape(-1, 4)
    hashes = synthetic(evaluation[::44], size, np.random.default_rng(1))
    start = time.perf_counter()
    for row in hashes[:, 0]:
        np.bitwise_count(evaluation ^ row).sum(axis=1).min()
    for row in hashes[:, 1:].reshape(-1, 4):
        np.bitwise_count(evaluation[::11] ^ row).sum(axis=1).min()
    return {"num_training_pictures": size, "wall": round(time.perf_counter() - start, 2)}


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path, help="VQA-RAD as its authors publish it")
    parser.add_argument("--rows", type=int, default=12149)
    parser.add_argument("--sizes", type=int, nargs="+", default=[12149, 65000, 650000])
    options = parser.parse_args()
    write_json(
        RESULT,
        {
            **provenance(),
            "cores": len(os.sched_getaffinity(0)),
            "load_average_at_start": os.getloadavg(),
            "max_distance": MAX_DISTANCE,
            "seconds_a_picture": hashing_rate(options.directory),
            "whole_gate": whole_gate(options.directory, options.rows),
            "every_pair": brute_force(options.directory, 2000),
            "growth": growth(options.directory, options.sizes),
            "load_average_at_end": os.getloadavg(),
        },
    )


if __name__ == "__main__":
    main()
