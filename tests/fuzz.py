"""Seeded nonsense for every reader of outside input: only the project's own errors may come out.

    python -m tests.fuzz --cases 100000              all readers in turn, on one core
    python -m tests.fuzz --cases 1 --first 4711      one case again

A case is named by its number alone: reader, seed and mutation follow from it. The exit code is 1
if any other exception came out; the numbers and tracebacks are printed.
"""

import argparse
import io
import json
import logging
import os
import random
import shutil
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

from medvqa.config.compose import register, resolved
from medvqa.config.data import SourceConfig
from medvqa.config.errors import MISTAKES, UserError
from medvqa.config.evaluation import BertScoreConfig, EvaluationConfig
from medvqa.config.schema import Config
from medvqa.config.typed import typed, typed_group
from medvqa.data.image import ImageBytes, check_decodes, image_size, load_rgb
from medvqa.data.nifti import image_file
from medvqa.data.pool import load_pool
from medvqa.data.storage.files import named_images
from medvqa.evaluation.predictions import read_predictions
from medvqa.evaluation.score import score_predictions
from medvqa.serve.agents import without_half_surrogates
from medvqa.serve.errors import RequestError, ToolError
from medvqa.serve.intake import Intake, Limits
from medvqa.serve.protocol import read_request
from medvqa.sweep.status import read_rows
from medvqa.tracking.record import read_lines, read_run
from tests.nonsense import as_bytes, as_json, damaged, encoded_pictures, mutated, odd

ROW = {"question": "Is it a CT?", "answer": "yes", "image": "a.png", "id": "r", "difficulty": 1}
COLUMNS = {"image": "image", "question": "question", "answer": ["answer"], "id": "id"}


def rows(rng: random.Random, folder: Path) -> None:
    """Load a table or a JSONL file with one odd row among good ones."""
    (folder / "a.png").write_bytes(encoded_pictures()[0])
    good = [{**ROW, "id": f"r{n}"} for n in range(2)]
    name = rng.choice(("table", "jsonl"))
    odd_row = mutated({**ROW, "options": ["yes", "no"]} if rng.random() < 0.3 else ROW, rng)
    suffix = rng.choice((".jsonl", ".json", ".csv", ".tsv")) if name == "table" else ".jsonl"
    content = [*good, odd_row]
    if suffix == ".jsonl":
        text = "\n".join(map(as_json, content))
    elif suffix == ".json":
        text = as_json(rng.choice((content, {"rows": content}, dict(enumerate(content)))))
    else:
        cells = [row if isinstance(row, dict) else {} for row in content]
        lines = [",".join(ROW), *(",".join(str(c.get(k, "")) for k in ROW) for c in cells)]
        text = "\n".join(lines)
    (folder / f"train{suffix}").write_bytes(as_bytes(text, rng))
    settings: dict[str, Any] = {"max_bad_rows": rng.choice((0, 1, 9))}
    if name == "table" and rng.random() < 0.5:
        settings["columns"] = mutated(COLUMNS, rng)
        settings["difficulty"] = rng.choice((None, "difficulty", "answer", "x.y"))
    path = folder if rng.random() < 0.5 else folder / f"train{suffix}"
    source = {"name": name, "path": str(path), "split": "train", **settings}
    load_pool(typed_group(SourceConfig, source), seed=0)


def pictures(rng: random.Random, folder: Path) -> None:
    """Decode a damaged picture in each way that the project does, or what is no file at all."""
    read = rng.choice((load_rgb, check_decodes, image_size))
    if rng.random() < 0.9:
        read(ImageBytes("picture", damaged(rng.choice(encoded_pictures()), rng)))
        return
    (folder / "folder.png").mkdir()
    (folder / "loop.png").symlink_to("loop.png")
    os.mkfifo(folder / "pipe.png")
    (folder / "scan.nii").write_bytes(damaged(b"\x5c\x01\0\0" + b"\0" * 344 + b"n+1\0", rng))
    names = ("folder.png", "loop.png", "pipe.png", "scan.nii#0", "scan.nii", "/dev/zero")
    read(image_file(folder / rng.choice((*names, str(odd(rng))))))


