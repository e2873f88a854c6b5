"""ImageCLEF VQA-Med 2019 to 2021 (Ben Abacha et al., CLEF; CC BY 4.0): the authors' files.

In 2019, training and validation rows come from `QAPairsByCategory`, test rows from the reference
answers. In 2020 and 2021 a row is `image|question|answer`, and the test's questions and reference
answers are files of their own. The training rows of 2021 are all rows of 2020 but the test's.

VQA-Med states no answer types. Here a row is closed if its question offers the answer
(`rows.offered_type`). That is yes or no, or a choice that the question lists ("contrast or
noncontrast?"). The official labels of VQA-RAD and SLAKE use closed in this sense. "What plane is
this?" is open, because it does not show the list of 16 planes. The same holds for the lists of 10
organs and 36 modalities. In 2019, 1,739 training rows are closed (1,629 of modality, 110 of
abnormality) and 11,053 open. In validation they are 275 and 1,725.

The pictures are MedPix's and keep its names, as VQA-RAD's do: by name, 32 training and 6 validation
pictures are also in VQA-RAD.
"""

import re
from collections import Counter
from collections.abc import Mapping
from functools import cache
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import yaml

from medvqa.config.data import RowsConfig
from medvqa.config.errors import UserError
from medvqa.data.bad_rows import BadRows
from medvqa.data.example import Example
from medvqa.data.rows import check_split, offered_type, row_texts
from medvqa.data.storage.files import file_text, named_images

CATEGORIES = ("modality", "plane", "organ", "abnormality")
OPTIONAL_PART = re.compile(r"\s*\([^()]*\)")


class Layout(NamedTuple):
    """Where rows of a split lie.

    Attributes:
        folders: Names of the folder, anywhere below the given one: the authors', and others that
            are accepted.
        files: Each with the category of its rows; none where a column or nothing names it.
        images: Folder of the pictures, or a ZIP file of that name; the first that is there.
        references: File of the right answers, where `files` hold the questions alone.
    """

    folders: list[str]
    files: dict[str, str | None]
    images: list[str]
    references: str | None = None


@cache
def layouts_of(name: str) -> dict[str, tuple[Layout, ...]]:
    """Return the layouts of each split of a year."""
    text = Path(__file__).with_name("vqa_med.yaml").read_text(encoding="utf-8")
    splits = yaml.safe_load(text)[name]
    return {
        split: tuple(Layout(**values) for values in layouts) for split, layouts in splits.items()
    }


def load(config: RowsConfig, seed: int, bad_rows: BadRows) -> list[Example]:
    """Return the rows of `train`, `validation`, `test` or `all`; the seed is not needed.

    Raises:
        UserError: If the split is unknown, or a file or an image is missing, naming file and line.
    """
    layouts = layouts_of(config.name)
    check_split(config, (*layouts, "all"))
    if config.path is None:
        place = "https://zenodo.org/records/10499039"
        if config.name != "vqa_med_2019":
            place = "https://github.com/abachaa and AIcrowd (docs/data.md)"
        raise UserError(
            f"{config.name} needs data.path=, a directory with the unpacked folders of {place}"
        )
    examples: list[Example] = []
    for split in layouts if config.split == "all" else (config.split,):
        for layout in layouts[split]:
            files = _Files(config.name, split, layout, Path(config.path).expanduser())
            examples += files.read(bad_rows)
    return examples


class _Files:
    """The files of one layout in a directory."""

    def __init__(self, source: str, split: str, layout: Layout, directory: Path) -> None:
        self.source, self.split, self.layout = source, split, layout
        self.has_category = source == "vqa_med_2019"
        names = layout.folders
        folders = [directory / name for name in names if (directory / name).is_dir()]
        folders += [path for name in names for path in sorted(directory.glob(f"*/{name}"))]
        if not folders:
            raise UserError(f"data.path={directory} has no folder {' or '.join(names)}")
        self.folder = folders[0]
        images = [self.folder / name for name in layout.images]
        there = [i for i in images if i.is_dir() or i.with_name(f"{i.name}.zip").is_file()]
        self.images = {
            PurePosixPath(name).stem: image
            for name, image in named_images((there or images)[0]).items()
        }

    def read(self, bad_rows: BadRows) -> list[Example]:
        """Return the rows in the files' order."""
        references = self._references()
        num_taken: Counter[str] = Counter()
        examples = []
        for file, category in self.layout.files.items():
            path = self.folder / file
            for number, line in enumerate(file_text(path).split("\n"), start=1):
                if line.strip():
                    with bad_rows.row(f"{path}, line {number}"):
                        cells = self._cells(line, category)
                        parts = (self.split, cells["image_id"], cells.get("category"))
                        key = "-".join(part for part in parts if part)
                        num_taken[key] += 1
                        name = key if num_taken[key] == 1 else f"{key}-{num_taken[key]}"
                        examples.append(self._example(name, cells, references))
        return examples

    def _cells(self, line: str, category: str | None) -> dict[str, str]:
        """Return image_id, question, and what else the line holds; white space is one space."""
        columns = ["image_id", "question"]
        if self.has_category and category is None:
            columns.insert(1, "category")
        if self.layout.references is None:
            columns.append("answer")
        cells = [" ".join(cell.split()) for cell in line.split("|")]
        if len(cells) != len(columns):
            raise UserError(
                f"has {len(cells)} columns, expected {len(columns)}: {'|'.join(columns)}"
            )
        texts = row_texts(dict(zip(columns, cells, strict=True)), *columns)
        if self.has_category and texts.setdefault("category", category or "") not in CATEGORIES:
            known = ", ".join(CATEGORIES)
            raise UserError(f"category is {texts['category']!r}; known: {known}")
        return texts

    def _references(self) -> dict[str, tuple[str, ...]]:
        """Return the right answers by image, where they are a file of their own."""
        if self.layout.references is None:
            return {}
        references = {}
        for line in file_text(self.folder / self.layout.references).split("\n"):
            name, *answers = (" ".join(cell.split()) for cell in line.split("|"))
            if any(answers):
                references[name] = tuple(dict.fromkeys(answer for answer in answers if answer))
        return references

    def _example(
        self,
        name: str,
        cells: Mapping[str, str],
        references: Mapping[str, tuple[str, ...]],
    ) -> Example:
        image = cells["image_id"]
        if image not in self.images:
            raise UserError(f"image {image}.jpg is not in {self.layout.images[0]}")
        if self.layout.references is not None:
            answers = references.get(image, ())
        elif self.has_category and self.split == "test":
            answers = _reference_answers(cells["answer"])
        else:
            answers = (cells["answer"],)
        if not answers:
            raise UserError("has no answer")
        return Example(
            id=name,
            images=(self.images[image],),
            question=cells["question"],
            answers=answers,
            answer_type=offered_type(cells["question"], answers),
            type_origin="rule",
            source=self.source,
            split=self.split,
            image_ids=(f"{image}.jpg",),
        )


def _reference_answers(text: str) -> tuple[str, ...]:
    """Return the right answers: `#` stands between them, a part in brackets may be left out.

    The authors define both marks for the test set of 2019 only; elsewhere brackets belong to the
    answer.
    """
    answers = []
    for answer in text.split("#"):
        answers += [answer.strip(), OPTIONAL_PART.sub("", answer).strip()]
    return tuple(answer for answer in dict.fromkeys(answers) if answer)
