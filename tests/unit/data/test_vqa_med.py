"""VQA-Med: the real rows of 2019 with empty files as pictures, and a small copy in its layout."""

import io
import zipfile
from collections import Counter

import pytest
from PIL import Image

from medvqa.config.data import SourceConfig
from medvqa.config.errors import UserError
from medvqa.data.image import load_rgb
from medvqa.data.pool import load_examples, load_pool
from tests.copies import picture

TRAIN = "ImageClef-2019-VQA-Med-Training"
VALIDATION = "ImageClef-2019-VQA-Med-Validation"
TEST = "VQAMed2019Test"
REFERENCES = "VQAMed2019_Test_Questions_w_Ref_Answers.txt"
CATEGORIES = {1: "Modality", 2: "Plane", 3: "Organ", 4: "Abnormality"}


def config(path, split, **settings):
    return SourceConfig(name="vqa_med_2019", path=path and str(path), split=split, **settings)


def load(path, split="test"):
    return load_examples(config(path, split), seed=0)


def png(gray=50):
    buffer = io.BytesIO()
    Image.new("L", (8, 8), gray).save(buffer, "PNG")
    return buffer.getvalue()


def write_categories(folder, suffix, images, **lines):
    (folder / "QAPairsByCategory").mkdir(parents=True)
    (folder / images).mkdir()
    (folder / images / "synpic1.jpg").write_bytes(png())
    for number, category in CATEGORIES.items():
        text = lines.get(category, f"synpic1|what {category.lower()}?|some {category.lower()}\n")
        path = folder / "QAPairsByCategory" / f"C{number}_{category}_{suffix}.txt"
        path.write_text(text, encoding="utf-8")


def write_test(folder, text, *members, encoding="utf-8"):
    (folder / TEST).mkdir(exist_ok=True)
    (folder / TEST / REFERENCES).write_bytes(text.encode(encoding))
    members = members or ("VQAMed2019_Test_Images/synpic1.jpg", "__MACOSX/._synpic1.jpg")
    with zipfile.ZipFile(folder / TEST / "VQAMed2019_Test_Images.zip", "w") as archive:
        for member in members:
            archive.writestr(member, png())
    return folder


@pytest.fixture
def copy(tmp_path):
    write_categories(tmp_path / TRAIN, "train", "Train_images")
    write_categories(tmp_path / VALIDATION, "val", "Val_images")
    return write_test(tmp_path, "synpic1|plane|what plane is this?|axial\r\n\r\n")


@pytest.fixture(scope="module")
def real(shared, tmp_path_factory):
    root = tmp_path_factory.mktemp("vqa_med_2019")
    for folder, images in (("train", "Train_images"), ("valid", "Val_images")):
        texts = shared / "data" / "vqa_med_2019_text" / folder / "QAPairsByCategory"
        (root / folder / images).mkdir(parents=True)
        (root / folder / "QAPairsByCategory").symlink_to(texts)
        for path in texts.iterdir():
            for line in path.read_text(encoding="utf-8").splitlines():
                (root / folder / images / f"{line.partition('|')[0]}.jpg").touch()
    return root


@pytest.mark.parametrize(
    ("split", "size", "num_images", "types"),
    [
        ("train", 12792, 3200, {"closed": 1739, "open": 11053}),
        ("validation", 2000, 500, {"closed": 275, "open": 1725}),
    ],
)
def test_the_counts_are_the_published_ones(real, split, size, num_images, types):
    examples = load(real, split)
    assert (len(examples), len({e.image_ids for e in examples})) == (size, num_images)
    assert Counter(e.answer_type for e in examples) == types
    assert {e.type_origin for e in examples} == {"rule"}


def test_closed_in_the_real_training_rows_is_yes_no_or_a_listed_choice(real):
    closed = [e for e in load(real, "train") if e.answer_type == "closed"]
    answers = Counter(e.answers[0] for e in closed)
    assert sum(answers[answer] for answer in ("yes", "no")) == 1184 + 110
    assert {a for a in answers if a not in ("yes", "no")} == {
        "t1",
        "t2",
        "flair",
        "contrast",
        "noncontrast",
    }
    assert Counter(e.id.rpartition("-")[2] for e in closed) == {
        "modality": 1629,
        "abnormality": 110,
    }


def test_pictures_that_vqa_rad_has_too_carry_the_same_name(real, shared):
    rad = load_examples(
        SourceConfig(name="vqa_rad", path=str(shared / "data" / "vqa_rad"), split="all"), seed=0
    )
    rad_images = {e.image_ids for e in rad}
    shared_images = {
        split: len({e.image_ids for e in load(real, split)} & rad_images)
        for split in ("train", "validation")
    }
    assert shared_images == {"train": 32, "validation": 6}


def test_the_white_space_of_the_real_rows_is_cleaned(real):
    texts = [t for e in load(real, "validation") for t in (e.question, *e.answers)]
    assert "spine, tethered cord" in texts  # written with no-break spaces
    assert all(text == " ".join(text.split()) for text in texts)


