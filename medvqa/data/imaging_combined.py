"""alvinl29/medical-imaging-combined: its columns are documented nowhere, so they are detected.

Either `image, question, answer`, or `image, conversations`; the first if it has both, and no other
column is read. Each turn of a conversation is an example of its own, without the turns before it.
Answers of yes or no count as closed.
"""

from pathlib import Path
from typing import Any

from medvqa.config.data import RowsConfig
from medvqa.config.errors import UserError
from medvqa.data.bad_rows import BadRows
from medvqa.data.columns import COLUMNS, column_examples
from medvqa.data.conversations import turns
from medvqa.data.example import Example
from medvqa.data.image import image_id
from medvqa.data.rows import yes_no_type
from medvqa.data.storage.hub import RowImage, load_rows

HUB_NAME = "alvinl29/medical-imaging-combined"


def load(config: RowsConfig, seed: int, bad_rows: BadRows) -> list[Example]:
    """Return the rows of a split, by whatever name the set has it; the seed is not needed.

    Raises:
        UserError: If a file or an image is missing, or the columns are none of the known ones.
    """
    directory = Path(config.path) if config.path else None
    rows = load_rows(
        HUB_NAME, directory, split=config.split, revision=config.revision, columns=("image",)
    )
    place = f"{directory or HUB_NAME} {config.split}"
    if set(COLUMNS) <= set(rows.column_names):
        return column_examples(rows, place, bad_rows, source="imaging_combined", split=config.split)
    if "conversations" in rows.column_names:
        return _from_conversations(rows, place, config.split, bad_rows)
    raise UserError(
        f"{place}: needs the columns image, question and answer, or image and conversations; "
        f"found {', '.join(rows.column_names)}"
    )


def _from_conversations(rows: Any, place: str, split: str, bad_rows: BadRows) -> list[Example]:
    images_only = rows.select_columns(["image"])
    examples: list[Example] = []
    for number, row in enumerate(rows.select_columns(["conversations"])):
        with bad_rows.row():
            said = turns(f"{place}[{number}]: conversations", row["conversations"])
            image = RowImage(f"{place}[{number}]", images_only, number)
            key = image_id(image)
            examples += [
                Example(
                    id=f"{split}-{number}-{turn}",
                    images=(image,),
                    question=question,
                    answers=(answer,),
                    answer_type=yes_no_type(answer),
                    type_origin="rule",
                    source="imaging_combined",
                    split=split,
                    image_ids=(key,),
                )
                for turn, (question, answer) in enumerate(said)
            ]
    return examples
