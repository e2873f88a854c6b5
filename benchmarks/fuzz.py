"""Seeded nonsense for every reader of outside input: only the project's own errors may come out.

    python -m benchmarks.fuzz --cases 100000              all readers in turn, 4 minutes on one core
    python -m benchmarks.fuzz --cases 1 --first 4711      one case again

A case is named by its number alone: reader, seed and mutation follow from it. The exit code is 1
if any other exception came out; the numbers and tracebacks are printed.
"""

import argparse
import contextlib
import io
import json
import random
import string
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

from medvqa.config.compose import register, resolved, typed, typed_group
from medvqa.config.data import SourceConfig
from medvqa.config.errors import MISTAKES, UserError
from medvqa.config.evaluation import BertScoreConfig, EvaluationConfig
from medvqa.config.schema import Config
from medvqa.data.image import ImageBytes, check_decodes, image_size, load_rgb
from medvqa.data.pool import load_pool
from medvqa.evaluation.predictions import read_predictions
from medvqa.evaluation.score import score_predictions
from medvqa.serve.intake import Intake, Limits
from medvqa.serve.protocol import RequestError, read_request

ODD_TEXTS = (
    *(
        "",
        " ",
        "\0",
        "\ud83d",
        "\u2028",
        "é",
        "肺",
        "<image>",
        "<|im_end|>",
        "NaN",
        "yes",
        "A",
        "1",
    ),
    *(
        "-1",
        "1e999",
        "../../etc/passwd",
        "/dev/zero",
        "a" * 300,
        "[" * 50,
        "{}",
        "null",
        "~",
        "%00",
    ),
    *(
        "data:image/png;base64,AAAA",
        "${data}",
        "${oc.env:HOME}",
        "'",
        '"',
        "\\",
        "\n",
        "#3",
        "a.nii",
    ),
)
ODD_VALUES = (
    *(None, True, False, 0, -1, 1, 2**63, -(2**70), 1e308, float("nan"), float("inf"), 0.5),
    *([], {}, [[]], [None], {"text": None}, {"a": {"b": [1]}}, b"bytes", ["a", "b"]),
)


def odd(rng: random.Random) -> Any:
    """Return some value that a field rarely holds."""
    kind = rng.random()
    if kind < 0.45:
        return rng.choice(ODD_TEXTS)
    if kind < 0.85:
        return rng.choice(ODD_VALUES)
    return "".join(rng.choice(string.printable) for _ in range(rng.randrange(40)))


def nested(rng: random.Random) -> Any:
    """Return lists in lists, at times deeper than a parser's stack."""
    return json.loads("[" * 20 + "]" * 20) if rng.random() < 0.9 else ["deep"] * 3


def mutated(value: Any, rng: random.Random) -> Any:
    """Return a copy of plain values in which something is changed, left out or added."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        copy = dict(value)
        key = rng.choice(sorted(copy))
        action = rng.random()
        if action < 0.15:
            del copy[key]
        elif action < 0.3:
            copy[str(odd(rng))] = odd(rng)
        else:
            copy[key] = mutated(copy[key], rng)
        return copy
    if isinstance(value, list) and value and rng.random() < 0.7:
        copy_of_list = list(value)
        place = rng.randrange(len(copy_of_list))
        copy_of_list[place] = mutated(copy_of_list[place], rng)
        return copy_of_list
    return odd(rng) if rng.random() < 0.9 else nested(rng)


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Return the bytes cut, changed in a few places, or joined with themselves."""
    copy = bytearray(data)
    if rng.random() < 0.3:
        copy = copy[: rng.randrange(len(copy) + 1)]
    for _ in range(rng.randrange(4)):
        if copy:
            copy[rng.randrange(len(copy))] = rng.randrange(256)
    return bytes(copy + data if rng.random() < 0.05 else copy)


def as_json(value: Any) -> str:
    """Return JSON, with texts for what JSON has no word for."""
    return json.dumps(value, default=repr)


@cache
def encoded_pictures() -> tuple[bytes, ...]:
    """Return one small picture of each kind."""
    import numpy as np
    from PIL import Image

    noise = np.random.default_rng(0).integers(0, 255, (12, 16, 3), dtype=np.uint8)
    pictures = {
        name: Image.fromarray(noise)
        for name in ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "PPM", "MPO")
    }
    pictures["GIF"] = Image.fromarray(noise).convert("P")
    encoded = []
    for name, picture in pictures.items():
        buffer = io.BytesIO()
        picture.save(buffer, name)
        encoded.append(buffer.getvalue())
    deep = io.BytesIO()
    Image.fromarray(noise[..., 0].astype(np.uint16) * 200).save(deep, "PNG")
    return (*encoded, deep.getvalue(), b"", b"\0" * 128 + b"DICM" + b"\0" * 64)


ROW = {"question": "Is it a CT?", "answer": "yes", "image": "a.png", "id": "r", "level": 1}


