"""SLAKE (Liu et al., ISBI 2021; CC BY 4.0): BoKelvin/SLAKE on the hub or a copy, official types.

English 4,919 / 1,053 / 1,061 rows, Chinese 4,916 / 1,046 / 1,033. Within a language the splits
share no picture. The languages are split differently, so the plain splits, which hold both, share
142 of the 180 test pictures with training. One English training row (qid 1622) has an empty answer,
so training needs `max_bad_rows=1`.
"""

from collections.abc import Mapping
from pathlib import Path

from medvqa.config.data import RowsConfig
from medvqa.config.errors import UserError
from medvqa.data.bad_rows import BadRows
from medvqa.data.example import Example, ImageSource
from medvqa.data.rows import check_split, official_type, row_texts
from medvqa.data.storage.archive import safe_name
from medvqa.data.storage.files import json_rows, named_images
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
    check_split(config, SPLITS)
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
        for number, row in enumerate(json_rows(path)):
            with bad_rows.row(f"{path}, row {number}"):
                stated = row.get("q_lang") if isinstance(row, dict) else None
                if language in ("", stated) or stated is None:
                    examples.append(_example(row, images, split))
    return examples


def _file(directory: Path | None, names: tuple[str, ...], revision: str | None) -> Path:
    for name in names:
        if directory is not None and (directory / name).is_file():
            return directory / name
    return hub_file(HUB_NAME, directory, names[0], revision=revision)


def _example(row: object, images: Mapping[str, ImageSource], split: str) -> Example:
    texts = row_texts(row, *COLUMNS)
    name = safe_name(texts["img_name"])
    if name not in images:
        raise UserError(f"image {name} is not in imgs")
    return Example(
        id=texts["qid"],
        images=(images[name],),
        question=texts["question"],
        answers=(texts["answer"],),
        answer_type=official_type(texts["answer_type"]),
        type_origin="official",
        source="slake",
        split=split,
        image_ids=(f"slake/{name}",),
    )
