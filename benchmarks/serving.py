"""Load test of `medvqa serve`: 32 clients against one that asks one question after the other.

    python -m benchmarks.serving RUN --data DIR
    python -m benchmarks.serving RUN --data DIR --against CHECKOUT

Both arms ask the same VQA-RAD questions in alternating rounds, after one round that warms up. With
--against, 32 clients ask the servers of this checkout and of another one, which must be able to
read the run.
"""

import argparse
import json
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from benchmarks.runs import ROOT, Row, parser_of, provenance
from medvqa.config.data import SourceConfig
from medvqa.data.example import Example
from medvqa.data.pool import load_examples
from medvqa.tracking.record import write_json
from tests.asking import CLIENTS, Server, ask_all, running_server

QUANTILES = (50, 90, 95, 99)


def load(options: argparse.Namespace) -> Row:
    """Return rates of both arms."""
    source = SourceConfig(name="vqa_rad", path=options.data, split="test", limit=options.requests)
    examples = load_examples(source, seed=0)
    with tempfile.TemporaryDirectory() as place, ExitStack() as servers:
        start = partial(running_server, options.run)
        this = servers.enter_context(start(Path(place, "this.log")))
        arms = {"many_clients": (this, CLIENTS), "one_by_one": (this, 1)}
        if options.against is not None:
            other = start(Path(place, "other.log"), checkout=options.against.resolve())
            arms = {"this": (this, CLIENTS), "other": (servers.enter_context(other), CLIENTS)}
        return measure(arms, examples, options.rounds)


def measure(
    arms: Mapping[str, tuple[Server, int]], examples: Sequence[Example], rounds: int
) -> Row:
    """Return throughput, latency and processor time per arm; all answers must be equal."""
    import numpy as np

    warm = [ask_all(server, examples)[0] for server, _ in arms.values()]
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    walls: dict[str, list[float]] = {name: [] for name in arms}
    cpu_s = dict.fromkeys(arms, 0.0)
    for _ in range(rounds):
        for name, (server, num_clients) in arms.items():
            before = server.cpu_seconds
            texts, spent, wall_s = ask_all(server, examples, num_clients)
            if any(texts != expected for expected in warm):
                raise RuntimeError(f"{name}: an answer differs")
            seconds[name] += spent
            walls[name].append(wall_s)
            cpu_s[name] += server.cpu_seconds - before
    return {
        name: {
            "requests_per_s": round(len(seconds[name]) / sum(walls[name]), 2),
            "requests_per_s_by_round": [round(len(examples) / wall, 2) for wall in walls[name]],
            "latency_s": {f"p{q}": float(np.percentile(seconds[name], q)) for q in QUANTILES},
            "cpu_ms_per_request": round(1000 * cpu_s[name] / len(seconds[name]), 1),
        }
        for name in arms
    }


def main() -> None:
    """Measure and write the record."""
    parser = parser_of(__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", required=True, help="VQA-RAD as its authors publish it")
    parser.add_argument("--requests", type=int, default=160, help="questions per round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--against", type=Path, metavar="CHECKOUT", help="another version's tree")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/serving.json")
    options = parser.parse_args()
    arms = load(options)
    write_json(options.out, {**provenance(), "arms": arms})
    print(json.dumps(arms, indent=2))  # noqa: T201


if __name__ == "__main__":
    main()
