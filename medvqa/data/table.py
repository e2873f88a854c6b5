"""Any table with pictures, questions and answers -> `Example`; see `docs/data.md`.

`tables.yaml` lists the data sets that need no code. A set may state no answer types. Then a
question is closed if its answer is yes or no, or if it has options. A table of conversations gives
one example per turn, without the turns before it. Only the mapped columns are ever read: others may
quote the answer.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medvqa.config.data import RowsConfig
from medvqa.config.errors import UserError
from medvqa.data.bad_rows import BadRows
from medvqa.data.columns import cell, chosen_columns, roots
from medvqa.data.conversations import turns
from medvqa.data.example import AnswerType, Example, ImageSource
from medvqa.data.options import REPEATED, options_of, right_option
from medvqa.data.rows import (
    as_list,
    check_split,
    difficulty_of,
    official_type,
    row_texts,
    without_markers,
    yes_no_type,
)
from medvqa.data.storage.hub import hub_file, load_rows
from medvqa.data.storage.row_files import TableRows, open_table
from medvqa.data.table_pictures import TablePictures
from medvqa.data.tables import Table, tables


def load(config: RowsConfig, seed: int, bad_rows: BadRows) -> list[Example]:
    """Return the rows of a split, or of all; the seed is not needed.

    Raises:
        UserError: If the split is unknown, or a file, an image or a column is missing.
    """
    table = tables()[config.name]
    splits = tuple(table.files) if table.files else table.splits
    if splits:
        check_split(config, (*splits, "all"))
    examples: list[Example] = []
    for split in splits if splits and config.split == "all" else (config.split,):
        examples += table_examples(table, config, split, bad_rows)
    return examples


def table_examples(
    table: Table, config: RowsConfig, split: str, bad_rows: BadRows
) -> list[Example]:
    """Return the examples of one split; keeps no picture in memory."""
    examples: list[Example] = []
    for subset in table.subsets or (config.subset,):
        rows = _rows(table, config, split, subset)
        roles = {**(table.columns or {}), **(config.columns or {})}
        if config.difficulty is not None:
            roles["difficulty"] = config.difficulty
        columns = chosen_columns(roles, rows.columns, rows.place)
        reader = _Reader(
            rows=rows,
            columns=columns,
            pictures=TablePictures(table, config, rows, columns["image"]),
            source=config.name if config.name != "table" else _source(config),
            prefix=f"{split}-{subset}" if table.subsets else split,
        )
        examples += reader.read(split, bad_rows)
    return examples


def _source(config: RowsConfig) -> str:
    return Path(config.path).stem if config.path else str(config.repository).rpartition("/")[2]


def _rows(table: Table, config: RowsConfig, split: str, subset: str | None) -> TableRows:
    repository = config.repository or table.repository
    pattern = table.files[split] if table.files else None
    if config.path is not None:
        path = Path(config.path).expanduser()
        if subset is not None and (path / subset).is_dir():
            path = path / subset
        return open_table(path, split, pattern=pattern)
    if repository is None:
        raise UserError(
            f"data={config.name} needs data.path=, a table or a directory of tables"
            + (", or data.repository=, a data set of the hub" if not table.files else "")
        )
    if pattern is not None:
        return open_table(hub_file(repository, None, pattern, revision=config.revision), split)
    rows = load_rows(repository, split=split, revision=config.revision, subset=subset)
    place = " ".join(part for part in (repository, subset, split) if part)
    return TableRows(place, rows.column_names, Path(), rows)


@dataclass(frozen=True)
class _Reader:
    """Turns the rows of one table into examples.

    Attributes:
        source: Name of the data set.
        prefix: What the ids of rows without one begin with.
    """

    rows: TableRows
    columns: Mapping[str, Any]
    pictures: TablePictures
    source: str
    prefix: str

    def read(self, split: str, bad_rows: BadRows) -> list[Example]:
        """Return the examples of the rows that belong to the split."""
        present = self.rows.columns
        names = [name for spec in self.columns.values() for name in roots(spec, present)]
        texts = [name for name in dict.fromkeys(names) if not self.rows.holds_bytes(name)]
        examples: list[Example] = []
        splits: set[str] = set()
        for number, row in enumerate(self.rows.texts(texts)):
            with bad_rows.row("" if isinstance(row, UserError) else self.rows.named(number)):
                if isinstance(row, UserError):
                    raise row
                if not isinstance(row, Mapping):
                    raise UserError(f"is no row but {type(row).__name__}")
                stated = str(cell(row, self.columns["split"])) if "split" in self.columns else split
                splits.add(stated)
                if split in (stated, "all"):
                    examples += self._examples(number, row, stated)
        if splits and split not in {*splits, "all"}:
            known = ", ".join(sorted(splits))
            raise UserError(f"{self.rows.place} has no rows of split {split!r}; it has {known}")
        return examples

    def _examples(self, number: int, row: Mapping[str, Any], split: str) -> list[Example]:
        cells = {role: cell(row, spec) for role, spec in self.columns.items() if role != "image"}
        images = self.pictures.of_row(row, number)
        questions = list(_questions(cells, f"{self.prefix}-{number}", num_images=len(images)))
        keys = self._image_ids(cells, images)
        options = options_of(cells.get("options"))
        stated = cells.get("answer_type")
        examples = []
        for name, question, answers in questions:
            if options:
                answers = tuple(right_option(answer, options) for answer in answers)
                question = REPEATED.sub("", question)
            rule: AnswerType = "closed" if options else yes_no_type(answers[0])
            examples.append(
                Example(
                    id=name,
                    images=images,
                    question=question,
                    answers=answers,
                    answer_type=official_type(str(stated).strip()) if stated else rule,
                    type_origin="official" if stated else "rule",
                    source=self.source,
                    split=split,
                    image_ids=keys,
                    options=options,
                    difficulty=difficulty_of(cells.get("difficulty")),
                )
            )
        return examples

    def _image_ids(
        self, cells: Mapping[str, Any], images: Sequence[ImageSource]
    ) -> tuple[str, ...]:
        stated = cells.get("image_id")
        if stated is not None and len(images) == 1:
            return (str(stated),)
        return self.pictures.ids(images)


def _questions(
    cells: Mapping[str, Any], name: str, *, num_images: int
) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """Yield id, question and answers of each example of a row."""
    if "question" not in cells:
        pairs = turns(cells["conversations"], num_images=num_images)
        for turn, (question, answer) in enumerate(pairs):
            yield f"{name}-{turn}", question, (answer,)
        return
    references = as_list(cells["answer"])
    texts = row_texts(cells, "question", *(["id"] if "id" in cells else []))
    answers = [row_texts({"answer": answer}, "answer")["answer"] for answer in references]
    if not answers:
        raise UserError("has no answer")
    question = without_markers("question", texts["question"], num_images=num_images)
    yield texts.get("id", name), question, tuple(answers)
