"""Loading and tokenising against a plain `datasets.map` in one run, and memory as the pool grows.

    python benchmarks/loading.py    # writes benchmarks/results/loading.json

Both sides turn the same VQA-RAD questions into the same token ids and pixel patches; the run stops
if they differ. The machine may be shared, so each side is timed `--repeats` times in turn and
the fewest CPU seconds count; wall seconds are recorded beside them. Memory is that of a process of
its own for each size and layout, on copies in the true layout that this file makes.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from medvqa.config.data import SourceConfig
from medvqa.config.lora import LoraConfig
from medvqa.config.model import ModelConfig
from medvqa.data.example import Example
from medvqa.data.pool import load_pool
from medvqa.data.storage.json_list import row_starts
from medvqa.data.verification import check_images
from medvqa.models.encode import Encoder
from medvqa.models.load import load_model
from medvqa.models.patches import Patches
from medvqa.models.prompt import user_message
from medvqa.tracking.environment import environment, git_state
from medvqa.tracking.record import write_json

ROOT = Path(__file__).resolve().parents[1]
# Pixels per image, and rows: `map` keeps the patches of all rows, 6 MB each at 512 x 512.
BUDGETS = {"128 x 128": (128 * 128, 2248), "512 x 512": (512 * 512, 256)}
IMAGE_BYTES = 8_000
INDEX = "PubMedVision_InstructionTuning_VQA"


# --- Throughput ----------------------------------------------------------------------------------


def ours(config: SourceConfig, encoder_of: Callable[[], Encoder], kept: list[Any]) -> None:
    """Load and encode each row as a run does; keep the first rows for the comparison."""
    encoder = encoder_of()
    for number, example in enumerate(load_pool(config, seed=0).examples):
        sample = encoder.encode(example)
        if number < 16:
            kept.append(([*sample.prompt_ids], sample.pixel_values.tolist()))  # type: ignore[union-attr]


def plain_map(directory: Path, names: set[str], processor: Any, kept: list[Any]) -> None:
    """Do the same as most scripts do: a data set of dictionaries, an Image column, one map."""
    import datasets

    datasets.disable_progress_bars()
    rows = json.loads((directory / "VQA_RAD Dataset Public.json").read_text(encoding="utf-8"))
    rows = [row for row in rows if str(row["qid"]) in names]
    folder = directory / "VQA_RAD Image Folder"
    table = datasets.Dataset.from_dict(
        {
            "image": [str(folder / row["image_name"]) for row in rows],
            "question": [str(row["question"]).strip() for row in rows],
            "answer": [str(row["answer"]).strip() for row in rows],
        }
    ).cast_column("image", datasets.Image())

    def encode(row: dict[str, Any]) -> dict[str, Any]:
        text = processor.apply_chat_template(
            [user_message(row["question"], num_images=1)],
            tokenize=False,
            add_generation_prompt=True,
        )
        encoded = processor(text=[text], images=[row["image"].convert("RGB")], return_tensors="np")
        answer = processor.tokenizer(row["answer"], add_special_tokens=False)["input_ids"]
        return {
            "prompt_ids": encoded["input_ids"][0],
            "answer_ids": [*answer, processor.tokenizer.eos_token_id],
            "pixel_values": encoded["pixel_values"],
        }

    with tempfile.TemporaryDirectory() as folder:
        mapped = table.map(
            encode,
            remove_columns=table.column_names,
            cache_file_name=f"{folder}/mapped.arrow",
            writer_batch_size=64,
        )
        kept += [(row["prompt_ids"], row["pixel_values"]) for row in mapped.select(range(16))]


def timed(action: Callable[[list[Any]], None]) -> tuple[dict[str, float], list[Any]]:
    """Return wall and CPU seconds of one call, and what it kept."""
    kept: list[Any] = []
    wall, cpu = time.perf_counter(), time.process_time()
    action(kept)
    return {
        "wall_s": round(time.perf_counter() - wall, 3),
        "cpu_s": round(time.process_time() - cpu, 3),
    }, kept


def throughput(directory: Path, repeats: int) -> list[dict[str, Any]]:
    """Time the sides in turn for each pixel budget."""
    results = []
    for budget, (max_pixels, num_rows) in BUDGETS.items():
        model = ModelConfig(name="medvqa/tiny", max_pixels=max_pixels, max_length_tokens=4096)
        loaded = load_model(model, LoraConfig(), gradient_checkpointing=False, seed=0)
        processor = loaded.processor
        config = SourceConfig(name="vqa_rad", path=str(directory), split="all", limit=num_rows)
        encoder = partial(Encoder, processor, max_length_tokens=4096)
        names = {example.id for example in load_pool(config, seed=0).examples}
        sides: dict[str, Callable[[list[Any]], None]] = {
            "datasets.map": partial(plain_map, directory, names, processor),
            "ours": partial(ours, config, encoder),
            "ours, every picture anew": partial(
                ours, config, partial(encoder, patches=Patches(max_images=0))
            ),
        }
        times: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
        for _ in range(repeats):
            first: list[Any] = []
            for name, side in sides.items():
                spent, kept = timed(side)
                times[name].append(spent)
                first = first or kept
                if not same(first, kept):
                    raise SystemExit(f"{name} and datasets.map encode differently")
        for name, runs in times.items():
            best = min(run["cpu_s"] for run in runs)
            rate = round(num_rows / best, 1)
            results.append(
                {
                    "pixels": budget,
                    "rows": num_rows,
                    "side": name,
                    "rows_per_cpu_second": rate,
                    "runs": runs,
                }
            )
            print(results[-1])  # noqa: T201
    return results


def same(one: list[Any], other: list[Any]) -> bool:
    """Return whether two sides gave the same token ids and patches."""
    import numpy as np

    return all(
        list(a_ids) == list(b_ids) and np.allclose(a_pixels, b_pixels, atol=1e-5)
        for (a_ids, a_pixels), (b_ids, b_pixels) in zip(one, other, strict=True)
    )


# --- Memory --------------------------------------------------------------------------------------


def write_pubmed_vision(folder: Path, num_rows: int) -> None:
    """Write an index and four archives; the pictures are noise of `IMAGE_BYTES` each."""
    with (folder / f"{INDEX}.json").open("w", encoding="utf-8") as file:
        for number in range(num_rows):
            row = {
                "image": [f"images/pmc_{number}_0.jpg"],
                "id": f"pmc_{number}",
                "conversations": [
                    {"from": "human", "value": f"What does figure {number} show? " * 3},
                    {"from": "gpt", "value": f"It shows finding {number} of the chest. " * 15},
                ],
            }
            file.write(("[" if number == 0 else ",\n") + json.dumps(row))
        file.write("]")
    for part in range(4):
        with zipfile.ZipFile(folder / f"images_{part}.zip", "w") as archive:
            for number in range(part, num_rows, 4):
                archive.writestr(f"pmc_{number}_0.jpg", os.urandom(IMAGE_BYTES))


def write_path_vqa(folder: Path, num_rows: int) -> None:
    """Write the hub's parquet, 1,000 rows per file; pictures are noise of `IMAGE_BYTES` each."""
    import datasets

    text = datasets.Value("string")
    features = datasets.Features(image=datasets.Image(), question=text, answer=text)
    datasets.disable_progress_bars()
    for first in range(0, num_rows, 1000):
        numbers = range(first, first + 1000)
        columns = {
            "image": [{"bytes": os.urandom(IMAGE_BYTES), "path": None} for _ in numbers],
            "question": [f"what is seen in picture {n}?" for n in numbers],
            "answer": [f"finding {n}" for n in numbers],
        }
        datasets.Dataset.from_dict(columns, features=features).to_parquet(
            folder / f"train-{first // 1000:05}-of-{num_rows // 1000:05}.parquet"
        )


