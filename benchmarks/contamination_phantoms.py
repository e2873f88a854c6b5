"""How near phantoms of different splits come to each other, for `conf/data/phantom.yaml`.

    python benchmarks/contamination_phantoms.py

Writes benchmarks/results/contamination_phantoms.json.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from medvqa.config.data import SourceConfig
from medvqa.contamination.near import MAX_DISTANCE
from medvqa.contamination.overlap import find_overlap
from medvqa.data.pool import load_examples
from medvqa.data.storage.cache import Cache
from medvqa.tracking.environment import provenance
from medvqa.tracking.record import write_json

RESULT = Path(__file__).parent / "results" / "contamination_phantoms.json"
SPLITS = ("test", "validation", "shifted")


def main() -> None:
    """Compare the training phantoms of each seed with its other splits."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=6)
    options = parser.parse_args()
    nearest: dict[str, dict[str, list[int]]] = {}
    with tempfile.TemporaryDirectory() as place, Cache(Path(place)) as cache:
        for seed in range(options.seeds):
            training, *others = (
                load_examples(SourceConfig(name="phantom", split=split), seed=seed)
                for split in ("train", *SPLITS)
            )
            sets = dict(zip(SPLITS, others, strict=True))
            overlap = find_overlap(training, sets, cache, max_distance=MAX_DISTANCE)
            distances: dict[str, list[int]] = {split: [] for split in SPLITS}
            for match in overlap.matches:
                split = match.evaluation.split("-")[1]
                distances[split].append(-1 if match.distance is None else match.distance)
            nearest[str(seed)] = {split: sorted(d)[:5] for split, d in distances.items()}
            sys.stderr.write(f"seed {seed}: {nearest[str(seed)]}\n")
    write_json(
        RESULT,
        {
            **provenance(),
            "nearest_pairs_by_seed_and_split": nearest,
        },
    )


if __name__ == "__main__":
    main()
