"""Draw the ten pictures of this folder and write their tables: `python examples/own_data/draw.py`.

Replace them by your own: one table per split with one row per question, and pictures beside them.
"""

import csv
import io
from pathlib import Path

from PIL import Image

from medvqa.config.data import SourceConfig
from medvqa.data.example import Example
from medvqa.data.pool import load_examples

FOLDER = Path(__file__).parent
SIDE_PX = 96
TRAINING_ROWS, TEST_ROWS = 6, 4


def main() -> None:
    """Take an open and a closed question by turns, each on a phantom of its own."""
    examples = load_examples(SourceConfig(name="phantom", split="validation"), seed=0)
    chosen: dict[tuple[str, ...], Example] = {}
    for example in examples:
        expected = ("open", "closed")[len(chosen) % 2]
        if len(example.images) == 1 and example.answer_type == expected:
            chosen.setdefault(example.image_ids, example)
        if len(chosen) == TRAINING_ROWS + TEST_ROWS:
            break
    (FOLDER / "pictures").mkdir(exist_ok=True)
    rows = [("image", "question", "answer")]
    for number, example in enumerate(chosen.values()):
        path = f"pictures/{number:02}.png"
        picture = Image.open(io.BytesIO(example.images[0].read())).convert("L")
        picture.resize((SIDE_PX, SIDE_PX)).save(FOLDER / path, optimize=True)
        rows.append((path, example.question, example.answers[0]))
    tables = {"train": rows[: TRAINING_ROWS + 1], "test": [rows[0], *rows[TRAINING_ROWS + 1 :]]}
    for split, part in tables.items():
        with (FOLDER / f"{split}.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(part)


if __name__ == "__main__":
    main()
