"""Rows with the columns image, question and answer -> `Example`."""

from typing import Any

from medvqa.data.bad_rows import BadRows
from medvqa.data.example import Example
from medvqa.data.image import image_id
from medvqa.data.rows import row_texts, yes_no_type
from medvqa.data.storage.hub import RowImage

COLUMNS = ("image", "question", "answer")


def column_examples(
    rows: Any,
    place: str,
    bad_rows: BadRows,
    *,
    source: str,
    split: str,
    id_column: str | None = None,
) -> list[Example]:
    """Return one example a row; answers of yes or no count as closed.

    Reads every picture once for its hash and keeps none. No other column is ever read.

    Args:
        rows: A `datasets.Dataset` with `COLUMNS`, images encoded.
        place: What an error message calls the rows.
        bad_rows: Takes unusable rows.
        source: Name of the data set.
        split: Name of the split.
        id_column: Holds the ids; `<split>-<number>` if there is none.
    """
    texts_only = rows.select_columns(["question", "answer", *([id_column] if id_column else [])])
    images_only = rows.select_columns(["image"])
    examples = []
    for number, row in enumerate(texts_only):
        with bad_rows.row():
            texts = row_texts(f"{place}[{number}]", row, *texts_only.column_names)
            image = RowImage(f"{place}[{number}]", images_only, number)
            examples.append(
                Example(
                    id=texts[id_column] if id_column else f"{split}-{number}",
                    images=(image,),
                    question=texts["question"],
                    answers=(texts["answer"],),
                    answer_type=yes_no_type(texts["answer"]),
                    type_origin="rule",
                    source=source,
                    split=split,
                    image_ids=(image_id(image),),
                )
            )
    return examples
