"""Rates and equality of the engines, on one model with random weights at real shapes.

    python -m benchmarks.engine qwen3_vl_8b --vqa-rad DIR --tokenizer PATH/qwen.tiktoken --out FILE
    python -m benchmarks.engine tiny --vqa-rad DIR --out FILE     # a CPU, for correctness

`--parts` chooses what is measured:

    training    samples/s of engines and micro-batches, pictures real and square, new and repeated
    curve       the loss of each of 40 steps against the plain engine's
    gradients   of every adapter tensor, once, against the plain engine's
    answering   seconds per question, and whose answers are equal
    confidence  what recording the confidence costs, by shared-prefix decoding (fused kernels only)
    profile     where a step and an evaluation spend their time, by kind of kernel (a GPU only)
    cards       training within the memory of smaller cards (a GPU only)
    startup     from a command's start to the end of its first step (`--model-path`)

All but `startup` share one model, made on the device; `--four-bit` and `--checkpointing` change
that model. Answers of random weights are noise and are compared with each other only. How other
libraries compare is measured by `benchmarks.peers`.
"""

import argparse
import logging
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from benchmarks.engine.records import Records
from benchmarks.engine.startup import startup
from benchmarks.engine.workload import PICTURES, TINY, Settings, prepare
from medvqa.config.model import Backend, BasePrecision
from medvqa.config.training import Engine

COMMANDS = {"startup": startup}
# Parts that share a model, with the module that has a function of the part's name.
SHARING = {
    **dict.fromkeys(("training", "curve", "gradients", "cards"), "training"),
    **{name: name for name in ("answering", "confidence", "profile")},
}
ANSWERING = "plain:plain:1:16,fused:shared_prefix:128,fused:shared_prefix:1:64,fused:plain:128:256"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and write after each row, so that a cut-off visit loses little."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = _parser()
    options = parser.parse_args(arguments)
    parts, out = options.parts, options.out
    unknown = {*parts} - {*SHARING, *COMMANDS} | {*options.pictures} - {*PICTURES}
    unknown |= {*options.backends} - {backend.name for backend in Backend}
    if unknown:
        parser.error(f"no such part, backend or pictures: {', '.join(sorted(unknown))}")
    settings = settings_of(options)
    records = Records(out, settings.variant)
    for part in parts:
        if part in COMMANDS:  # first: this process has not taken the GPU yet
            for row in COMMANDS[part](settings):
                records.add(part, row)
    measure(settings, records, [part for part in parts if part in SHARING])


def measure(settings: Settings, records: Records, parts: Sequence[str]) -> None:
    """Measure the parts that share a model.

    The plain engine's rows come first in all of them: an accelerated model stays accelerated.
    """
    if not parts:
        return
    bench = prepare(settings)
    functions = {
        part: getattr(import_module(f"benchmarks.engine.{SHARING[part]}"), part) for part in parts
    }
    for engine in (Engine.plain, Engine.fused):
        for part in parts:
            for row in functions[part](bench, engine):
                records.add(part, row)


def settings_of(options: argparse.Namespace) -> Settings:
    """Return the options, typed."""
    values = {name: value for name, value in vars(options).items() if name not in ("parts", "out")}
    side = options.side or (128 if options.model == TINY else 512)
    values["cards"] = tuple(map(float, options.cards))
    choices = {
        "backend": Backend[options.backend],
        "base_precision": BasePrecision[options.base_precision],
    }
    return Settings(**{**values, "side": side, **choices})


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split(",")) if text else ()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.engine",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("model")
    add("--vqa-rad", type=Path, required=True)
    add("--out", type=Path, required=True)
    add("--parts", type=_words, default=("training", "curve", "gradients", "answering"))
    add("--tokenizer", type=Path, help="qwen.tiktoken, to make a model on the device")
    add("--model-path", type=Path, help="saved by benchmarks/random_models.py")
    add("--backend", choices=[backend.name for backend in Backend], default="transformers")
    add("--four-bit", action="store_true")
    add("--base-precision", choices=[choice.name for choice in BasePrecision], default="dtype")
    add("--checkpointing", action="store_true")
    add("--rank", type=int, default=16)
    add("--cards", type=_words, default=("10", "12", "16", "24"), help="gigabytes")
    add("--side", type=int, help="of the largest picture in pixels; 512, for tiny 128")
    add("--warm-up", type=int, default=3, help="steps")
    add("--steps", type=int, default=12, help="steps that are timed")
    add("--curve-steps", type=int, default=40)
    add("--new-tokens", type=int, default=8)
    add("--num-questions", type=int, default=2248)
    add("--attempts", type=int, default=2, help="starts of the command per backend")
    add("--pictures", type=_words, default=PICTURES)
    add("--training", type=_words, default=_words("plain:2,plain:8,fused:8"))
    add("--curves", type=_words, default=_words("plain:8,plain:2,plain:4,fused:8"),
        help="of `curve` and `gradients`; the first is the reference")  # fmt: skip
    add("--answering", type=_words, default=_words(ANSWERING),
        help="kernels:decoding:batch[:limit]")  # fmt: skip
    add("--backends", type=_words, default=_words("transformers,unsloth"))
    return parser


if __name__ == "__main__":
    main()
