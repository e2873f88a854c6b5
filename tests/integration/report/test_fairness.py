"""What may not be compared is refused with the reason, or marked on request."""

import pytest

from medvqa.config.errors import UserError
from medvqa.report.matching import Settings
from medvqa.report.page import page
from medvqa.report.study import read_study
from medvqa.report.table import latex, markdown
from medvqa.report.tables import tables
from medvqa.report.thumbnails import read_pictures
from medvqa.tracking.record import write_json


def polluted(directory):
    overlaps = {"image_overlap": 0.5, "item_overlap": 0.25}
    write_json(directory / "contamination.json", {"sets": {"test": overlaps}})


UNEQUAL = {
    "budget": (["training.max_steps=30"], "optimiser steps: 20 and 30"),
    "batch": (
        ["training.accumulation_steps=2"],
        "examples per step: 16 and 32; examples trained on: 320 and 640",
    ),
    "test set": (["data.evaluation.test.limit=40"], "test questions: 60 (.*) and 40"),
    "normaliser": (["evaluation.normalizer=vqa"], "normaliser: medical and vqa"),
    "tolerance": (["evaluation.numeric_tolerance=0.1"], "numeric tolerance: 0.05 and 0.1"),
    "pixels": (["model.max_pixels=8192"], "pixels per image: 4096 to 16384 and 4096 to 8192"),
    "contamination": (
        ["contamination=report"],
        "contaminated pool: 50% of test's pictures .*, 25%",
    ),
}


@pytest.mark.parametrize("name", UNEQUAL)
def test_an_unfair_pair_is_refused_with_the_reason_or_marked(name, written, asked, tmp_path):
    overrides, reason = UNEQUAL[name]
    steps = "training.max_steps=20"
    written(tmp_path / "a", steps, "curriculum=mixed")
    examples = asked[:40] if name == "test set" else asked
    other = [o for o in overrides if not o.startswith("data.")]
    written(tmp_path / "b", steps, "curriculum=open_first", *other, examples=examples)
    if name == "contamination":
        polluted(tmp_path / "b")
    with pytest.raises(UserError, match=reason) as caught:
        read_study([tmp_path])
    assert "--within KEY" in str(caught.value)
    marked = read_study([tmp_path], Settings(allow_unequal=True, num_samples=20))
    assert all(c.unequal for c in marked.comparisons)
    for table in tables(marked):
        assert "†" in markdown(table)
        assert r"$^\dagger$" in latex(table)
    assert '"unequal":"against' in page(marked, read_pictures(()), title="")


def test_a_pool_whose_overlap_was_dropped_is_clean(written, tmp_path):
    for name, ordering in (("a", "mixed"), ("b", "open_first")):
        written(tmp_path / name, f"curriculum={ordering}", "contamination=drop")
        polluted(tmp_path / name)
    comparisons = read_study([tmp_path], Settings(num_samples=20)).comparisons
    assert comparisons
    assert not any(c.unequal for c in comparisons)


def test_within_compares_equal_budgets_only(written, tmp_path):
    for steps in (10, 20):
        for ordering in ("mixed", "open_first"):
            written(
                tmp_path / f"{ordering}{steps}",
                *(f"training.max_steps={steps}", f"curriculum={ordering}"),
            )
    with pytest.raises(UserError, match="optimiser steps: 10 and 20"):
        read_study([tmp_path])
    settings = Settings(within=("training.max_steps",), num_samples=20)
    comparisons = read_study([tmp_path], settings).comparisons
    budgets = {(c.a.rest, c.b.rest) for c in comparisons}
    assert budgets == {("max_steps=10", "max_steps=10"), ("max_steps=20", "max_steps=20")}


def test_other_models_are_never_a_pair(written, tmp_path):
    written(tmp_path / "a", "curriculum=mixed")
    written(tmp_path / "b", "curriculum=mixed", "model.name=other/model")
    study = read_study([tmp_path])
    assert len(study.arms) == 2
    assert study.comparisons == ()
