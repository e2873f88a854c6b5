"""Rates and equality of the engines, on one model with random weights at real shapes.

    python -m benchmarks.engine qwen3_vl_8b --model-path DIR --vqa-rad DIR --out FILE
    python -m benchmarks.engine tiny --vqa-rad DIR --out FILE     # a CPU, for correctness

`benchmarks/random_models.py` writes the model's directory.

`--parts` chooses what is measured:

    training    samples/s of engines and micro-batches, pictures real and square, new and repeated,
                and the loss of each step against the first case's
    answering   seconds per question, and whose answers are equal
    confidence  what recording the confidence costs, by shared-prefix decoding (fused kernels only)
    profile     where a step spends its time, by kind of kernel (a GPU only)
    cards       training within the memory of smaller cards (a GPU only)

All share one loaded model; `--four-bit` and `--checkpointing` change how it is loaded.
Answers of random weights are noise and are compared with each other only. How other libraries
compare, and how long a start takes, is measured by `benchmarks.peers`.
"""

import argparse
import logging
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from benchmarks.engine.workload import PICTURES, SIDE, TINY, prepare, record_name
from benchmarks.runs import Row, parser_of, provenance
from medvqa.config.machine import take_gpu_memory_in_pages
from medvqa.config.model import Backend, BasePrecision
from medvqa.config.training import Engine
from medvqa.tracking.record import read_json, write_json

# Each with the module that has a function of the part's name.
PARTS = {
    **dict.fromkeys(("training", "cards"), "training"),
    **{"answering": "answering", "confidence": "answering", "profile": "profile"},
}
ANSWERING = "plain:plain:1:16,fused:shared_prefix:128,fused:shared_prefix:1:64,fused:plain:128:256"


class Record:
    """The results file: rows by part and model, and a part measured again replaces its rows."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options, self._values = options, read_json(options.out)
        self._new: dict[str, Row] = {}
        self._origin = provenance()

    def add(self, part: str, row: Row) -> None:
        """Append a row and write the file, so that a cut-off visit loses little."""
        name = record_name(part, self._options)
        own = self._new.setdefault(name, {**self._origin, "part": part, "rows": []})
        self._values[name] = own
        own["rows"].append(row)
        write_json(self._options.out, self._values)
        print(part, {k: v for k, v in row.items() if k != "losses"}, flush=True)  # noqa: T201


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the parts.

    The plain engine's rows come first in all of them: an accelerated model stays accelerated.
    """
    take_gpu_memory_in_pages()  # as train.py does
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = engine_parser()
    options = parser.parse_args(arguments)
    unknown = {*options.parts} - {*PARTS} | {*options.pictures} - {*PICTURES}
    if unknown:
        parser.error(f"no such part or pictures: {', '.join(sorted(unknown))}")
    if options.model != TINY and options.model_path is None:
        parser.error(f"{options.model} needs --model-path")
    options.side = options.side or (128 if options.model == TINY else SIDE)
    record = Record(options)
    bench = prepare(options)
    for engine in (Engine.plain, Engine.fused):
        for part in options.parts:
            module = import_module(f"benchmarks.engine.{PARTS[part]}")
            for row in getattr(module, part)(bench, engine):
                record.add(part, row)


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split(",")) if text else ()


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(map(float, _words(text)))


def engine_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = parser_of(__doc__)
    add = parser.add_argument
    add("model", help="`tiny`, or a name for the record")
    add("--vqa-rad", type=Path, required=True)
    add("--out", type=Path, required=True)
    add("--parts", type=_words, default=("training", "answering"))
    add("--model-path", type=Path, help="saved by benchmarks/random_models.py")
    add("--backend", choices=[backend.name for backend in Backend], default="transformers")
    add("--four-bit", action="store_true")
    add("--base-precision", choices=[choice.name for choice in BasePrecision], default="dtype")
    add("--checkpointing", action="store_true")
    add("--rank", type=int, default=16)
    add("--cards", type=_numbers, default=(10.0, 12.0, 16.0, 24.0), help="gigabytes")
    add("--side", type=int, help="of the largest picture in pixels; 512, for tiny 128")
    add("--warm-up", type=int, default=3, help="steps")
    add("--steps", type=int, default=12, help="steps that are timed")
    add("--adapter-steps", type=int, default=40, help="that train the adapter which answers")
    add("--new-tokens", type=int, default=8)
    add("--num-questions", type=int, default=2248)
    add("--pictures", type=_words, default=PICTURES)
    add("--training", type=_words, default=_words("plain:2,plain:8,fused:8"))
    add("--answering", type=_words, default=_words(ANSWERING),
        help="kernels:decoding:batch[:limit]")  # fmt: skip
    return parser


if __name__ == "__main__":
    main()
