"""ImageCLEF 2019 VQA-Med (Ben Abacha et al., CLEF 2019; CC BY 4.0): the authors' files.

Training and validation rows come from `QAPairsByCategory`, test rows from the reference answers.
It states no answer types. Here a row is closed if its question offers the answer: yes or no, or one
of the choices that it lists ("contrast or noncontrast?"), as the official labels of VQA-RAD and
SLAKE mean it (`rows.offered_type`). "What plane is this?" is open, although all planes, organs and
modalities come from lists of 16, 10 and 36, because the question does not show the list. So of the
training rows 1,629 of category modality, 110 of abnormality and none of plane and organ are closed,
1,739 in all, and 11,053 open; in validation 275 and 1,725.

The pictures are MedPix's and keep its names, as VQA-RAD's do: by name, 32 training and 6 validation
pictures are also in VQA-RAD.
"""

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from medvqa.config.data import RowsConfig
from medvqa.config.errors import UserError
from medvqa.data.bad_rows import BadRows
from medvqa.data.example import Example, ImageSource
from medvqa.data.rows import check_split, offered_type, row_texts
from medvqa.data.storage.files import file_text, named_images

CATEGORIES = ("modality", "plane", "organ", "abnormality")
OPTIONAL_PART = re.compile(r"\s*\([^()]*\)")


class Layout(NamedTuple):
    """Where a split lies.

    Attributes:
        folders: The authors' name, and another that is accepted.
        files: Each with the category of its rows; none where a column names it.
        images: Folder of the pictures, or a ZIP file of that name.
    """

    folders: tuple[str, ...]
    files: dict[str, str | None]
    images: str


def _by_category(suffix: str) -> dict[str, str | None]:
    return {
        f"QAPairsByCategory/C{number}_{category.capitalize()}_{suffix}.txt": category
        for number, category in enumerate(CATEGORIES, start=1)
    }


LAYOUTS = {
    "train": Layout(
        ("ImageClef-2019-VQA-Med-Training", "train"), _by_category("train"), "Train_images"
    ),
    "validation": Layout(
        ("ImageClef-2019-VQA-Med-Validation", "valid"), _by_category("val"), "Val_images"
    ),
    "test": Layout(
        ("VQAMed2019Test",),
        {"VQAMed2019_Test_Questions_w_Ref_Answers.txt": None},
        "VQAMed2019_Test_Images",
    ),
}


def load(config: RowsConfig, seed: int, bad_rows: BadRows) -> list[Example]:
    """Return the rows of `train`, `validation`, `test` or `all`; the seed is not needed.

    Raises:
        UserError: If the split is unknown, or a file or an image is missing, naming file and line.
    """
    check_split(config, (*LAYOUTS, "all"))
    if config.path is None:
        raise UserError(
            "vqa_med_2019 needs data.path=, a directory with the unpacked folders of "
            "https://zenodo.org/records/10499039"
        )
    examples: list[Example] = []
    for split in LAYOUTS if config.split == "all" else (config.split,):
        examples += _load_split(Path(config.path), split, bad_rows)
    return examples


def _load_split(directory: Path, split: str, bad_rows: BadRows) -> list[Example]:
    names, files, image_folder = LAYOUTS[split]
    folders = [directory / name for name in names if (directory / name).is_dir()]
    if not folders:
        raise UserError(f"data.path={directory} has no folder {' or '.join(names)}")
    folder = folders[0]
    images = {
        PurePosixPath(name).stem: image
        for name, image in named_images(folder / image_folder).items()
    }
    examples = []
    num_taken: Counter[str] = Counter()
    for file, category in files.items():
        path = folder / file
        for number, line in enumerate(file_text(path).split("\n"), start=1):
            if line.strip():
                with bad_rows.row():
                    cells = _cells(f"{path}, line {number}", line, category)
                    key = f"{split}-{cells['image_id']}-{cells['category']}"
                    num_taken[key] += 1
                    name = key if num_taken[key] == 1 else f"{key}-{num_taken[key]}"
                    examples.append(_example(f"{path}, line {number}", name, cells, images, split))
    return examples


def _cells(place: str, line: str, category: str | None) -> dict[str, str]:
    """Return image_id, category, question and answer; a run of white space becomes one space."""
    columns = ["image_id", *([] if category else ["category"]), "question", "answer"]
    cells = [" ".join(cell.split()) for cell in line.split("|")]
    if len(cells) != len(columns):
        raise UserError(
            f"{place} has {len(cells)} columns, expected {len(columns)}: {'|'.join(columns)}"
        )
    texts = row_texts(place, dict(zip(columns, cells, strict=True)), *columns)
    if texts.setdefault("category", category or "") not in CATEGORIES:
        known = ", ".join(CATEGORIES)
        raise UserError(f"{place}: category is {texts['category']!r}; known: {known}")
    return texts


def _example(
    place: str, name: str, cells: Mapping[str, str], images: Mapping[str, ImageSource], split: str
) -> Example:
    image = cells["image_id"]
    if image not in images:
        raise UserError(f"{place}: image {image}.jpg is not in {LAYOUTS[split].images}")
    is_reference = split == "test"
    answers = _reference_answers(cells["answer"]) if is_reference else (cells["answer"],)
    if not answers:
        raise UserError(f"{place} has no answer")
    return Example(
        id=name,
        images=(images[image],),
        question=cells["question"],
        answers=answers,
        answer_type=offered_type(cells["question"], answers),
        type_origin="rule",
        source="vqa_med_2019",
        split=split,
        image_ids=(f"{image}.jpg",),
    )


def _reference_answers(text: str) -> tuple[str, ...]:
    """Return the right answers: `#` stands between them, a part in brackets may be left out.

    The authors define both marks for the test set only; elsewhere brackets belong to the answer.
    """
    answers = []
    for answer in text.split("#"):
        answers += [answer.strip(), OPTIONAL_PART.sub("", answer).strip()]
    return tuple(answer for answer in dict.fromkeys(answers) if answer)