def test_ids_name_split_picture_and_category(copy):
    everything = load(copy, "all")
    assert [e.id for e in everything] == [
        *(f"train-synpic1-{c.lower()}" for c in CATEGORIES.values()),
        *(f"validation-synpic1-{c.lower()}" for c in CATEGORIES.values()),
        "test-synpic1-plane",
    ]
    assert {e.image_ids for e in everything} == {("synpic1.jpg",)}
    assert load_rgb(everything[0].images[0]).getpixel((0, 0)) == (50, 50, 50)


def test_a_second_question_of_a_category_gets_a_number(copy):
    write_test(copy, "synpic1|plane|which?|pa\nsynpic1|organ|what?|spine\nsynpic1|plane|how?|ap\n")
    names = ["test-synpic1-plane", "test-synpic1-organ", "test-synpic1-plane-2"]
    assert [e.id for e in load(copy)] == names


@pytest.mark.parametrize(
    ("reference", "answers"),
    [
        ("axial", ("axial",)),
        ("2", ("2",)),
        ("breast#spine and contents", ("breast", "spine and contents")),
        ("aml (angiomyolipoma)", ("aml (angiomyolipoma)", "aml")),
        ("(iatrogenic) pneumoperitoneum", ("(iatrogenic) pneumoperitoneum", "pneumoperitoneum")),
        (
            "tumor (cyst), left#(old) scar",
            ("tumor (cyst), left", "tumor, left", "(old) scar", "scar"),
        ),
        ("# (mass)#", ("(mass)",)),
    ],
)
def test_marks_in_a_reference_give_several_right_answers(copy, reference, answers):
    write_test(copy, f"synpic1|abnormality|what is wrong?|{reference}\n")
    assert load(copy)[0].answers == answers


def test_brackets_outside_the_test_set_belong_to_the_answer(tmp_path):
    line = "synpic1|how was it taken?|ct w/contrast (iv)\n"
    write_categories(tmp_path / TRAIN, "train", "Train_images", Modality=line)
    assert load(tmp_path, "train")[0].answers == ("ct w/contrast (iv)",)


@pytest.mark.parametrize(
    ("question", "answer", "answer_type"),
    [
        ("is this a ct scan?", "yes", "closed"),
        ("is this normal?", "No", "closed"),
        ("is this a t1 weighted, t2 weighted, or flair image?", "flair", "closed"),
        ("is this a contrast or noncontrast mri?", "noncontrast (mri)", "closed"),
        ("what plane is this?", "axial", "open"),
        ("which organ or region is this?", "breast", "open"),
    ],
)
def test_a_question_is_closed_where_it_offers_the_answer(copy, question, answer, answer_type):
    write_test(copy, f"synpic1|modality|{question}|{answer}\n")
    assert load(copy)[0].answer_type == answer_type


def test_unpacked_test_pictures_are_read_too(copy):
    with zipfile.ZipFile(copy / TEST / "VQAMed2019_Test_Images.zip") as archive:
        archive.extractall(copy / TEST)
    (copy / TEST / "VQAMed2019_Test_Images.zip").unlink()
    assert load_rgb(load(copy)[0].images[0]).size == (8, 8)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("synpic1|plane|what plane?", "line 2 has 3 columns, expected 4: image_id|category|que"),
        ("synpic1|plane|what plane?|axial|ap", "line 2 has 5 columns, expected 4"),
        ("synpic1|plane||axial", "line 2 has no question"),
        ("synpic1|plane|what plane?| ", "line 2 has no answer"),
        ("synpic1|plane|what plane?|#", "line 2 has no answer"),
        ("synpic1|axial|what plane?|plane", "line 2: category is 'axial'; known: modality, plane"),
        ("synpic9|plane|what plane?|pa", "line 2: image synpic9.jpg is not in VQAMed2019_Test_Im"),
        ("../../a|plane|what plane?|pa", "line 2: image ../../a.jpg is not in VQAMed2019_Test_Im"),
    ],
)
def test_a_bad_line_is_named_or_skipped(copy, line, message):
    write_test(copy, f"synpic1|plane|what plane?|axial\n{line}\n")
    with pytest.raises(UserError) as caught:
        load(copy)
    assert f"{REFERENCES}, {message}" in str(caught.value)
    pool = load_pool(config(copy, "test", max_bad_rows=1), seed=0)
    assert (len(pool.examples), len(pool.skipped)) == (1, 1)


def test_a_training_line_with_a_category_is_refused(tmp_path):
    line = "synpic1|plane|what plane?|axial\n"
    write_categories(tmp_path / TRAIN, "train", "Train_images", Plane=line)
    with pytest.raises(UserError, match=r"C2_Plane_train\.txt, line 1 has 4 columns, expected 3"):
        load(tmp_path, "train")


def test_another_encoding_is_named(copy):
    write_test(copy, "synpic1|plane|où?|axial\n", encoding="latin-1")
    with pytest.raises(UserError, match=r"Ref_Answers\.txt is not UTF-8 text \(byte 15\)"):
        load(copy)


def test_an_empty_file_is_an_error(copy):
    write_test(copy, "\n")
    with pytest.raises(UserError, match="vqa_med_2019: split 'test' has no rows"):
        load(copy)


