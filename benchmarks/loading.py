"""Loading and tokenising against a plain `datasets.map` in one run, and memory as the pool grows.

    python -m benchmarks.loading VQA_RAD    # writes benchmarks/results/loading.json

Both sides turn the same VQA-RAD questions into the same token ids and pixel patches; the run stops
if they differ. The machine may be shared, so each side is timed `--repeats` times in turn. The
fewest CPU seconds count; wall seconds are recorded beside them. Memory is measured in one process
per size and layout, on copies that this file makes in the true layout.
"""

import itertools
import json
import os
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks.runs import ROOT, Row, parser_of, provenance, timed
from medvqa.config.data import SourceConfig
from medvqa.config.lora import LoraConfig
from medvqa.config.model import ModelConfig
from medvqa.data.pool import load_pool
from medvqa.models.encode import Encoder
from medvqa.models.load import load_model
from medvqa.models.patches import Patches
from medvqa.models.prompt import user_message
from medvqa.tracking.record import write_json

# Pixels per image, and rows: `map` keeps the patches of all rows, 6 MB each at 512 x 512.
BUDGETS = {"128 x 128": (128 * 128, 2248), "512 x 512": (512 * 512, 256)}
IMAGE_BYTES = 8_000
NUM_COMPARED = 16  # rows whose token ids and patches must be equal
Encoded = list[tuple[list[int], Any]]


# --- Throughput ----------------------------------------------------------------------------------


def ours(config: SourceConfig, encoder_of: Callable[[], Encoder]) -> Encoded:
    """Load and encode each row as a run does; return the first ones."""
    encoder = encoder_of()
    samples = (encoder.encode(example) for example in load_pool(config, seed=0).examples)
    first = [next(samples) for _ in range(NUM_COMPARED)]
    for _ in samples:
        pass
    return [([*sample.prompt_ids], sample.pixel_values) for sample in first]


def plain_map(directory: Path, names: set[str], processor: Any) -> Encoded:
    """Do the same as most scripts do: a data set of dictionaries, an Image column, one map."""
    import datasets

    datasets.disable_progress_bars()
    rows = json.loads((directory / "VQA_RAD Dataset Public.json").read_text(encoding="utf-8"))
    folder = directory / "VQA_RAD Image Folder"
    table = datasets.Dataset.from_list(
        [
            {
                "image": str(folder / row["image_name"]),
                "question": str(row["question"]).strip(),
                "answer": str(row["answer"]).strip(),
            }
            for row in rows
            if str(row["qid"]) in names
        ]
    ).cast_column("image", datasets.Image())

    def encode(row: Row) -> Row:
        messages = [user_message(row["question"], num_images=1)]
        text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        encoded = processor(text=[text], images=[row["image"].convert("RGB")], return_tensors="np")
        answer = processor.tokenizer(row["answer"], add_special_tokens=False)["input_ids"]
        return {
            "prompt_ids": encoded["input_ids"][0],
            "answer_ids": [*answer, processor.tokenizer.eos_token_id],
            "pixel_values": encoded["pixel_values"],
        }

    with tempfile.TemporaryDirectory() as place:
        mapped = table.map(
            encode,
            remove_columns=table.column_names,
            cache_file_name=f"{place}/mapped.arrow",
            writer_batch_size=64,
        )
        rows = mapped.select(range(NUM_COMPARED))
        return [(row["prompt_ids"], row["pixel_values"]) for row in rows]


def throughput(directory: Path, repeats: int) -> Iterator[Row]:
    """Time the sides in turn for each pixel budget."""
    for budget, (max_pixels, num_rows) in BUDGETS.items():
        model = ModelConfig(name="medvqa/tiny", max_pixels=max_pixels, max_length_tokens=4096)
        processor = load_model(model, LoraConfig(), gradient_checkpointing=False, seed=0).processor
        config = SourceConfig(name="vqa_rad", path=str(directory), split="all", limit=num_rows)
        names = {example.id for example in load_pool(config, seed=0).examples}
        encoder = partial(Encoder, processor, max_length_tokens=4096)
        sides = {
            "datasets.map": partial(plain_map, directory, names, processor),
            "ours": partial(ours, config, encoder),
            "ours, every picture anew": partial(
                ours, config, lambda e=encoder: e(patches=Patches(max_images=0))
            ),
        }
        times: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
        for _ in range(repeats):
            expected = None
            for name, side in sides.items():
                spent, encoded = timed(side)
                times[name].append(spent)
                expected = expected or encoded
                if not same(expected, encoded):
                    raise SystemExit(f"{name} and datasets.map encode differently")
        for name, runs in times.items():
            rate = round(num_rows / min(run["cpu_s"] for run in runs), 1)
            about = {"pixels": budget, "rows": num_rows, "side": name}
            yield {**about, "rows_per_cpu_second": rate, "runs": runs}