def archives(rng: random.Random, folder: Path) -> None:
    """Read the pictures of a damaged or unusual ZIP file."""
    buffer = io.BytesIO()
    method = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA))
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name in ("imgs/a.png", "b.png", str(odd(rng)) if rng.random() < 0.3 else "c/d.png"):
            name = name.encode("utf-8", "replace").decode().replace("\0", "") or "x"
            archive.writestr(name, encoded_pictures()[0])
    data = bytearray(damaged(buffer.getvalue(), rng))
    if rng.random() < 0.3:  # flags and method of the first member in the directory
        place = max(data.find(b"PK\1\2"), 0)
        data[place + 8 : place + 12] = bytes((rng.randrange(256), 0, rng.randrange(256), 0))
    (folder / "imgs.zip").write_bytes(data)
    for image in named_images(folder / "imgs").values():
        image.read()


@cache
def default_config() -> dict[str, Any]:
    """Return the config of a run without overrides, as plain values."""
    return resolved(composed([]))


def composed(overrides: list[str]) -> Any:
    """Return what Hydra makes of the overrides."""
    from hydra import compose, initialize_config_dir

    register()
    conf = Path(__file__).parents[1] / "conf"
    try:
        with initialize_config_dir(version_base="1.3", config_dir=str(conf)):
            return compose("config", overrides)
    except OverflowError as error:  # which the command line turns into one line
        raise UserError("a number of too many digits") from error


def config(rng: random.Random, folder: Path) -> None:
    """Type one group with an odd value; at times a whole config or an override, which is slow."""
    values, schemas = default_config(), get_type_hints(Config)
    groups = [name for name in sorted(values) if is_dataclass(schemas[name])]
    group = rng.choice(groups if rng.random() < 0.95 else sorted(values))
    changed = mutated(values[group], rng)
    if group in groups and isinstance(changed, dict) and rng.random() < 0.97:
        typed_group(schemas[group], changed)
    elif rng.random() < 0.9:
        typed({**values, group: changed}, runs_here=False)
    else:
        key = rng.choice(sorted(changed)) if isinstance(changed, dict) and changed else "x"
        typed(resolved(composed([f"{group}.{key}={odd(rng)}"])), runs_here=False)


ANSWER = {
    **{"id": "1", "question": "q", "prediction": "no", "references": ["yes"]},
    **{"answer_type": "closed", "source": "s", "split": "test", "cluster": "c"},
}


def scores(rng: random.Random, folder: Path) -> None:
    """Read a predictions file with an odd row, and score it."""
    suffix = rng.choice((".jsonl", ".jsonl", ".json", ".csv"))
    answers = [ANSWER, mutated(ANSWER, rng)]
    text = as_json(answers) if suffix == ".json" else "\n".join(map(as_json, answers))
    if suffix == ".csv":
        cells = [row if isinstance(row, dict) else {} for row in answers]
        lines = [",".join(ANSWER), *(",".join(str(c.get(k, "")) for k in ANSWER) for c in cells)]
        text = "\n".join(lines)
    if rng.random() < 0.02:
        text += "\n" + "[" * 100_000
    path = folder / f"predictions{suffix}"
    path.write_bytes(as_bytes(text, rng))
    predictions = read_predictions(path).predictions
    settings = EvaluationConfig(bertscore=BertScoreConfig(enabled=False))
    score_predictions(predictions, settings, device="cpu")


BODY = {
    "model": "m",
    "messages": [{"role": "user", "content": [{"type": "text", "text": "What is it?"}]}],
    **{"stream": False, "max_tokens": 9, "stream_options": {"include_usage": True}},
}


