"""A user's own questions: one JSON object per line, images in files beside it.

    {"question": "...", "answer": "...", "image": "a.png"}

Also `answers`, `images`, `options` (lists), and `id`, `answer_type`, `split`, `image_id`,
`difficulty`. With options, an answer is an option's text or letter, and the question is closed. A
file whose rows name no split holds the requested one. Either all rows name a split or none does.
"""

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medvqa.config.data import RowsConfig
from medvqa.config.errors import UserError
from medvqa.data.bad_rows import BadRows
from medvqa.data.example import AnswerType, Example
from medvqa.data.image import ImageFile, image_id
from medvqa.data.options import options_of, right_option
from medvqa.data.rows import difficulty_of, without_markers, yes_no_type
from medvqa.data.storage.files import file_text
from medvqa.data.storage.text_rows import json_object

Row = tuple[int, Mapping[str, Any]]  # with its line number
KEYS = (
    *("question", "answer", "answers", "image", "images", "id", "answer_type", "split", "image_id"),
    *("options", "difficulty"),
)


def load(config: RowsConfig, seed: int, bad_rows: BadRows) -> list[Example]:
    """Return the rows of a file, or of `<split>.jsonl` in a directory; the seed is not needed.

    Rows of a file that name a split are kept where it is the asked one.

    Raises:
        UserError: Naming file and line.
    """
    if config.path is None:
        raise UserError("data=jsonl needs data.path=, a .jsonl file or a directory of them")
    path = _file(Path(config.path), config.split)
    rows: list[Row] = []
    # Not splitlines(): that also breaks at characters which JSON allows inside a text.
    for number, line in enumerate(file_text(path).split("\n"), start=1):
        if line.strip():
            with bad_rows.row(f"{path}, line {number}"):
                rows.append((number, _row(line)))
    examples: list[Example] = []
    line_of: dict[str, int] = {}
    for number, row in _of_split(path, rows, config.split):
        with bad_rows.row(f"{path}, line {number}"):
            example = _example(path, number, row, config.split)
            first = line_of.setdefault(example.id, number)
            if first != number:
                raise UserError(f"id {example.id!r} stands in line {first} too")
            examples.append(example)
    return examples


def _file(path: Path, split: str) -> Path:
    if not path.is_dir():
        return path
    file = path / f"{split}.jsonl"
    if not file.is_file():
        splits = ", ".join(sorted(p.stem for p in path.glob("*.jsonl"))) or "none"
        raise UserError(f"{path} has no {file.name}; splits found: {splits}")
    return file


def _of_split(path: Path, rows: Sequence[Row], split: str) -> Sequence[Row]:
    """Return the split's rows; one without a split among others with one would count in all."""
    named = {row["split"] for _, row in rows if "split" in row}
    if not named:
        return rows
    for number, row in rows:
        if "split" not in row:
            raise UserError(f"{path}, line {number}: no split, though other lines name theirs")
    if split not in named:
        known = ", ".join(sorted(named))
        raise UserError(f"{path} has no rows of split {split!r}; it has {known}")
    return [(number, row) for number, row in rows if row["split"] == split]


def _row(line: str) -> Mapping[str, Any]:
    row = json_object(line, _refuse_constant)
    for key in row:
        if key not in KEYS:
            near = difflib.get_close_matches(key, KEYS, 1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(KEYS)}"
            raise UserError(f"unknown key {key!r}{hint}")
    for key in ("id", "split", "image_id"):
        value = row.get(key, "given")
        if not (isinstance(value, str) and value.strip()) and type(value) is not int:
            raise UserError(f"{key!r} must be a text or a whole number, got {value!r}")
        if key in row:
            row[key] = str(value)
    return row


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no value; pandas writes it for an empty cell")


def _example(path: Path, number: int, row: Mapping[str, Any], split: str) -> Example:
    question = row.get("question")
    if not isinstance(question, str) or not question.strip():
        raise UserError("no question")
    answers = _listed(row, "answer", "answers")
    images = [ImageFile(path.parent / name) for name in _listed(row, "image", "images")]
    image_ids = tuple(image_id(image) for image in images)
    question = without_markers("question", question, num_images=len(images))
    if "image_id" in row:
        if len(images) > 1:
            raise UserError(f"'image_id' names one image, but there are {len(images)}")
        image_ids = (row["image_id"],)
    stated = row.get("answer_type")
    if stated not in (None, "open", "closed"):
        raise UserError(f"answer_type is {stated!r}; it must be open or closed")
    options = options_of(row.get("options"))
    if options:
        answers = [right_option(answer, options) for answer in answers]
    rule: AnswerType = "closed" if options else yes_no_type(answers[0])
    return Example(
        id=row.get("id", f"{path.stem}-{number}"),
        images=tuple(images),
        question=question,
        answers=tuple(answers),
        answer_type=stated or rule,
        type_origin="official" if stated else "rule",
        source=path.stem if path.stem != split else "jsonl",
        split=split,
        image_ids=image_ids,
        options=options,
        difficulty=difficulty_of(row.get("difficulty")),
    )


def _listed(row: Mapping[str, Any], one: str, several: str) -> list[str]:
    """Return the values of `one` or `several` as non-empty texts."""
    if (one in row) == (several in row):
        both = "both" if one in row else "neither"
        raise UserError(f"give {one!r} or {several!r}; it has {both}")
    values = row[several] if several in row else [row[one]]
    if not isinstance(values, list) or not values:
        raise UserError(f"{several!r} must be a list with at least one entry")
    kinds = str if one == "image" else str | int | float
    if not all(isinstance(value, kinds) and str(value).strip() for value in values):
        raise UserError(f"{one!r} is empty or not a text: {values!r}")
    texts = [("yes" if v else "no") if isinstance(v, bool) else str(v) for v in values]
    return [text.strip() for text in texts]
