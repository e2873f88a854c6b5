"""Training and answering rates beside those of other libraries, on the same pictures and machine.

    python -m benchmarks.peers RESULTS.json --model DIR --work DIR [--cases NAME ...] [--table]

Every case is a process of its own. Ours is the command `train.py`; a peer is the script that its
user would write (`sft.py`, `answer.py`). All read the same questions about 512 x 512 pictures of
noise. DIR holds a model in the hub's layout, such as `benchmarks/random_models.py` writes: speed
and memory are then real, answers are not. Each case is written when it ends; `--table` prints the
rows of RESULTS.json as Markdown.
"""

import argparse
import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from medvqa.models.prompt import INSTRUCTION
from medvqa.tracking.environment import provenance
from medvqa.tracking.record import read_json, read_lines, write_json

ROOT = Path(__file__).resolve().parents[2]
PEERS = ROOT / "benchmarks" / "peers"
BATCH_SIZE = 8
QUESTIONS_PER_PICTURE = 7  # as in VQA-RAD; of the questions that are answered
TRAINING = {
    "ours": ["model.load_in_4bit=false"],
    "ours fp8": ["model.load_in_4bit=false", "model.base_precision=fp8"],
    "ours 4 bits": ["model.load_in_4bit=true"],
    "ours 4 bits, lean": [
        "model.load_in_4bit=true",
        "training.gradient_checkpointing=true",
    ],
    "ours through TRL": ["model.load_in_4bit=false", "training.trainer=trl"],
    "unsloth 2 x 4, its checkpointing": ["unsloth", "2", "4", "--checkpointing"],
    "unsloth 8 x 1": ["unsloth", "8", "1"],
    "unsloth 8 x 1, 4 bits": ["unsloth", "8", "1", "--four-bit"],
    "trl 8 x 1": ["trl", "8", "1"],
    "trl 8 x 1, 4 bits": ["trl", "8", "1", "--four-bit"],
}
ANSWERING = ("answers: ours", "answers: transformers", "answers: unsloth")


def write_questions(place: Path, number: int, *, per_picture: int, side: int) -> Path:
    """Write questions about noise as JSON Lines with PNG files; return the file."""
    import numpy as np
    from PIL import Image

    place.mkdir(parents=True, exist_ok=True)
    rows = []
    for index in range(number):
        name = f"{index // per_picture}.png"
        if index % per_picture == 0:
            rng = np.random.default_rng(index)
            buffer = io.BytesIO()
            pixels = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(buffer, "PNG", compress_level=0)
            (place / name).write_bytes(buffer.getvalue())
        question = f"Is there an abnormality in region {index} of this picture?"
        rows.append(
            {"id": str(index), "image": name, "question": question, "answer": "yes, on the left"}
        )
    prompts = [{**row, "question": f"{row['question']}\n{INSTRUCTION}"} for row in rows]
    # The peers' scripts know no instruction: their questions carry ours, for equal tokens.
    for name, lines in (("train", rows), ("test", rows), ("prompts", prompts)):
        text = "".join(json.dumps(row) + "\n" for row in lines)
        (place / f"{name}.jsonl").write_text(text, encoding="utf-8")
    return place / "prompts.jsonl"


def ours_training(options: argparse.Namespace, questions: Path, extra: list[str]) -> dict[str, Any]:
    """Run `train.py` on the questions and return its rate after the warm-up."""
    num_steps = options.warm_up + options.steps
    directory = options.work / f"run-{time.time_ns()}"
    run_train(options, questions, directory, [f"training.max_steps={num_steps}", *extra])
    rows = read_lines(directory / "metrics.jsonl")[options.warm_up :]
    record = read_json(directory / "run.json")
    seconds = sum(row["seconds"] for row in rows)
    num_samples = BATCH_SIZE * len(rows)
    return {
        "samples_per_second": round(num_samples / seconds, 2),
        "tokens_per_sample": round(sum(row["num_tokens"] for row in rows) / num_samples, 1),
        "num_steps": len(rows),
        "peak_gpu_gb": record["peak_gpu_bytes"] and round(record["peak_gpu_bytes"] / 1e9, 1),
        "engine": record["training"]["engine"],
    }


def ours_answering(options: argparse.Namespace, questions: Path) -> dict[str, Any]:
    """Run `train.py` for one step; return the seconds per question of its two evaluations."""
    directory = options.work / f"run-{time.time_ns()}"
    extra = ["training.max_steps=1", "training.warmup_steps=0", "evaluation.zero_shot=true"]
    extra += ["evaluation.batch_size=128", "model.load_in_4bit=false"]
    run_train(options, questions, directory, extra, num_questions=options.num_questions)
    record = read_json(directory / "run.json")
    answers = read_lines(directory / "evaluation" / "final" / "test" / "predictions.jsonl")
    seconds = record["evaluation_seconds"]["zero_shot"]  # every picture is new
    return {
        "seconds_per_question": round(seconds / len(answers), 5),
        "num_questions": len(answers),
        "batch_size": 128,
        "peak_gpu_gb": record["peak_gpu_bytes"] and round(record["peak_gpu_bytes"] / 1e9, 1),
    }