def same(one: Encoded, other: Encoded) -> bool:
    """Return whether two sides gave the same token ids and patches."""
    import numpy as np

    return all(
        list(a_ids) == list(b_ids) and np.allclose(a_pixels, b_pixels, atol=1e-5)
        for (a_ids, a_pixels), (b_ids, b_pixels) in zip(one, other, strict=True)
    )


# --- Memory --------------------------------------------------------------------------------------


def write_pubmed_vision(folder: Path, num_rows: int) -> None:
    """Write an index and four archives."""
    archives = [zipfile.ZipFile(folder / f"images_{part}.zip", "w") for part in range(4)]
    rows = []
    for number in range(num_rows):
        question = {"from": "human", "value": f"What does figure {number} show? " * 3}
        answer = {"from": "gpt", "value": f"It shows finding {number} of the chest. " * 15}
        about = {"image": [f"images/pmc_{number}_0.jpg"], "id": f"pmc_{number}"}
        rows.append(json.dumps({**about, "conversations": [question, answer]}))
        archives[number % 4].writestr(f"pmc_{number}_0.jpg", os.urandom(IMAGE_BYTES))
    for archive in archives:
        archive.close()
    index = folder / "PubMedVision_InstructionTuning_VQA.json"
    index.write_text("[" + ",\n".join(rows) + "]", encoding="utf-8")


def write_path_vqa(folder: Path, num_rows: int) -> None:
    """Write the hub's parquet, 1,000 rows per file."""
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
        path = folder / f"train-{first // 1000:05}-of-{num_rows // 1000:05}.parquet"
        datasets.Dataset.from_dict(columns, features=features).to_parquet(path)


def write_table(folder: Path, num_rows: int) -> None:
    """Write a CSV file about one picture file per ten rows."""
    for number in range(0, num_rows, 10):
        (folder / f"{number // 10}.jpg").write_bytes(os.urandom(IMAGE_BYTES))
    lines = [f"{n // 10}.jpg,what is seen in picture {n}?,finding {n}" for n in range(num_rows)]
    text = "\n".join(["image,question,answer", *lines])
    (folder / "train.csv").write_text(text, encoding="utf-8")


# Writers of the true layouts; pictures are noise of `IMAGE_BYTES` each.
WRITERS = {
    "pubmed_vision": write_pubmed_vision,
    "path_vqa": write_path_vqa,
    "table": write_table,
}


def pool_size(config: SourceConfig, home: str) -> Row:
    """Load a pool in this process; return time and memory."""
    os.environ["HF_HOME"] = home
    # What libraries take is no matter of the pool.
    import datasets
    import huggingface_hub  # noqa: F401
    import psutil

    datasets.disable_progress_bars()
    process = psutil.Process()
    before = process.memory_info()
    spent, pool = timed(lambda: load_pool(config, seed=0))
    after = process.memory_info()
    num_bytes = (after.rss - after.shared) - (before.rss - before.shared)
    return {"num_examples": len(pool.examples), "pool_mb": round(num_bytes / 1e6, 1), **spent}


def memory(sizes: list[int]) -> Iterator[Row]:
    """Measure each layout and size in a process of its own."""
    for name, num_rows in itertools.product(WRITERS, sizes):
        split = "instruction_tuning" if name == "pubmed_vision" else "train"
        with tempfile.TemporaryDirectory() as folder:
            WRITERS[name](Path(folder), num_rows)
            for limit in [None, 1000] if name == "pubmed_vision" else [None]:
                config = SourceConfig(name=name, path=folder, split=split, limit=limit)
                with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
                    row = process.submit(pool_size, config, f"{folder}/home").result()
                yield {"layout": name, "rows": num_rows, "limit": limit, **row}


def main() -> None:
    """Run all parts and write one JSON file."""
    parser = parser_of(__doc__)
    parser.add_argument("vqa_rad", type=Path, metavar="VQA_RAD", help="as its authors publish it")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/loading.json")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rows", type=int, nargs="+", default=[1000, 10_000, 100_000])
    options = parser.parse_args()
    values = {
        **provenance(),
        "load_average": os.getloadavg(),
        "memory": list(memory(options.rows)),
        "throughput": list(throughput(options.vqa_rad, options.repeats)),
    }
    write_json(options.out, values)


if __name__ == "__main__":
    main()