def rows(rng: random.Random, folder: Path) -> None:
    """Load a table or a JSONL file with one odd row among good ones."""
    (folder / "a.png").write_bytes(encoded_pictures()[0])
    good = [{**ROW, "id": f"r{n}"} for n in range(2)]
    name = rng.choice(("table", "jsonl"))
    odd_row = mutated({**ROW, "options": ["yes", "no"]} if rng.random() < 0.3 else ROW, rng)
    suffix = rng.choice((".jsonl", ".json", ".csv")) if name == "table" else ".jsonl"
    path = folder / f"train{suffix}"
    content = [*good, odd_row]
    if suffix == ".jsonl":
        text = "\n".join(map(as_json, content)).encode()
    elif suffix == ".json":
        text = as_json(content).encode()
    else:
        cells = [row if isinstance(row, dict) else {} for row in content]
        lines = [",".join(ROW), *(",".join(str(c.get(k, "")) for k in ROW) for c in cells)]
        text = "\n".join(lines).encode("utf-8", "surrogatepass")
    path.write_bytes(damaged(text, rng) if rng.random() < 0.3 else text)
    settings: dict[str, Any] = {"max_bad_rows": rng.choice((0, 1, 9))}
    if name == "table" and rng.random() < 0.5:
        settings["columns"] = mutated({"image": "image", "question": "question"}, rng)
        settings["difficulty"] = rng.choice((None, "level", "answer", "x.y"))
    source = {"name": name, "path": str(path), "split": "train", **settings}
    load_pool(typed_group(SourceConfig, source), seed=0)


def pictures(rng: random.Random, folder: Path) -> None:
    """Decode a damaged picture in each way that the project does."""
    picture = ImageBytes("picture", damaged(rng.choice(encoded_pictures()), rng))
    rng.choice((load_rgb, check_decodes, image_size))(picture)


@cache
def default_config() -> dict[str, Any]:
    """Return the config of a run without overrides, as plain values."""
    from hydra import compose, initialize_config_dir

    register()
    conf = Path(__file__).parents[1] / "conf"
    with initialize_config_dir(version_base="1.3", config_dir=str(conf)):
        return resolved(compose("config", []))


def config(rng: random.Random, folder: Path) -> None:
    """Type one group with an odd value, or a whole config, which takes seven times as long."""
    values = dict(default_config())
    group = rng.choice(sorted(values))
    schema, changed = get_type_hints(Config)[group], mutated(values[group], rng)
    if is_dataclass(schema) and isinstance(changed, dict) and rng.random() < 0.8:
        typed_group(schema, changed)
    else:
        typed({**values, group: changed}, runs_here=False)


ANSWER = {
    **{"id": "1", "question": "q", "prediction": "no", "references": ["yes"]},
    **{"answer_type": "closed", "source": "s", "split": "test", "cluster": "c"},
}


def scores(rng: random.Random, folder: Path) -> None:
    """Read a predictions file with an odd row, and score it."""
    lines = [as_json(ANSWER), as_json(mutated(ANSWER, rng))]
    if rng.random() < 0.02:
        lines.append("[" * 100_000)
    text = "\n".join(lines).encode()
    path = folder / "predictions.jsonl"
    path.write_bytes(damaged(text, rng) if rng.random() < 0.2 else text)
    predictions = read_predictions(path).predictions
    settings = EvaluationConfig(bertscore=BertScoreConfig(enabled=False))
    score_predictions(predictions, settings, device="cpu")


BODY = {
    "model": "m",
    "messages": [{"role": "user", "content": [{"type": "text", "text": "What is it?"}]}],
    "stream": False,
    "max_tokens": 9,
}


def bodies(rng: random.Random, folder: Path) -> None:
    """Read a server's request with an odd field or a damaged picture."""
    import base64

    body = json.loads(as_json(BODY))
    if rng.random() < 0.5:
        data = base64.b64encode(damaged(rng.choice(encoded_pictures()), rng)).decode()
        url = {"url": f"data:image/png;base64,{data}"}
        body["messages"][0]["content"].append({"type": "image_url", "image_url": url})
    text = as_json(mutated(body, rng) if rng.random() < 0.8 else body).encode()
    text = damaged(text, rng) if rng.random() < 0.2 else text
    if rng.random() < 0.01:
        text = b"[" * 100_000
    read_request(text, model="m", intake=Intake([], Limits()))


# What each reader may raise: the errors that end as one line, a 400, or a typed tool error.
READERS: dict[Callable[[random.Random, Path], None], tuple[type[BaseException], ...]] = {
    rows: MISTAKES,
    pictures: (UserError,),
    config: MISTAKES,
    scores: (UserError,),
    bodies: (RequestError,),
}


def fuzz(first: int, num_cases: int, folder: Path) -> tuple[Counter[str], dict[int, str]]:
    """Run the cases; return outcomes by reader, and the tracebacks of what must not come out."""
    outcomes: Counter[str] = Counter()
    faults: dict[int, str] = {}
    readers = list(READERS.items())
    for number in range(first, first + num_cases):
        reader, expected = readers[number % len(readers)]
        try:
            reader(random.Random(number), folder)
            outcomes[f"{reader.__name__} accepted"] += 1
        except expected as error:
            outcomes[f"{reader.__name__} refused"] += 1
            if isinstance(error, UserError) and "\n" in str(error):
                faults[number] = f"{reader.__name__}: a message of several lines: {error}"
        except Exception:  # the very faults that are looked for
            faults[number] = f"{reader.__name__}: {traceback.format_exc()}"
        for path in folder.iterdir():
            path.unlink()
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
    with tempfile.TemporaryDirectory() as place, contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
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
