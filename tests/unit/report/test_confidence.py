"""Confidence and probes of a grid: the report's numbers are those of the predictions."""

import csv
import json
import math
import shutil

import numpy as np
import pytest

from medvqa.config.data import SourceConfig
from medvqa.config.evaluation import EvaluationConfig, ProbeName
from medvqa.data.pool import load_examples
from medvqa.evaluation.confidence import calibration_error
from medvqa.evaluation.evaluate import Evaluator
from medvqa.evaluation.generate import Answer
from medvqa.evaluation.probing import ask_probes
from medvqa.report.arms import read_arms
from medvqa.report.confidence import arm_probes
from medvqa.report.matching import Settings
from medvqa.report.report import main_report
from medvqa.report.runs import read_runs
from medvqa.report.study import read_study
from medvqa.tracking.record import read_lines, write_text
from tests.synthetic_grid import guesser, write_cell

OVERRIDES = ("evaluation.bertscore.enabled=false", "training.warmup_steps=1")
SURE = {"mixed": 0.95, "open_first": 0.6}  # log-probabilities, whatever the answer


def add_confidence(directory, level):
    """Write a log-probability into each final answer; right ones get a larger one."""
    path = directory / "evaluation/final/test/predictions.jsonl"
    rng = np.random.default_rng(len(directory.name))
    rows = read_lines(path)
    for row in rows:
        spread = 0.04 * rng.random() + 0.005 * row["exact_match"]
        row["logprob_mean"] = math.log(level + spread)
        row["agreement"] = level
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def add_probes(directory, examples, seed, *, credulous):
    config = EvaluationConfig(probes=list(ProbeName))
    evaluator = Evaluator({"test": examples}, config, directory=directory, seed=seed)

    def answer(place, questions):
        return [
            Answer(text=question.id.rpartition("_")[2] if credulous else question.answers[0])
            for question in questions
        ]

    ask_probes(evaluator, answer, 1)


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    place = tmp_path_factory.mktemp("grid")
    pool, asked = (
        load_examples(SourceConfig(name="phantom", split=split, limit=limit), seed=0)
        for split, limit in (("train", 40), ("test", 40))
    )
    limit = f"data.evaluation.test.limit={len(asked)}"
    for ordering in SURE:
        for seed in (1, 2):
            name = f"{ordering}-{seed}"
            write_cell(
                place / name,
                [*OVERRIDES, limit, f"curriculum={ordering}", f"seed={seed}"],
                pool,
                {"test": asked},
                guesser(asked, ability=0.5, base="tiny", seed=name),
            )
            add_confidence(place / name, SURE[ordering])
            add_probes(place / name, asked, seed, credulous=ordering == "mixed")
    return place


@pytest.fixture(scope="module")
def study(grid):
    return read_study([grid], Settings(num_samples=100))


def final(study):
    return {
        c.arm.ordering: c for c in study.confidence if (c.phase, c.group) == ("final", "overall")
    }


def test_an_arms_calibration_error_is_the_mean_of_its_runs(grid, study):
    for ordering, own in final(study).items():
        errors = []
        for seed in (1, 2):
            rows = read_lines(grid / f"{ordering}-{seed}/evaluation/final/test/predictions.jsonl")
            confidence = [math.exp(row["logprob_mean"]) for row in rows]
            errors.append(calibration_error(confidence, [row["exact_match"] for row in rows]))
        assert own.measures["calibration_error"].mean == pytest.approx(np.mean(errors))
        assert sum(one["count"] for one in own.curves["bins"]) == 80


def test_the_overconfident_arm_is_named_by_a_test(study):
    (difference,) = study.overconfidence
    measures = final(study)
    gap = [measures[arm.ordering].measures["overconfidence"].mean
           for arm in (difference.a, difference.b)]  # fmt: skip
    assert difference.crossed.difference.mean == pytest.approx(gap[0] - gap[1])
    assert difference.p_holm < 0.05
    assert (gap[0] > gap[1]) == (difference.a.ordering == "mixed")


def test_the_agreement_of_rephrasings_stands_beside_the_confidence(study):
    agreements = {name: own.measures["agreement"].mean for name, own in final(study).items()}
    assert agreements == pytest.approx(SURE)


def test_an_arms_rates_are_over_all_its_seeds(study):
    rates = {(p.arm.ordering, p.probe): p for p in study.probes}
    assert rates["mixed", "leading"].rates["affirms"].mean == 1
    assert rates["open_first", "leading"].rates["affirms"].mean == 0
    assert rates["mixed", "leading"].num_seeds == 2
    assert rates["mixed", "none_of_the_above"].rates or rates["mixed", "none_of_the_above"].reason


def test_a_base_without_log_probabilities_has_no_row(study):
    assert {c.phase for c in study.confidence} == {"final"}


def test_tables_files_and_page_show_the_same_numbers(grid, study, tmp_path, capsys):
    main_report([str(grid), "--out", str(tmp_path), "--samples", "100", "--no-pictures"])
    shown = capsys.readouterr().out
    page = (tmp_path / "report.html").read_text()
    tables = (tmp_path / "tables.md").read_text()
    with (tmp_path / "confidence.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for own in final(study).values():
        score = own.measures["calibration_error"]
        text = f"{score.mean:.3f} [{score.low:.3f}, {score.high:.3f}]"
        assert text in page and text in tables
        key = (own.arm.name, "overall", "calibration_error")
        (row,) = (r for r in rows if (r["arm"], r["group"], r["measure"]) == key)
        assert float(row["mean"]) == score.mean
    assert "test: hallucination probes of the final models" in page
    assert "differences of arms in overconfidence" in shown
    assert (tmp_path / "plots" / "confidence_test.png").stat().st_size > 10_000
    assert page.count("<svg") >= 3 and "http" not in page.split("</style>")[0]


def test_a_probe_that_some_seeds_lack_is_named(grid, tmp_path):
    copy = tmp_path / "grid"
    shutil.copytree(grid, copy)
    shutil.rmtree(copy / "mixed-2/evaluation/probes/blank")
    arms, _ = read_arms(read_runs([copy]))
    probes, notes = arm_probes(arms)
    assert any("1 of 2 runs have the probe blank on test" in note for note in notes)
    assert not [p for p in probes if (p.arm.ordering, p.probe) == ("mixed", "blank")]
