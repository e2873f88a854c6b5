"""robailleo/medical-vision-llm-dataset: 3,000 ROCO captions and 1,793 VQA-RAD training rows.

Question and answer come from the columns `question` and `answer`, the id from `sample_id`
(`roco_*`, `vqa_*`). No other text is read: `image_description` holds "Question: ... Answer: ...",
which would put the answer into the prompt, and `conversations` and `instruction` may quote it.

It states no answer types: answers of yes or no count as closed (940 rows), all others as open. A
ROCO row asks for a caption, so it is open. Training on this set is training on VQA-RAD's pictures.
"""

from pathlib import Path

from medvqa.config.data import RowsConfig
from medvqa.config.errors import UserError
from medvqa.data.bad_rows import BadRows
from medvqa.data.columns import COLUMNS, column_examples
from medvqa.data.example import Example
from medvqa.data.storage.hub import load_rows

HUB_NAME = "robailleo/medical-vision-llm-dataset"
ID_COLUMN = "sample_id"
SPLITS = ("train", "validation")


def load(config: RowsConfig, seed: int, bad_rows: BadRows) -> list[Example]:
    """Return the rows of `train`, `validation` or `all`; the seed is not needed.

    Raises:
        UserError: If the split is unknown, or a file, an image or a column is missing.
    """
    if config.split not in (*SPLITS, "all"):
        raise UserError(f"robailleo has no split {config.split!r}; it has {', '.join(SPLITS)}, all")
    directory = Path(config.path) if config.path else None
    columns = (*COLUMNS, ID_COLUMN)
    examples: list[Example] = []
    for split in SPLITS if config.split == "all" else (config.split,):
        rows = load_rows(
            HUB_NAME, directory, split=split, revision=config.revision, columns=columns
        )
        place = f"{directory or HUB_NAME} {split}"
        examples += column_examples(
            rows, place, bad_rows, source="robailleo", split=split, id_column=ID_COLUMN
        )
    return examples
