"""A table whose columns hold pictures, questions and answers -> `Example`.

`tables.yaml` lists the data sets of the hub that differ only in these names. A set that states no
answer types gets them by rule: an answer of yes or no is closed. A table of conversations gives one
example per turn, without the turns before it. Only the mapped columns are ever read: others may
quote the answer.
"""

from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from medvqa.config.data import RowsConfig
from medvqa.config.errors import UserError
from medvqa.data.bad_rows import BadRows
from medvqa.data.conversations import turns
from medvqa.data.example import Example
from medvqa.data.image import image_id
from medvqa.data.rows import check_split, row_texts, yes_no_type
from medvqa.data.storage.hub import RowImage, load_rows

# Tried in this order where a set names no columns.
SHAPES = (
    {"image": "image", "question": "question", "answer": "answer"},
    {"image": "image", "conversations": "conversations"},
)


class Table(NamedTuple):
    """A data set of `tables.yaml`.

    Attributes:
        repository: Its name on the hub.
        splits: As the hub calls them; any split may be asked for where none are documented.
        columns: The column of each role: image, question, answer, id, conversations.
    """

    repository: str
    splits: tuple[str, ...] = ()
    columns: Mapping[str, str] | None = None


@cache
def tables() -> dict[str, Table]:
    """Return the known tables by the name that `data.name` gives them."""
    text = Path(__file__).with_name("tables.yaml").read_text(encoding="utf-8")
    return {name: Table(**values) for name, values in yaml.safe_load(text).items()}


def load(config: RowsConfig, seed: int, bad_rows: BadRows) -> list[Example]:
    """Return the rows of a split, or of all; the seed is not needed.

    Raises:
        UserError: If the split is unknown, or a file, an image or a column is missing.
    """
    table = tables()[config.name]
    if table.splits:
        check_split(config, (*table.splits, "all"))
    examples: list[Example] = []
    for split in table.splits if config.split == "all" else (config.split,):
        examples += table_examples(table, config, split, bad_rows)
    return examples


def table_examples(
    table: Table, config: RowsConfig, split: str, bad_rows: BadRows
) -> list[Example]:
    """Return the examples of one split; reads every picture once for its hash and keeps none."""
    directory = Path(config.path) if config.path else None
    rows = load_rows(table.repository, directory, split=split, revision=config.revision)
    place = f"{directory or table.repository} {split}"
    columns = _columns(table, rows.column_names, place)
    images = rows.select_columns([columns["image"]])
    texts = {role: name for role, name in columns.items() if role != "image"}
    examples: list[Example] = []
    for number, row in enumerate(rows.select_columns(list(texts.values()))):
        with bad_rows.row():
            place_of_row = f"{place}[{number}]"
            image = RowImage(place_of_row, images, number, columns["image"])
            asked = list(_asked(place_of_row, row, texts, f"{split}-{number}"))
            key = image_id(image)
            examples += [
                Example(
                    id=name,
                    images=(image,),
                    question=question,
                    answers=(answer,),
                    answer_type=yes_no_type(answer),
                    type_origin="rule",
                    source=config.name,
                    split=split,
                    image_ids=(key,),
                )
                for name, question, answer in asked
            ]
    return examples


def _columns(table: Table, present: list[str], place: str) -> Mapping[str, str]:
    shapes = (table.columns,) if table.columns else SHAPES
    for shape in shapes:
        if set(shape.values()) <= set(present):
            return shape
    needed = ", or ".join(", ".join(shape.values()) for shape in shapes)
    raise UserError(f"{place} needs the columns {needed}; found {', '.join(present)}")


def _asked(
    place: str, row: Mapping[str, Any], columns: Mapping[str, str], name: str
) -> Iterator[tuple[str, str, str]]:
    """Yield id, question and answer of each example of a row."""
    if "conversations" in columns:
        said = turns(f"{place}: conversations", row[columns["conversations"]])
        for turn, (question, answer) in enumerate(said):
            yield f"{name}-{turn}", question, answer
        return
    texts = row_texts(place, row, *columns.values())
    stated = texts[columns["id"]] if "id" in columns else name
    yield stated, texts[columns["question"]], texts[columns["answer"]]
