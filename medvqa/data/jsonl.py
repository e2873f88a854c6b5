"""A user's own questions: one JSON object a line, images in files beside it.

    {"question": "...", "answer": "...", "image": "a.png"}

Also `answers`, `images` (lists), and `id`, `answer_type`, `split`, `image_id`.
"""

import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medvqa.config import SourceConfig
from medvqa.data.vqa_rad import yes_no_type
from medvqa.example import AnswerType, Example, UserError
from medvqa.image import ImageFile, image_id

KEYS = (
    "question",
    "answer",
    "answers",
    "image",
    "images",
    "id",
    "answer_type",
    "split",
    "image_id",
)


def load(config: SourceConfig, seed: int) -> list[Example]:
    """Return the rows of a file, or of `<split>.jsonl` in a directory; the seed is not needed.

    Rows of a file that name a split are kept where it is the asked one.

    Raises:
        UserError: Naming file and line.
    """
    if config.path is None:
        raise UserError("data=jsonl needs data.path=, a .jsonl file or a directory of them")
    path = Path(config.path)
    if path.is_dir():
        path = path / f"{config.split}.jsonl"
    try:
        text = path.read_bytes().decode("utf-8")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start}); convert it") from error
    # Not splitlines(): that also breaks at characters which JSON allows inside a text.
    lines = [(n, line) for n, line in enumerate(text.split("\n"), start=1) if line.strip()]
    rows = [(number, _row(f"{path}, line {number}", line)) for number, line in lines]
    kept = [(n, row) for n, row in rows if row.get("split", config.split) == config.split]
    examples: list[Example] = []
    line_of: dict[str, int] = {}
    for number, row in kept:
        example = _example(path, number, row, config.split)
        first = line_of.setdefault(example.id, number)
        if first != number:
            raise UserError(f"{path}, line {number}: id {example.id!r} stands in line {first} too")
        examples.append(example)
    return examples


def _row(place: str, line: str) -> Mapping[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        hint = "; is it a CSV?" if not line.lstrip().startswith(("{", "[")) else ""
        raise UserError(f"{place} is no JSON object ({error}){hint}") from error
    if not isinstance(row, dict):
        raise UserError(f"{place} is no JSON object but {type(row).__name__}")
    for key in row:
        if key not in KEYS:
            near = difflib.get_close_matches(key, KEYS, 1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(KEYS)}"
            raise UserError(f"{place}: unknown key {key!r}{hint}")
    return row


def _example(path: Path, number: int, row: Mapping[str, Any], split: str) -> Example:
    place = f"{path}, line {number}"
    question = row.get("question")
    if not isinstance(question, str) or not question.strip():
        raise UserError(f"{place}: no question")
    answers = _listed(place, row, "answer", "answers")
    images = [ImageFile(path.parent / name) for name in _listed(place, row, "image", "images")]
    for image in images:
        if not image.path.is_file():
            raise UserError(f"{place}: image {image.path} does not exist")
    image_ids = tuple(image_id(image) for image in images)
    if "image_id" in row:
        image_ids = (str(row["image_id"]),) * len(images)
    stated = row.get("answer_type")
    if stated not in (None, "open", "closed"):
        raise UserError(f"{place}: answer_type is {stated!r}; it must be open or closed")
    answer_type: AnswerType = stated or yes_no_type(answers[0])
    return Example(
        id=str(row.get("id", f"{path.stem}-{number}")),
        images=tuple(images),
        question=question.strip(),
        answers=tuple(answers),
        answer_type=answer_type,
        type_origin="official" if stated else "rule",
        source=path.stem if path.stem != split else "jsonl",
        split=split,
        image_ids=image_ids,
    )


def _listed(place: str, row: Mapping[str, Any], one: str, several: str) -> list[str]:
    """Return the values of `one` or `several` as non-empty texts."""
    if (one in row) == (several in row):
        both = "both" if one in row else "neither"
        raise UserError(f"{place}: give {one!r} or {several!r}; it has {both}")
    values = row[several] if several in row else [row[one]]
    if not isinstance(values, list) or not values:
        raise UserError(f"{place}: {several!r} must be a list with at least one entry")
    texts = [("yes" if v else "no") if isinstance(v, bool) else v for v in values]
    if not all(isinstance(value, str | int | float) and str(value).strip() for value in texts):
        raise UserError(f"{place}: {one!r} is empty or not a text: {values!r}")
    return [str(value).strip() for value in texts]
