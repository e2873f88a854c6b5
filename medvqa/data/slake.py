"""SLAKE (Liu et al., ISBI 2021; CC BY 4.0): BoKelvin/SLAKE on the hub or a copy, official types.

English 4,919 / 1,053 / 1,061 rows, Chinese 4,916 / 1,046 / 1,033. Within a language the splits
share no picture. The languages are split differently, so the plain splits, which hold both, share
142 of the 180 test pictures with training. One English training row (qid 1622) has an empty answer,
so training needs `max_bad_rows=1`.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medvqa.config.data import RowsConfig
from medvqa.config.errors import UserError
from medvqa.data.bad_rows import BadRows
from medvqa.data.example import Example, ImageSource
from medvqa.data.rows import row_texts
from medvqa.data.storage.archive import safe_name
from medvqa.data.storage.files import file_text, named_images
from medvqa.data.storage.hub import hub_file

HUB_NAME = "BoKelvin/SLAKE"
# The authors' own archive calls the second file otherwise than the hub does.
FILES = {
    "train": ("train.json",),
    "validation": ("validation.json", "validate.json"),
    "test": ("test.json",),
}
SPLITS = tuple(f"{split}{language}" for language in ("", "_en", "_zh") for split in (*FILES, "all"))
COLUMNS = ("qid", "img_name", "question", "answer", "answer_type", "q_lang")


def load(config: RowsConfig, seed: int, bad_rows: BadRows) -> list[Example]:
    """Return the rows of a split; the seed is not needed.

    Args:
        config: Split `train`, `validation`, `test` or `all`; with `_en` or `_zh` behind it, those
            of one language.
        seed: Unused.
        bad_rows: Takes unusable rows.

    Raises:
        UserError: If the split is unknown, or a file, an image or a column is missing.
    """
    if config.split not in SPLITS:
        raise UserError(f"slake has no split {config.split!r}; it has {', '.join(SPLITS)}")
    directory = Path(config.path) if config.path else None
    name, _, language = config.split.partition("_")
    paths = {
        split: _file(directory, names, config.revision)
        for split, names in FILES.items()
        if name in (split, "all")
    }
    if directory is not None:
        images = named_images(directory / "imgs")
    else:
        archive = hub_file(HUB_NAME, None, "imgs.zip", revision=config.revision)
        images = named_images(archive.with_suffix(""))
    examples = []
    for split, path in paths.items():
        for number, row in enumerate(_rows(path)):
            with bad_rows.row():
                place = f"{path}, row {number}"
                _check_columns(place, row)
                if language in ("", row["q_lang"]):
                    examples.append(_example(place, row, images, split))
    return examples


def _file(directory: Path | None, names: tuple[str, ...], revision: str | None) -> Path:
    for name in names:
        if directory is not None and (directory / name).is_file():
            return directory / name
    return hub_file(HUB_NAME, directory, names[0], revision=revision)


def _rows(path: Path) -> list[Any]:
    try:
        rows = json.loads(file_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"{path} is no JSON: {error}") from error
    if not isinstance(rows, list):
        raise UserError(f"{path} is no list of rows but {type(rows).__name__}")
    return rows


def _check_columns(place: str, row: object) -> None:
    if not isinstance(row, dict):
        raise UserError(f"{place} is no row but {type(row).__name__}")
    missing = [column for column in COLUMNS if column not in row]
    if missing:
        raise UserError(f"{place}: no column {', '.join(missing)}; found {', '.join(row)}")


def _example(
    place: str, row: Mapping[str, Any], images: Mapping[str, ImageSource], split: str
) -> Example:
    texts = row_texts(place, row, *COLUMNS)
    stated = texts["answer_type"].upper()
    if stated not in ("OPEN", "CLOSED"):
        raise UserError(f"{place}: answer_type is {texts['answer_type']!r}, not OPEN or CLOSED")
    try:
        name = safe_name(texts["img_name"])
    except UserError as error:
        raise UserError(f"{place}: {error}") from error
    if name not in images:
        raise UserError(f"{place}: image {name} is not in imgs")
    return Example(
        id=texts["qid"],
        images=(images[name],),
        question=texts["question"],
        answers=(texts["answer"],),
        answer_type="open" if stated == "OPEN" else "closed",
        type_origin="official",
        source="slake",
        split=split,
        image_ids=(f"slake/{name}",),
    )
