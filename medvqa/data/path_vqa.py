"""PathVQA (He et al. 2020; MIT): the hub's copy, 19,654 / 6,259 / 6,719 rows.

It states no answer types, so answers of yes or no count as closed: about half of the rows.
"""

from pathlib import Path

from medvqa.config.data import RowsConfig
from medvqa.config.errors import UserError
from medvqa.data.bad_rows import BadRows
from medvqa.data.columns import COLUMNS, column_examples
from medvqa.data.example import Example
from medvqa.data.storage.hub import load_rows

HUB_NAME = "flaviagiammarino/path-vqa"
SPLITS = ("train", "validation", "test")


def load(config: RowsConfig, seed: int, bad_rows: BadRows) -> list[Example]:
    """Return the rows of `train`, `validation`, `test` or `all`; the seed is not needed.

    Raises:
        UserError: If the split is unknown, or a file, an image or a column is missing.
    """
    if config.split not in (*SPLITS, "all"):
        raise UserError(f"path_vqa has no split {config.split!r}; it has {', '.join(SPLITS)}, all")
    directory = Path(config.path) if config.path else None
    examples: list[Example] = []
    for split in SPLITS if config.split == "all" else (config.split,):
        rows = load_rows(
            HUB_NAME, directory, split=split, revision=config.revision, columns=COLUMNS
        )
        place = f"{directory or HUB_NAME} {split}"
        examples += column_examples(rows, place, bad_rows, source="path_vqa", split=split)
    return examples
