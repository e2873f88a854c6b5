"""Small copies of data sets in their true layouts; pictures are drawn, texts are made up."""

import io
import json
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image


def picture(seed: int, *, size: int = 24, file_format: str = "JPEG") -> bytes:
    """Return an encoded picture that no other seed gives."""
    noise = np.random.default_rng(seed).integers(0, 255, (size, size), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, file_format)
    return buffer.getvalue()


def pubmed_vision(
    folder: Path, *, num_rows: int = 40, num_archives: int = 4, size: int = 24, seed: int = 0
) -> Path:
    """Write both configurations: rows about one to three images, in archives by number."""
    members: dict[int, dict[str, bytes]] = {n: {} for n in range(num_archives)}
    rows = []
    for number in range(num_rows):
        names = [f"pmc_{number}_{k}.jpg" for k in range(1 + number % 3)]
        for k, name in enumerate(names):
            data = picture(seed + 10 * number + k, size=size)
            members[number * num_archives // num_rows][name] = data
        rows.append(
            {
                "image": [f"images/{name}" for name in names],
                "id": f"pmc_{number}",
                "modality": "Computed Tomography",
                "body_part": "Chest",
                "conversations": [
                    {"from": "human", "value": f"What does figure {number} show?"},
                    {"from": "gpt", "value": f"Finding {number} of the lung."},
                ],
            }
        )
    for name in ("PubMedVision_Alignment_VQA", "PubMedVision_InstructionTuning_VQA"):
        (folder / f"{name}.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")
    for number, files in members.items():
        with zipfile.ZipFile(folder / f"images_{number}.zip", "w") as archive:
            archive.mkdir(f"images_{number}")
            for name, data in files.items():
                archive.writestr(f"images_{number}/{name}", data)
    return folder


def robailleo(folder: Path, *, num_rows: int = 30) -> Path:
    """Write `train` in the hub's layout: captions, and yes/no questions in every third row."""
    import datasets

    text = datasets.Value("string")
    columns = {
        "image": [{"bytes": picture(1000 + n), "path": None} for n in range(num_rows)],
        "conversations": [[{"content": "a", "role": "user"}]] * num_rows,
        "image_description": [f"Question: a Answer: {n}" for n in range(num_rows)],
        "question": [
            f"Is finding {n} there?" if n % 3 == 0 else f"Describe picture {n}."
            for n in range(num_rows)
        ],
        "answer": ["yes" if n % 3 == 0 else f"A lesion of {n} mm." for n in range(num_rows)],
        "dataset_source": ["ROCO"] * num_rows,
        "modality": ["CT"] * num_rows,
        "body_part": ["chest"] * num_rows,
        "sample_id": [f"roco_{n}" for n in range(num_rows)],
        "instruction": ["b"] * num_rows,
    }
    features = datasets.Features(
        {
            **dict.fromkeys(columns, text),
            "image": datasets.Image(),
            "conversations": datasets.List({"content": text, "role": text}),
        }
    )
    (folder / "data").mkdir(parents=True)
    datasets.Dataset.from_dict(columns, features=features).to_parquet(
        folder / "data" / "train-00000-of-00001.parquet"
    )
    return folder


def imaging_combined(folder: Path, *, num_rows: int = 30) -> Path:
    """Write `train` with a picture and a conversation of one turn in each row."""
    import datasets

    text = datasets.Value("string")
    columns = {
        "image": [{"bytes": picture(2000 + n), "path": None} for n in range(num_rows)],
        "conversations": [
            [
                {"from": "human", "value": f"<image>\nIs sign {n} seen?"},
                {"from": "gpt", "value": "no" if n % 2 else f"Sign {n} is seen."},
            ]
            for n in range(num_rows)
        ],
    }
    features = datasets.Features(
        image=datasets.Image(), conversations=datasets.List({"from": text, "value": text})
    )
    folder.mkdir(parents=True)
    datasets.Dataset.from_dict(columns, features=features).to_parquet(
        folder / "train-00000-of-00001.parquet"
    )
    return folder


def vqa_med_2019(folder: Path, *, num_images: int = 8) -> Path:
    """Write the training folder: four questions per picture, one of each category."""
    root = folder / "ImageClef-2019-VQA-Med-Training"
    (root / "QAPairsByCategory").mkdir(parents=True)
    (root / "Train_images").mkdir()
    names = [f"synpic{n}" for n in range(num_images)]
    for n, name in enumerate(names):
        (root / "Train_images" / f"{name}.jpg").write_bytes(picture(3000 + n))
    asked = {"Modality": "is this a ct scan?|yes", "Plane": "what plane?|axial"}
    asked |= {"Organ": "what organ?|lung", "Abnormality": "what is wrong?|a mass"}
    for number, (category, said) in enumerate(asked.items(), start=1):
        lines = "".join(f"{name}|{said}\n" for name in names)
        path = root / "QAPairsByCategory" / f"C{number}_{category}_train.txt"
        path.write_text(lines, encoding="utf-8")
    return folder