def run_train(
    options: argparse.Namespace,
    questions: Path,
    directory: Path,
    extra: list[str],
    num_questions: int = 1,
) -> None:
    """Run the command as a user would; its output goes to a log beside the run."""
    command = [
        *(sys.executable, str(ROOT / "train.py"), f"model={options.preset}"),
        *(f"model.path='{options.model}'", "data=jsonl", f"data.path='{questions.parent}'"),
        *(f"data.evaluation.test.limit={num_questions}", "contamination=report"),
        *("curriculum=whole_pool", "training.micro_batch_size=8", "training.accumulation_steps=1"),
        *("training.optimizer=adamw", "evaluation.max_new_tokens=8", "evaluation.zero_shot=false"),
        *("evaluation.bertscore.enabled=false", "tracking=disabled"),
        *("evaluation.after_each_stage=false", f"hydra.run.dir='{directory}'", *extra),
    ]
    call(command, directory.with_suffix(".log"), options.limit_s)


def peer(options: argparse.Namespace, script: str, arguments: list[str]) -> dict[str, Any]:
    """Run a peer's script and return what it wrote."""
    out = options.work / f"peer-{time.time_ns()}.json"
    command = [sys.executable, str(PEERS / script), *arguments, "--out", str(out)]
    call(command, out.with_suffix(".log"), options.limit_s)
    return read_json(out)


def call(command: list[str], log: Path, limit_s: float) -> None:
    """Run a command; on failure raise with the end of its output."""
    with log.open("wb") as output:
        try:
            code = subprocess.run(
                command,
                stdout=output,
                stderr=output,
                check=False,
                timeout=limit_s,
                cwd=log.parent,
                env={**os.environ, "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"},
            ).returncode
        except subprocess.TimeoutExpired:
            code = 124
    if code != 0:
        text = log.read_text(encoding="utf-8", errors="replace")[-1500:]
        raise RuntimeError(f"exit code {code}\n{text}")


def measure(
    options: argparse.Namespace, name: str, questions: Path, prompts: Path
) -> dict[str, Any]:
    """Measure one case."""
    if name == "answers: ours":
        return ours_answering(options, prompts)
    if name in ANSWERING:
        limit = ["--limit", str(options.num_questions)]
        library = name.removeprefix("answers: ")
        return peer(options, "answer.py", [library, str(options.model), str(prompts), *limit])
    arguments = TRAINING[name]
    if name.startswith("ours"):
        return ours_training(options, questions, arguments)
    library, micro_batch, accumulation, *flags = arguments
    lengths = ["--steps", str(options.steps), "--warm-up", str(options.warm_up)]
    batch = ["--micro-batch", micro_batch, "--accumulation", accumulation]
    optimizer = ["--optimizer", options.peer_optimizer]
    place = [library, str(options.model), str(questions)]
    return peer(options, "sft.py", [*place, *batch, *lengths, *optimizer, *flags])


def table(path: Path) -> str:
    """Return the rows as two Markdown tables."""
    rows = read_json(path)["rows"]
    lines = ["| training | samples/s | tokens/sample | peak GB | steps |", "|---|---|---|---|---|"]
    lines += [
        f"| {name} | {row['samples_per_second']} | {row['tokens_per_sample']} "
        f"| {row['peak_gpu_gb']} | {row['num_steps']} |"
        for name, row in rows.items()
        if "samples_per_second" in row
    ]
    lines += [
        "",
        "| answering | s/question | questions | batch | peak GB |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {name.removeprefix('answers: ')} | {row['seconds_per_question']} "
        f"| {row['num_questions']} | {row['batch_size']} | {row['peak_gpu_gb']} |"
        for name, row in rows.items()
        if "seconds_per_question" in row
    ]
    return "\n".join(lines)


def parse() -> argparse.Namespace:
    """Return the options of the command line."""
    cases = (*TRAINING, *ANSWERING)
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", type=Path)
    parser.add_argument("--model", type=Path, help="directory in the hub's layout")
    parser.add_argument("--preset", default="qwen3_vl_8b", help="its name in conf/model")
    parser.add_argument("--work", type=Path, default=Path("/tmp/peers"))
    parser.add_argument("--cases", nargs="*", choices=cases, default=cases, metavar="NAME",
                        help="; ".join(cases))  # fmt: skip
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--warm-up", type=int, default=10)
    parser.add_argument("--num-questions", type=int, default=448)
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--peer-optimizer", default="adamw_8bit")
    parser.add_argument("--limit-s", type=float, default=240)
    parser.add_argument("--table", action="store_true")
    return parser.parse_args()


def main() -> None:
    """Measure the cases and write each when it ends."""
    options = parse()
    if options.table:
        print(table(options.results))  # noqa: T201
        return
    num_samples = BATCH_SIZE * (options.warm_up + options.steps)
    questions = write_questions(
        options.work / "train", num_samples, per_picture=1, side=options.side
    )
    prompts = write_questions(
        options.work / "ask",
        options.num_questions,
        per_picture=QUESTIONS_PER_PICTURE,
        side=options.side,
    )
    values = {"rows": {}, **read_json(options.results), **provenance()}
    for name in options.cases:
        started = time.monotonic()
        try:
            row = measure(options, name, questions, prompts)
        except RuntimeError as error:
            row = {"failed": str(error)}
        row["wall_s"] = round(time.monotonic() - started, 1)
        values["rows"][name] = row
        write_json(options.results, values)
        print(name, {k: v for k, v in row.items() if k != "answers"}, flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
