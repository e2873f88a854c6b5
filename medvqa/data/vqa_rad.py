"""VQA-RAD (Lau et al., Scientific Data 2018; CC0): the authors' files, or the hub's copy.

The authors' layout has official answer types, 2,248 rows and named images. The hub's copy
(`flaviagiammarino/vqa-rad`) has lost the types, so there answers of yes or no count as closed,
which gives 251/200 on the test set where the official labels give 272/179.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import replace
from pathlib import Path
from typing import Any

from medvqa.config.data import RowsConfig
from medvqa.config.errors import UserError
from medvqa.data.bad_rows import BadRows
from medvqa.data.columns import COLUMNS, column_examples
from medvqa.data.example import Example
from medvqa.data.image import ImageFile
from medvqa.data.storage.files import file_text
from medvqa.data.storage.hub import load_rows

HUB_NAME = "flaviagiammarino/vqa-rad"
JSON_NAME = "VQA_RAD Dataset Public.json"
IMAGE_FOLDER = "VQA_RAD Image Folder"
SPLITS = ("train", "test", "all", "train_disjoint", "test_disjoint")
DISJOINT_TEST_FRACTION = 0.2
TEST_PHRASES = ("test_freeform", "test_para")


def load(config: RowsConfig, seed: int, bad_rows: BadRows) -> list[Example]:
    """Return the rows of a split; the seed is not needed.

    Args:
        config: `train`, `test` (the authors' split, which shares pictures), `all`, or our
            `train_disjoint`, `test_disjoint`: see `disjoint_test_images`.
        seed: Unused.
        bad_rows: Takes unusable rows.

    Raises:
        UserError: If the split is unknown, or a file, an image or a column is missing.
    """
    if config.split not in SPLITS:
        raise UserError(f"vqa_rad has no split {config.split!r}; it has {', '.join(SPLITS)}")
    directory = Path(config.path) if config.path else None
    if directory is not None and not directory.is_dir():
        raise UserError(f"data.path={directory} is no directory; give the one that holds the files")
    if directory is not None and (directory / JSON_NAME).is_file():
        examples, cases = _load_authors(directory, bad_rows)
    else:
        examples = [
            example
            for split in ("train", "test")
            if config.split not in ("train", "test") or config.split == split
            for example in _load_hub(directory, config.revision, split, bad_rows)
        ]
        cases = {}
    if config.split.endswith("_disjoint"):
        test_images = disjoint_test_images([e.image_ids[0] for e in examples], cases)
        names = {True: "test_disjoint", False: "train_disjoint"}
        examples = [replace(e, split=names[e.image_ids[0] in test_images]) for e in examples]
    return [example for example in examples if config.split in ("all", example.split)]


def disjoint_test_images(images: Sequence[str], cases: Mapping[str, Set[str]]) -> set[str]:
    """Return the pictures of an image-disjoint test set with about a fifth of the questions.

    Pictures that share a MedPix case stay together. Groups are taken in the order of the SHA-256 of
    their first picture's name, so the split depends on nothing but the data.

    Args:
        images: The picture of each question.
        cases: The case addresses of each picture; pictures without one stand alone.
    """
    groups: dict[str, set[str]] = {}
    for image in sorted(set(images)):
        keys = {image, *cases.get(image, ())}
        merged = {image}.union(*(groups[key] for key in keys if key in groups))
        for key in merged | keys | {k for k, members in groups.items() if members & merged}:
            groups[key] = merged
    distinct = {min(members): members for members in groups.values()}
    num_questions = Counter(images)
    chosen: set[str] = set()
    for first in sorted(distinct, key=lambda name: hashlib.sha256(name.encode()).hexdigest()):
        if sum(num_questions[name] for name in chosen) >= DISJOINT_TEST_FRACTION * len(images):
            break
        chosen |= distinct[first]
    return chosen


def _load_authors(directory: Path, bad_rows: BadRows) -> tuple[list[Example], dict[str, set[str]]]:
    """Return all rows, and the case addresses of each picture."""
    path = directory / JSON_NAME
    try:
        rows = json.loads(file_text(path))
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is no JSON: {error}") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{path} is no list of rows")
    present = {p.name for p in (directory / IMAGE_FOLDER).glob("*")}
    examples: list[Example] = []
    cases: dict[str, set[str]] = {}
    for number, row in enumerate(rows):
        with bad_rows.row():
            example = _author_row(directory, number, row)
            if row["image_name"] not in present:
                raise UserError(
                    f"{path}, row {number}: image {row['image_name']} is not in {IMAGE_FOLDER}"
                )
            examples.append(example)
            cases.setdefault(row["image_name"], set()).add(str(row.get("image_case_url")))
    return examples, cases


def _author_row(directory: Path, number: int, row: Mapping[str, Any]) -> Example:
    needed = ("qid", "image_name", "question", "answer", "answer_type", "phrase_type")
    missing = [name for name in needed if row.get(name) is None or not str(row[name]).strip()]
    if missing:
        raise UserError(
            f"{directory / JSON_NAME}, row {number} has no {', '.join(missing)}; "
            f"it has {', '.join(row)}"
        )
    # One row in three hundred has a space behind its type, and some answers are numbers.
    stated = str(row["answer_type"]).strip().upper()
    if stated not in ("OPEN", "CLOSED"):
        raise UserError(f"{directory / JSON_NAME}, row {number}: answer_type is {stated!r}")
    return Example(
        id=str(row["qid"]),
        images=(ImageFile(directory / IMAGE_FOLDER / row["image_name"]),),
        question=str(row["question"]).strip(),
        answers=(str(row["answer"]).strip(),),
        answer_type="open" if stated == "OPEN" else "closed",
        type_origin="official",
        source="vqa_rad",
        split="test" if row["phrase_type"] in TEST_PHRASES else "train",
        image_ids=(str(row["image_name"]),),
    )


def _load_hub(
    directory: Path | None, revision: str | None, split: str, bad_rows: BadRows
) -> list[Example]:
    rows = load_rows(HUB_NAME, directory, split=split, revision=revision, columns=COLUMNS)
    place = f"{directory or HUB_NAME} {split}"
    return column_examples(rows, place, bad_rows, source="vqa_rad", split=split)