def test_a_zip_file_that_was_cut_off_is_named(copy):
    path = copy / TEST / "VQAMed2019_Test_Images.zip"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(UserError, match=r"Test_Images\.zip is no complete ZIP file"):
        load(copy)


def test_a_zip_file_that_leads_out_of_its_folder_is_refused(copy):
    write_test(copy, "synpic1|plane|what plane?|axial\n", "/tmp/synpic1.jpg")
    with pytest.raises(UserError, match=r"Test_Images\.zip: .*leads out"):
        load(copy)


def test_what_is_missing_is_named(copy, tmp_path):
    with pytest.raises(UserError, match="no split 'val'; it has train, validation, test, all"):
        load(copy, "val")
    with pytest.raises(UserError, match=r"needs data\.path=.*zenodo"):
        load(None)
    with pytest.raises(UserError, match=f"nowhere has no folder {TRAIN} or train"):
        load(tmp_path / "nowhere", "train")
    (copy / VALIDATION / "QAPairsByCategory" / "C3_Organ_val.txt").unlink()
    with pytest.raises(UserError, match=r"cannot read .*C3_Organ_val\.txt: No such file"):
        load(copy, "validation")
    (copy / TEST / "VQAMed2019_Test_Images.zip").unlink()
    with pytest.raises(UserError, match=r"neither .* nor VQAMed2019_Test_Images\.zip"):
        load(copy)


# --- 2020 and 2021: rows without category, references in a file of their own ----------------------


def write_rows(folder, files, images, names):
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    (folder / images).mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        (folder / images / f"{name}.jpg").write_bytes(picture(number))


@pytest.fixture
def later_years(tmp_path):
    """Both years side by side, as their archives unpack."""
    trained = tmp_path / "VQA-Med-2020-Task1-VQAnswering-TrainVal-Sets"
    write_rows(
        trained / "VQAMed2020-VQAnswering-TrainingSet",
        {"VQAnswering_2020_Train_QA_pairs.txt": "synpic1|is this image normal?|no\n"},
        *("VQAnswering_2020_Train_images", ["synpic1"]),
    )
    write_rows(
        trained / "VQAMed2020-VQAnswering-ValidationSet",
        {"VQAnswering_2020_Val_QA_Pairs.txt": "synpic2|what abnormality is seen?|cyst\n"},
        *("VQAnswering_2020_Val_images", ["synpic2"]),
    )
    write_rows(
        tmp_path / "VQA-TestSet-ReferenceAnswers-VQAMed2020-Task1",
        {
            "VQAMed2020-Task1-VQAnswering-Test-Questions.txt": "synpic3|what is abnormal?\n",
            "VQAMed2020-Task1-VQAnswering-Test-ReferenceAnswers.txt": "synpic3|a|b (c)\n",
        },
        *("Task1-2020-VQAnswering-Test-Images", ["synpic3"]),
    )
    write_rows(
        tmp_path / "VQA-Med-2021-Tasks-1-2-NewValidationSets",
        {"VQA-Med-2021-VQAnswering-Task1-New-ValidationSet.txt": "synpic4|what is it?|mass\n"},
        *("ImageCLEF-2021-VQA-Med-New-Validation-Images", ["synpic4"]),
    )
    write_rows(
        tmp_path / "Task1-VQA-2021-TestSet-w-GroundTruth",
        {
            "Task1-VQA-2021-TestSet-Questions.txt": "synpic5|what is it?\n",
            "Task1-VQA-2021-TestSet-ReferenceAnswers.txt": "synpic5|mass|tumor||\n",
        },
        *("images/VQA-500-Images", ["synpic5"]),
    )
    return tmp_path


def load_year(year, path, split):
    source = SourceConfig(name=f"vqa_med_{year}", path=str(path), split=split)
    return load_examples(source, seed=0)


def test_later_years_have_rows_without_category_and_several_references(later_years):
    (trained,) = load_year(2020, later_years, "train")
    assert (trained.id, trained.answers, trained.answer_type) == (
        "train-synpic1",
        ("no",),
        "closed",
    )
    (asked,) = load_year(2020, later_years, "test")
    assert (asked.question, asked.answers) == ("what is abnormal?", ("a", "b (c)"))
    assert asked.images[0].read() == picture(0)
    (newer,) = load_year(2021, later_years, "test")
    assert (newer.source, newer.answers) == ("vqa_med_2021", ("mass", "tumor"))


def test_training_rows_of_2021_are_those_of_2020_with_its_validation_set(later_years):
    assert [e.image_ids[0] for e in load_year(2021, later_years, "train")] == [
        *("synpic1.jpg", "synpic2.jpg"),
    ]
    assert len(load_year(2021, later_years, "all")) == 4


def test_a_question_without_a_reference_is_named(later_years):
    folder = later_years / "Task1-VQA-2021-TestSet-w-GroundTruth"
    (folder / "Task1-VQA-2021-TestSet-ReferenceAnswers.txt").write_text("synpic6|mass\n")
    with pytest.raises(UserError, match=r"Questions\.txt, line 1 has no answer"):
        load_year(2021, later_years, "test")