def bodies(rng: random.Random, folder: Path) -> None:
    """Read a server's request with an odd field or a damaged picture."""
    import base64

    body = json.loads(as_json(BODY))
    if rng.random() < 0.5:
        data = base64.b64encode(damaged(rng.choice(encoded_pictures()), rng)).decode()
        url = {"url": f"data:image/png;base64,{data}"}
        body["messages"][0]["content"].append({"type": "image_url", "image_url": url})
    text = as_json(mutated(body, rng) if rng.random() < 0.8 else body)
    if rng.random() < 0.01:
        text = "[" * 100_000
    lenient = rng.random() < 0.5
    data = as_bytes(text, rng)
    read_request(data, model="m", intake=Intake([], Limits()), is_lenient=lenient)


def tool(rng: random.Random, folder: Path) -> None:
    """Give the agent's tool odd queries and references; clean a line of its wire."""
    (folder / "a.png").write_bytes(damaged(rng.choice(encoded_pictures()), rng))
    (folder / "loop.png").symlink_to("loop.png")
    os.mkfifo(folder / "pipe.png")
    images = rng.choice((["a.png"], ["a.png", odd(rng)], odd(rng)))
    without_half_surrogates(as_bytes(as_json({"query": odd(rng)}), rng))
    for image in Intake([folder], Limits()).accept(rng.choice(("q?", odd(rng))), images).images:
        image.load_rgb()


RUN = {"state": "finished", "run_id": "i", "config": {"seed": 1}, "results": {"test": {"em": 1.0}}}
CELL = {"number": 0, "overrides": ["a=1"], "name": "a=1", "directory": "cell", "run_id": "i"}


def records(rng: random.Random, folder: Path) -> None:
    """Read the damaged files of a run and of a grid."""
    grid = {"jobs": [CELL], "arguments": ["-m"], "working_directory": "/"}
    cell = folder / "cell"
    cell.mkdir()
    files = {
        **{folder / "sweep.json": grid, cell / "run.json": RUN},
        **{cell / "status.json": {"state": "running"}, cell / "metrics.jsonl": {"step": 1}},
    }
    for path, values in files.items():
        path.write_bytes(as_bytes(as_json(mutated(values, rng)), rng))
    read_rows(folder)
    read_run(cell)
    read_lines(cell / "metrics.jsonl")


# What each reader may raise: the errors that end as one line, a 400, or a typed tool error.
READERS: dict[Callable[[random.Random, Path], None], tuple[type[BaseException], ...]] = {
    **{rows: MISTAKES, pictures: (UserError,), archives: (UserError,), config: MISTAKES},
    **{
        scores: (UserError,),
        bodies: (RequestError, ToolError),
        tool: (ToolError,),
        records: (UserError,),
    },
}


def fuzz(first: int, num_cases: int, place: Path) -> tuple[Counter[str], dict[int, str]]:
    """Run the cases; return outcomes by reader, and the tracebacks of what must not come out."""
    outcomes: Counter[str] = Counter()
    faults: dict[int, str] = {}
    readers = list(READERS.items())
    for number in range(first, first + num_cases):
        reader, expected = readers[number % len(readers)]
        folder = place / str(number)
        folder.mkdir()
        try:
            reader(random.Random(number), folder)
            outcomes[f"{reader.__name__} accepted"] += 1
        except expected as error:
            outcomes[f"{reader.__name__} refused"] += 1
            if isinstance(error, UserError) and "\n" in str(error):
                faults[number] = f"{reader.__name__}: a message of several lines: {error}"
        except Exception:  # the very faults that are looked for
            faults[number] = f"{reader.__name__}: {traceback.format_exc()}"
        shutil.rmtree(folder)
    return outcomes, faults


def main() -> int:
    """Run the cases and print outcomes and faults."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    options = parser.parse_args()
    started = time.monotonic()
    logging.disable()  # a line per skipped row
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as place:
        os.environ["HF_HOME"] = f"{place}/hub"  # readers remember large files there
        outcomes, faults = fuzz(options.first, options.cases, Path(place))
    for number, fault in list(faults.items())[:60]:
        sys.stdout.write(f"case {number}: {fault}\n")
    for name, count in sorted(outcomes.items()):
        sys.stdout.write(f"{name:20} {count:>9,}\n")
    seconds = time.monotonic() - started
    sys.stdout.write(f"{options.cases:,} cases in {seconds:.0f} s; {len(faults)} faults\n")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
