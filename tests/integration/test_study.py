"""The study of orderings: its record keeps what happened, its analysis asks what was fixed."""

import itertools
import json
import re
from pathlib import Path

import pytest

from benchmarks import speaking_study
from benchmarks.study import Study, adjusted, analyse
from benchmarks.study_records import bits_of, from_hex, read_record, to_hex
from medvqa.evaluation.comparison import compare_arms
from tests.conftest import ROOT

BUDGETS = (40, 160, 640)
OTHERS = ("closed_first", "closed_only", "easy_first", "interleaved", "open_first", "open_only")
STUDY = ROOT / "docs" / "study"
STUDIES = ("phantom", "vqa_rad")
KINDS_OF_RECORD = ("", "_baselines", "_analysis")


def read_analysis(study: str) -> dict:
    return json.loads((STUDY / f"{study}_analysis.json").read_text())


@pytest.fixture(scope="module")
def kept() -> dict:
    return read_analysis("phantom")


def near(value):
    """Return the value with numbers that may differ in their last digits."""
    if isinstance(value, dict):
        return {name: near(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [near(inner) for inner in value]
    return pytest.approx(value, rel=1e-6, abs=1e-12) if isinstance(value, float) else value


@pytest.mark.parametrize("study", STUDIES)
def test_the_kept_analysis_is_that_of_the_kept_records(study, tmp_path):
    out = tmp_path / "analysis.json"
    analyse(STUDY / f"{study}.json", STUDY / f"{study}_baselines.json", "test", out)
    assert json.loads(out.read_text()) == near(read_analysis(study))


@pytest.mark.parametrize("study", ["speaking", "speaking_phantom"])
def test_the_speaking_study_s_kept_analysis_is_that_of_its_kept_record(study):
    values = speaking_study.analyse(read_record(STUDY / f"{study}.json.gz"))
    assert values == near(read_analysis(study))


@pytest.mark.parametrize("study", STUDIES)
def test_the_results_page_shows_each_difference_of_the_kept_analysis(study):
    page = (STUDY / "results.md").read_text(encoding="utf-8")
    for row in itertools.chain(*read_analysis(study)["families"].values()):
        low, mean, high = (f"{100 * row[name]:+.1f}" for name in ("low", "difference", "high"))
        cells = [f"{row['a']} - {row['b']}", str(row["max_steps"])]
        line = re.escape(" | ".join(cells)) + rf" \|.* {re.escape(f'{mean} [{low}, {high}]')} \|"
        assert re.search(line, page), line


def test_every_cell_of_the_preregistered_grid_is_in_the_record_once_and_with_the_same_code():
    runs = json.loads((STUDY / "phantom.json").read_text())["runs"]
    cells = sorted((run["arm"], run["max_steps"], run["seed"]) for run in runs)
    assert cells == sorted(itertools.product((*OTHERS, "mixed"), BUDGETS, range(1, 6)))
    assert all(run["num_steps"] == run["max_steps"] and not run["dirty"] for run in runs)
    assert len({(run["commit"], run["batch_size"]) for run in runs}) == 1


def test_the_families_are_the_preregistered_ones(kept):
    asked = {
        name: [tuple(row[k] for k in ("a", "b", "max_steps", "set", "questions")) for row in rows]
        for name, rows in kept["families"].items()
    }
    secondary = {
        f"each arm - mixed, {name}": [
            (arm, "mixed", steps, name, "overall") for steps in BUDGETS for arm in OTHERS
        ]
        for name in ("test", "shifted")
    }
    assert asked == secondary | {
        "primary": [
            one
            for steps in BUDGETS
            for one in (
                ("open_first", "closed_only", steps, "test", "closed"),
                ("open_first", "mixed", steps, "test", "overall"),
            )
        ],
        "open_first - closed_only, overall": [
            ("open_first", "closed_only", steps, name, "overall")
            for name in ("test", "shifted")
            for steps in BUDGETS
        ],
    }


def test_holms_correction_is_over_one_family_and_decides_the_verdict(kept):
    from statsmodels.stats.multitest import multipletests

    for rows in kept["families"].values():
        rejected, values, *_ = multipletests([r["p_value"] for r in rows], 0.05, "holm")
        assert [r["holm_p"] for r in rows] == pytest.approx(list(values), rel=1e-9)
        for row, is_rejected in zip(rows, rejected, strict=True):
            better = row["a"] if row["difference"] > 0 else row["b"]
            assert row["verdict"] == (
                f"{better} is better" if is_rejected else "no difference shown"
            )


def test_a_difference_is_a_minus_b_by_seed_and_its_test_knows_the_pairs(kept):
    study = Study(STUDY / "phantom.json")
    row = kept["families"]["primary"][2]
    by_hand, closed_by_arm = [], {row["a"]: [], row["b"]: []}
    for seed in row["seeds"]:
        rates = []
        for arm in (row["a"], row["b"]):
            (run,) = (
                r for r in study.runs
                if (r["arm"], r["max_steps"], r["seed"]) == (arm, row["max_steps"], seed)
            )  # fmt: skip
            bits = from_hex(run["exact_match"]["final"][row["set"]])
            types = study.values["sets"][row["set"]]["types"]
            closed = [bit for bit, kind in zip(bits, types, strict=True) if kind == "c"]
            rates.append(sum(closed) / len(closed))
            closed_by_arm[arm].append(closed)
        by_hand.append(rates[0] - rates[1])
    assert row["by_seed"] == pytest.approx(by_hand)
    assert row["difference"] == pytest.approx(sum(by_hand) / len(by_hand))
    clusters = study.scores.of(row["a"], 40, "closed", sets=[row["set"]]).clusters
    found = compare_arms(
        *closed_by_arm.values(), clusters, seeds_are_paired=True, method="satterthwaite"
    )
    assert row["p_value"] == pytest.approx(found.p_value)


def test_what_could_be_seen_is_at_the_familys_first_step_of_holm(kept):
    row = kept["families"]["primary"][1]
    assert 100 * row["planned_detectable"] == pytest.approx(12, abs=0.5)  # as preregistered
    (alone,) = adjusted([row])
    assert alone["planned_detectable"] < row["planned_detectable"]
    assert alone["observed_detectable"] < row["observed_detectable"]


def test_what_the_page_says_beside_its_tables_holds(kept):
    at_end = {
        (row["arm"], row["max_steps"], row["questions"]): row["exact_match"]
        for row in kept["means"]
        if (row["phase"], row["set"]) == ("final", "test")
    }
    majority = {
        row["questions"]: row["exact_match"]
        for row in kept["baselines"]
        if (row["phase"], row["set"]) == ("majority", "test")
    }
    for arm, kind in itertools.product((*OTHERS, "mixed"), ("overall", "closed")):
        assert at_end[arm, 40, kind] < majority[kind]
    for steps in BUDGETS:
        assert abs(at_end["open_first", steps, "closed"] - at_end["mixed", steps, "closed"]) < 0.04
    for name in ("test", "shifted"):
        fewer = [r for r in kept["families"][f"each arm - mixed, {name}"] if r["a"] != "open_first"]
        assert [r["verdict"] for r in adjusted(fewer)] == [r["verdict"] for r in fewer]
        last = {r["a"]: r["verdict"] for r in fewer if r["max_steps"] == 640}
        assert last.pop("interleaved") == "no difference shown"
        assert set(last.values()) == {"mixed is better"}


def test_the_run_of_the_baselines_repeats_its_cell_of_the_grid_answer_by_answer():
    (again,) = Study(STUDY / "phantom_baselines.json").runs
    cell = Study(STUDY / "phantom.json").runs_of("mixed", 160)[0]
    assert (cell["seed"], cell["order_sha256"]) == (again["seed"], again["order_sha256"])
    assert cell["exact_match"]["final"] == again["exact_match"]["final"]


def test_arms_with_other_seeds_are_not_compared(tmp_path):
    values = json.loads((STUDY / "phantom.json").read_text())
    values["runs"] = [r for r in values["runs"] if (r["arm"], r["seed"]) != ("mixed", 3)]
    path = tmp_path / "record.json"
    path.write_text(json.dumps(values))
    with pytest.raises(SystemExit, match=r"open_first has the seeds.*mixed has \[1, 2, 4, 5\]"):
        Study(path).contrast("open_first", "mixed", 40, "test", "overall")


def write_run(directory: Path, state: str, answers: str) -> None:
    """Write what the recorder reads of a run with three questions."""
    directory.mkdir(parents=True)
    run = {
        "state": state,
        "run_id": "0" * 12,
        "config": {
            "curriculum": {"name": "mixed"},
            "seed": 1,
            "training": {"max_steps": 40, "micro_batch_size": 2, "accumulation_steps": 4},
        },
        "command": ["/secret/machine/train.py"],
        "plan": {"num_steps": 40, "order_sha256": "ab"},
        "git": {"commit": "c" * 40, "dirty": False},
        "started": "2026-11-24T16:00:00+00:00",
        "ended": "2026-11-24T16:01:00+00:00",
        "num_starts": 1,
        "seconds": {"load": 1.0},
        "training": {"final_loss": 0.5},
        "environment": {
            "python": "3.11", "platform": "Linux", "num_cpus": 2, "gpus": [],
            "memory_bytes": 1, "packages": {"torch": "2"},
        },
    }  # fmt: skip
    (directory / "run.json").write_text(json.dumps(run))
    (directory / "status.json").write_text(json.dumps({"seconds": 61.5}))
    (directory / "evaluation" / "final" / "test").mkdir(parents=True)
    rows = [
        {
            "id": f"question-{number}",
            "question": "Is the patient's left lung clear?",
            "prediction": answer,
            "answer_type": "closed" if number else "open",
            "cluster": f"/pictures/{number // 2}.png",
            "exact_match": answer == "yes",
        }
        for number, answer in enumerate(answers.split())
    ]
    lines = "\n".join(json.dumps(row) for row in reversed(rows))
    (directory / "evaluation" / "final" / "test" / "predictions.jsonl").write_text(lines + "\n")


def test_a_record_has_bits_counts_and_times_and_neither_text_nor_path(tmp_path):
    write_run(tmp_path / "grid" / "one", "finished", "No yes lung")
    write_run(tmp_path / "grid" / "two", "running", "no no no")
    values = bits_of([tmp_path / "grid"])
    (run,) = values["runs"]
    assert values["unfinished"] == ["two"]
    assert from_hex(run["exact_match"]["final"]["test"]) == [0, 1, 0]
    assert run["yes_or_no"]["final"]["test"] == {"open": 1, "closed": 1}
    assert (run["batch_size"], run["cell_seconds"]) == (8, 61.5)
    assert values["sets"]["test"]["types"] == "occ"
    assert values["sets"]["test"]["clusters"] == [0, 0, 1]
    text = json.dumps(values)
    assert not any(word in text for word in ("/secret", "/pictures", "lung", str(tmp_path)))


def test_the_kept_records_name_no_path():
    names = [f"{study}{kind}.json" for study in STUDIES for kind in KINDS_OF_RECORD]
    for name in names:
        text = (STUDY / name).read_text()
        assert '"/' not in text and str(ROOT) not in text


def test_runs_that_answered_other_questions_are_not_put_into_one_record(tmp_path):
    write_run(tmp_path / "one", "finished", "no yes no")
    write_run(tmp_path / "two", "finished", "no yes no no")
    with pytest.raises(SystemExit, match="other questions"):
        bits_of([tmp_path])


@pytest.mark.parametrize("bits", [[0, 0, 1], [1], [0] * 9, [1, 0] * 40])
def test_bits_survive_as_digits(bits):
    assert from_hex(to_hex([bool(bit) for bit in bits])) == bits
