"""Training and answering rates beside those of other libraries, on the same pictures and machine.

    python -m benchmarks.peers RESULTS.json --model DIR --work DIR [--cases NAME ...]

Every case is a process of its own. Ours is the command `train.py`; a peer is the script that its
user would write (`script.py`). All read the same questions about 512 x 512 pictures of
noise. DIR holds a model in the hub's layout, such as `benchmarks/random_models.py` writes: speed
and memory are then real, answers are not. Each case is written when it ends.
"""

import argparse
import json
from itertools import islice
from pathlib import Path

from benchmarks.engine.workload import BATCH_SIZE, noise
from benchmarks.runs import (
    BARE,
    ROOT,
    FailedCommandError,
    Row,
    Run,
    add_row,
    call,
    new_directory,
    parser_of,
    train,
)
from medvqa.config.prompt import QUESTION, PromptConfig
from medvqa.tracking.record import read_json

SCRIPT = ROOT / "benchmarks" / "peers" / "script.py"
QUESTIONS_PER_PICTURE = 7  # as in VQA-RAD; of the questions that are answered
OURS = {
    "ours": ["model.load_in_4bit=false"],
    "ours fp8": ["model.load_in_4bit=false", "model.base_precision=fp8"],
    "ours 4 bits": ["model.load_in_4bit=true"],
    "ours 4 bits, lean": ["model.load_in_4bit=true", "training.gradient_checkpointing=true"],
    "ours, backend=unsloth": ["model.load_in_4bit=false", "model.backend=unsloth"],
    "ours through TRL": ["model.load_in_4bit=false", "training.trainer=trl"],
}
# Library, micro-batch and accumulation, options of script.py.
THEIRS = {
    "unsloth 2 x 4, its checkpointing": ("unsloth", 2, 4, "--checkpointing"),
    "unsloth 8 x 1": ("unsloth", 8, 1),
    "unsloth 8 x 1, 4 bits": ("unsloth", 8, 1, "--four-bit"),
    "unsloth 8 x 1, 4 bits, lean": ("unsloth", 8, 1, "--four-bit", "--checkpointing"),
    "trl 8 x 1": ("trl", 8, 1),
}
STARTS = {"start: transformers": "transformers", "start: unsloth": "unsloth"}  # our backends
ANSWERING = ("answers: ours", "answers: transformers", "answers: unsloth")