def write_table(folder: Path, num_rows: int) -> None:
    """Write a CSV file about one picture file per ten rows, of `IMAGE_BYTES` each."""
    lines = ["image,question,answer"]
    for number in range(num_rows):
        name = f"{number // 10}.jpg"
        if number % 10 == 0:
            (folder / name).write_bytes(os.urandom(IMAGE_BYTES))
        lines.append(f"{name},what is seen in picture {number}?,finding {number}")
    (folder / "train.csv").write_text("\n".join(lines), encoding="utf-8")


WRITERS = {
    "pubmed_vision": write_pubmed_vision,
    "path_vqa": write_path_vqa,
    "table": write_table,
}


def measure_memory(name: str, folder: Path, limit: int | None) -> dict[str, Any]:
    """Load a pool in this process; return time and memory."""
    # What libraries take is no matter of the pool.
    import datasets
    import huggingface_hub  # noqa: F401

    datasets.disable_progress_bars()
    split = "instruction_tuning" if name == "pubmed_vision" else "train"
    config = SourceConfig(name=name, path=str(folder), split=split, limit=limit)
    before = _status_bytes("RssAnon")
    start = time.perf_counter()
    pool = load_pool(config, seed=0)
    return {
        "num_examples": len(pool.examples),
        "load_s": round(time.perf_counter() - start, 2),
        "libraries_mb": round(before / 1e6, 1),
        "pool_mb": round((_status_bytes("RssAnon") - before) / 1e6, 1),
        # Pages of mapped files count here as long as the system has no other use for them.
        "peak_resident_mb": round(_status_bytes("VmHWM") / 1e6, 1),
    }


