"""VQA-RAD (Lau et al., Scientific Data 2018; CC0): the authors' files, or the hub's copy.

The authors' layout has official answer types, 2,248 rows and named images. The hub's copy
(`flaviagiammarino/vqa-rad`) has lost the types. There a question is closed if its answer is yes or
no. This gives 251 closed and 200 open test questions; the official labels give 272 and 179.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import replace
from pathlib import Path

from medvqa.config.data import RowsConfig
from medvqa.config.errors import UserError
from medvqa.data.bad_rows import BadRows
from medvqa.data.example import Example
from medvqa.data.image import ImageFile
from medvqa.data.rows import check_split, official_type, row_texts
from medvqa.data.storage.files import json_rows
from medvqa.data.table import table_examples
from medvqa.data.tables import tables

HUB_NAME = tables()["vqa_rad_hub"].repository
JSON_NAME = "VQA_RAD Dataset Public.json"
IMAGE_FOLDER = "VQA_RAD Image Folder"
AUTHORS_COLUMNS = ("qid", "image_name", "question", "answer", "answer_type", "phrase_type")
NUM_FOLDS = 5
FOLDS = tuple(f"fold{number}" for number in range(1, NUM_FOLDS + 1))
SPLITS = (
    *("train", "test", "all", "train_disjoint", "test_disjoint"),
    *(f"{side}_{fold}" for fold in FOLDS for side in ("train", "test")),
)
DISJOINT_TEST_FRACTION = 0.2
TEST_PHRASES = ("test_freeform", "test_para")


def load(config: RowsConfig, seed: int, bad_rows: BadRows) -> list[Example]:
    """Return the rows of a split; the seed is not needed.

    Args:
        config: `train`, `test` (the authors' split, which shares pictures), `all`, or our
            `train_disjoint`, `test_disjoint`: see `disjoint_test_images`; or `train_fold1` and
            `test_fold1` to `fold5`: see `image_folds`.
        seed: Unused.
        bad_rows: Takes unusable rows.

    Raises:
        UserError: If the split is unknown, or a file, an image or a column is missing.
    """
    check_split(config, SPLITS)
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
            for example in table_examples(tables()["vqa_rad_hub"], config, split, bad_rows)
        ]
        cases = {}
    _, _, rule = config.split.partition("_")
    if rule:
        images = [e.image_ids[0] for e in examples]
        test_images = (
            disjoint_test_images(images, cases)
            if rule == "disjoint"
            else image_folds(images, cases)[FOLDS.index(rule)]
        )
        names = {True: f"test_{rule}", False: f"train_{rule}"}
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
    num_questions = Counter(images)
    chosen: set[str] = set()
    for members in _groups(images, cases):
        if sum(num_questions[name] for name in chosen) >= DISJOINT_TEST_FRACTION * len(images):
            break
        chosen |= members
    return chosen


def image_folds(images: Sequence[str], cases: Mapping[str, Set[str]]) -> list[set[str]]:
    """Return the test pictures of each fold: every picture is in one of them.

    Groups and their order are those of `disjoint_test_images`; each goes to the fold that has the
    fewest questions so far.
    """
    num_questions = Counter(images)
    folds: list[set[str]] = [set() for _ in FOLDS]
    sizes = [0] * NUM_FOLDS
    for members in _groups(images, cases):
        smallest = sizes.index(min(sizes))
        folds[smallest] |= members
        sizes[smallest] += sum(num_questions[name] for name in members)
    return folds


def _groups(images: Sequence[str], cases: Mapping[str, Set[str]]) -> list[set[str]]:
    """Return pictures that share a case, by the SHA-256 of each group's first name."""
    groups: dict[str, set[str]] = {}
    for image in sorted(set(images)):
        keys = {image, *cases.get(image, ())}
        merged = {image}.union(*(groups[key] for key in keys if key in groups))
        for key in merged | keys | {k for k, members in groups.items() if members & merged}:
            groups[key] = merged
    distinct = {min(members): members for members in groups.values()}
    first_names = sorted(distinct, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    return [distinct[first] for first in first_names]


def _load_authors(directory: Path, bad_rows: BadRows) -> tuple[list[Example], dict[str, set[str]]]:
    """Return all rows, and the case addresses of each picture."""
    path = directory / JSON_NAME
    present = {p.name for p in (directory / IMAGE_FOLDER).glob("*")}
    examples: list[Example] = []
    cases: dict[str, set[str]] = {}
    for number, row in enumerate(json_rows(path)):
        with bad_rows.row(f"{path}, row {number}"):
            example = _author_row(directory / IMAGE_FOLDER, row)
            (name,) = example.image_ids
            if name not in present:
                raise UserError(f"image {name} is not in {IMAGE_FOLDER}")
            examples.append(example)
            cases.setdefault(name, set()).add(str(row.get("image_case_url")))
    return examples, cases


def _author_row(folder: Path, row: object) -> Example:
    # One row in three hundred has a space behind its type, and some answers are numbers.
    texts = row_texts(row, *AUTHORS_COLUMNS)
    return Example(
        id=texts["qid"],
        images=(ImageFile(folder / texts["image_name"]),),
        question=texts["question"],
        answers=(texts["answer"],),
        answer_type=official_type(texts["answer_type"]),
        type_origin="official",
        source="vqa_rad",
        split="test" if texts["phrase_type"] in TEST_PHRASES else "train",
        image_ids=(texts["image_name"],),
    )
