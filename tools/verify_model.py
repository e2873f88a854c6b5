"""Train, answer, export and serve with one model, and record what really ran.

    python -m tools.verify_model gemma3_4b                  # real weights, from the hub
    python -m tools.verify_model gemma3_4b --path DIR       # real weights, a local copy
    python -m tools.verify_model gemma3_4b --tiny ../shared # tiny random weights, on a CPU

NAME is a file of conf/model. The run trains for 10 steps on phantoms and answers 64 questions. The
adapter is exported, and the model is served in process. The served answers must equal the
evaluator's. The record goes to benchmarks/results/models.json; the printed row belongs to
docs/models.md.
"""

import argparse
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medvqa.data.example import Example

ROOT = Path(__file__).parents[1]
RECORDS = ROOT / "benchmarks" / "results" / "models.json"
STEPS, ANSWERS = 10, 64
# Presets by the family of `tests/tiny_models.py` that has their architecture.
FAMILY = {
    "qwen2_5_vl_7b": "qwen2_5_vl",
    "qwen2_5_vl_3b": "qwen2_5_vl",
    "lingshu_7b": "qwen2_5_vl",
    "qwen3_vl_4b": "qwen3_vl",
    "qwen3_vl_32b": "qwen3_vl",
    "qwen3_5_9b": "qwen3_5",
    "gemma3_4b": "gemma3",
    "medgemma_4b": "gemma3",
    "internvl3_8b": "internvl",
    "smolvlm2_2b": "smolvlm",
    "smolvlm2_500m": "smolvlm",
    "llava_onevision_7b": "llava_onevision",
}
COLUMNS = ("trained", "answered", "4 bits", "fused", "exported", "served")
KINDS = {"tiny": "tiny weights, CPU", "real": "real weights"}


def verify(name: str, overrides: Sequence[str], directory: Path) -> dict[str, Any]:
    """Return the record of a run with these overrides; each column says what was done."""
    from medvqa.config.compose import compose_cells, resolved
    from medvqa.config.typed import typed
    from medvqa.data.pool import load_sets
    from medvqa.export.command import ExportOptions, export
    from medvqa.run import ProcessState, run
    from medvqa.tracking.record import read_json

    ((_, config),) = compose_cells(overrides, is_sweep=False)
    values = resolved(config)
    settings = {"config": values, "overrides": list(overrides), "run_id": name}
    place = directory / "run"
    run(typed(values), place, settings, ProcessState())
    record = read_json(place / "run.json")
    export(ExportOptions(run=place, target=directory / "adapter"))
    are_equal = served_as_evaluated(place, load_sets(typed(values).data)["test"].examples)
    model, training = record["model"], record["training"]
    return {
        "trained": f"{training['num_steps']} steps",
        "answered": f"{len(are_equal)} questions",
        "4 bits": "yes" if model["is_quantized"] else "no",
        "fused": "yes" if training["engine"] == "fused" else "no",
        "exported": "adapter",
        "served": f"{sum(are_equal)} of {len(are_equal)} equal",
        "architecture": model["architecture"],
        "device": model["device"],
        "peak_gpu_bytes": record.get("peak_gpu_bytes"),
        "code": record.get("code"),
    }


def served_as_evaluated(run: Path, examples: Sequence["Example"]) -> list[bool]:
    """Return for each question whether the served model answers as the evaluator did."""
    from medvqa.data.image import ImageBytes
    from medvqa.serve.answering import Answerer
    from medvqa.serve.intake import Question
    from medvqa.tracking.record import read_lines

    questions = [
        Question(text=e.question, images=tuple(ImageBytes(i.name, i.read()) for i in e.images))
        for e in examples
    ]
    served = Answerer.of_run(run).answer(questions)
    path = run / "evaluation" / "final" / "test" / "predictions.jsonl"
    evaluated = {row["id"]: row["prediction"] for row in read_lines(path)}
    return [evaluated[e.id] == answer.text for e, answer in zip(examples, served, strict=True)]


def overrides_of(name: str, base: Path | None, *, is_tiny: bool) -> list[str]:
    """Return the overrides of the run that is verified."""
    from medvqa.fast.choice import FAMILIES as FUSED

    model = [f"model={name}", *([f"model.path={base}"] if base else [])]
    if is_tiny:
        model = ["model=hub", f"model.name={base}"]
        engine = "fused" if FAMILY[name] in FUSED else "auto"
        model += [f"training.engine={engine}"]
    return [
        *model,
        *(f"training.max_steps={STEPS}", f"data.evaluation.test.limit={ANSWERS}"),
        *("data.limit=160", "evaluation.zero_shot=false", "evaluation.after_each_stage=false"),
        *("evaluation.bertscore.enabled=false", "tracking=disabled"),
        f"evaluation.max_new_tokens={8 if is_tiny else 32}",
    ]


def row_of(name: str, kind: str, record: Mapping[str, Any]) -> str:
    """Return the model's row of the table in docs/models.md."""
    cells = [f"`{name}`", KINDS[kind], *(record[column] for column in COLUMNS)]
    return f"| {' | '.join(cells)} |"


def main(argv: Sequence[str] | None = None) -> None:
    """Verify one model after the other, keep the record and print the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", nargs="+", choices=FAMILY, metavar="NAME")
    parser.add_argument("--path", type=Path, help="local copy of the real weights")
    parser.add_argument("--tiny", type=Path, metavar="SHARED", help="tiny weights instead")
    options = parser.parse_args(argv)
    records = json.loads(RECORDS.read_text()) if RECORDS.is_file() else {}
    kind = "tiny" if options.tiny else "real"
    for name in options.name:
        with tempfile.TemporaryDirectory() as directory:
            base = options.path
            if options.tiny:
                from tests.tiny_models import save_tiny

                base = Path(directory) / "base"
                save_tiny(FAMILY[name], base, options.tiny)
            overrides = overrides_of(name, base, is_tiny=bool(options.tiny))
            record = verify(name, overrides, Path(directory))
        # Tiny weights are those of an architecture, which several presets share.
        names = [n for n in FAMILY if FAMILY[n] == FAMILY[name]] if options.tiny else [name]
        records.setdefault(kind, {}).update(dict.fromkeys(names, record))
        RECORDS.write_text(json.dumps(records, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        print(row_of(name, kind, record))  # noqa: T201


if __name__ == "__main__":
    main()