def _status_bytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def memory(sizes: list[int]) -> list[dict[str, Any]]:
    """Measure each layout and size in a process of its own."""
    results = []
    for name, write in WRITERS.items():
        for num_rows in sizes:
            with tempfile.TemporaryDirectory() as folder:
                write(Path(folder), num_rows)
                limits = [None, 1000] if name == "pubmed_vision" else [None]
                for limit in limits:
                    command = [sys.executable, __file__, "--measure", name, folder, str(limit)]
                    home = {"HF_HOME": f"{folder}/home"}
                    answer = subprocess.run(
                        command, capture_output=True, text=True, env={**os.environ, **home}
                    )
                    if answer.returncode:
                        raise SystemExit(answer.stderr)
                    measured = json.loads(answer.stdout.splitlines()[-1])
                    results.append({"layout": name, "rows": num_rows, "limit": limit, **measured})
                    print(results[-1])  # noqa: T201
    return results


# --- Start-up ------------------------------------------------------------------------------------


def start_up(directory: Path) -> dict[str, Any]:
    """Time what is done before a model is loaded: pictures decoded, an index of 650,000 rows."""
    config = SourceConfig(name="vqa_rad", path=str(directory), split="all")
    examples: list[Example] = load_pool(config, seed=0).examples
    spent, _ = timed(lambda _: check_images(examples) and None)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "index.json"
        row = {
            "image": ["images/pmc_1_0.jpg"],
            "conversations": [{"from": "human", "value": "a" * 700}],
        }
        line = json.dumps(row)
        with path.open("w") as file:
            file.write("[" + ",\n".join([line] * 650_000) + "]")
        index, _ = timed(lambda _: row_starts(path) and None)
        size = path.stat().st_size
    return {
        "pictures_checked": len({name for e in examples for name in e.image_ids}),
        "check": spent,
        "index_rows": 650_000,
        "index_mb": round(size / 1e6),
        "index_first_reading": index,
    }


def main() -> None:
    """Run all parts and write one JSON file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vqa-rad", type=Path, default=ROOT.parent / "shared/data/vqa_rad")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/loading.json")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rows", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        name, folder, limit = options.measure
        measured = measure_memory(name, Path(folder), None if limit == "None" else int(limit))
        print(json.dumps(measured))  # noqa: T201
        return
    result = {
        "date": datetime.now(UTC).date().isoformat(),
        "command": " ".join(["python", "benchmarks/loading.py", *sys.argv[1:]]),
        **environment(),
        "git": git_state(ROOT),
        "load_average": os.getloadavg(),
        "start_up": start_up(options.vqa_rad),
        "memory": memory(options.rows),
        "throughput": throughput(options.vqa_rad, options.repeats),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(options.out, result)


if __name__ == "__main__":
    main()