def write_questions(place: Path, number: int, *, per_picture: int, side: int) -> Path:
    """Write questions about noise as JSON Lines with PNG files; return the peers' file."""
    place.mkdir(parents=True, exist_ok=True)
    for index, picture in enumerate(islice(noise(side), -(-number // per_picture))):
        (place / f"{index}.png").write_bytes(picture.read())
    rows = [
        {
            "id": str(index),
            "image": f"{index // per_picture}.png",
            "question": f"Is there an abnormality in region {index} of this picture?",
            "answer": "yes, on the left",
        }
        for index in range(number)
    ]
    instruction = PromptConfig().text.partition(QUESTION)[2].strip()
    prompts = [{**row, "question": f"{row['question']}\n{instruction}"} for row in rows]
    # The peers' scripts know no instruction: their questions carry ours, for equal tokens.
    for name, lines in (("train", rows), ("test", rows), ("prompts", prompts)):
        text = "".join(json.dumps(row) + "\n" for row in lines)
        (place / f"{name}.jsonl").write_text(text, encoding="utf-8")
    return place / "prompts.jsonl"


def ours(options: argparse.Namespace, questions: Path, num_questions: int, *extra: str) -> Run:
    """Run `train.py` as a user would."""
    return train(
        new_directory(options.work, "run"),
        *(f"model={options.preset}", f"model.path='{options.model}'", "data=jsonl"),
        *(f"data.path='{questions.parent}'", f"data.evaluation.test.limit={num_questions}"),
        *("contamination=report", "curriculum=whole_pool", "training.micro_batch_size=8"),
        *("training.accumulation_steps=1", "training.optimizer=adamw", *BARE),
        *("evaluation.max_new_tokens=8", *extra),
        limit_s=options.limit_s,
    )


def answered(run: Run) -> Row:
    """Return the seconds per question before training, when every picture is new."""
    num_questions = len(run.predictions("final"))
    seconds, peak = run.record["evaluation_seconds"]["zero_shot"], run.record["peak_gpu_bytes"]
    return {
        "seconds_per_question": round(seconds / num_questions, 5),
        "num_questions": num_questions,
        "batch_size": 128,
        "peak_gpu_gb": peak and round(peak / 1e9, 1),
    }


def start(run: Run) -> Row:
    """Return when the only step had ended, and what came before."""
    phases, (step,) = run.record["seconds"], run.steps
    counted = phases["data"] + phases["contamination"] + phases["load"] + step["seconds"]
    return {
        "first_step_ended_s": round(run.first_step_s, 2),
        "whole_command_s": round(run.wall_s, 2),
        "step_s": round(step["seconds"], 2),
        "outside_s": round(run.first_step_s - counted, 2),  # the interpreter, imports, Hydra
        "phases": {name: round(value, 2) for name, value in phases.items()},
    }


def theirs(options: argparse.Namespace, what: str, library: str, *arguments: object) -> Row:
    """Run a peer's script and return what it wrote."""
    out = new_directory(options.work, "peer").with_suffix(".json")
    command = [str(SCRIPT), what, library, str(options.model), *map(str, arguments)]
    call([*command, "--out", str(out)], out.with_suffix(".log"), limit_s=options.limit_s)
    return read_json(out)


def measure(options: argparse.Namespace, name: str, questions: Path, prompts: Path) -> Row:
    """Measure one case."""
    once = ["training.max_steps=1", "training.warmup_steps=0", "model.load_in_4bit=false"]
    if name in STARTS:
        return start(ours(options, questions, 1, *once, f"model.backend={STARTS[name]}"))
    if name == "answers: ours":
        extra = [*once, "evaluation.zero_shot=true", "evaluation.batch_size=128"]
        return answered(ours(options, prompts, options.num_questions, *extra))
    if name in ANSWERING:
        library = name.removeprefix("answers: ")
        return theirs(options, "answer", library, prompts, "--limit", options.num_questions)
    if name in OURS:
        steps = f"training.max_steps={options.warm_up + options.steps}"
        run = ours(options, questions, 1, steps, *OURS[name])
        return run.rate(options.warm_up, BATCH_SIZE)
    library, micro_batch, accumulation, *flags = THEIRS[name]
    return theirs(
        *(options, "train", library, questions, "--micro-batch", micro_batch),
        *("--accumulation", accumulation, "--steps", options.steps, "--warm-up", options.warm_up),
        *("--optimizer", options.peer_optimizer, *flags),
    )


def main() -> None:
    """Measure the cases and write each when it ends."""
    cases = (*OURS, *THEIRS, *STARTS, *ANSWERING)
    parser = parser_of(__doc__)
    add = parser.add_argument
    add("results", type=Path)
    add("--model", type=Path, required=True, help="directory in the hub's layout")
    add("--preset", default="qwen3_vl_8b", help="its name in conf/model")
    add("--work", type=Path, default=Path("/tmp/peers"))
    add("--cases", nargs="*", choices=cases, default=cases, metavar="NAME", help="; ".join(cases))
    add("--steps", type=int, default=24)
    add("--warm-up", type=int, default=10)
    add("--num-questions", type=int, default=448)
    add("--side", type=int, default=512)
    add("--peer-optimizer", default="adamw_8bit")
    add("--limit-s", type=float, default=240)
    options = parser.parse_args()
    options.model, options.work = options.model.resolve(), options.work.resolve()
    num_samples = BATCH_SIZE * (options.warm_up + options.steps)
    train_at, ask_at = options.work / "train", options.work / "ask"
    questions = write_questions(train_at, num_samples, per_picture=1, side=options.side)
    prompts = write_questions(
        ask_at, options.num_questions, per_picture=QUESTIONS_PER_PICTURE, side=options.side
    )
    for name in options.cases:
        try:
            row = measure(options, name, questions, prompts)
        except FailedCommandError as error:
            row = {"failed": str(error)}
        add_row(options.results, "rows", name, row)


if __name__ == "__main__":
    main()
