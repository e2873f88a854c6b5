"""A search as a command: a kill repeats nothing, a failure costs one trial, mistakes come first."""

import csv
import os
import re
import signal

import pytest

from medvqa.config.errors import UserError
from medvqa.sweep.space import read_space
from medvqa.sweep.trials import ended, open_study, tell
from tests import conftest
from tests.conftest import ROOT, forked, wait_for
from tests.forked import CLI
from tests.integration.test_sweep import runs, sweep_of

SPACE = read_space({"a": {"choices": [8, 16]}, "b": {"low": 1e-5, "high": 1e-3, "log": True}})
SEARCH = (
    *("experiment=search_lora", "lora.dropout=0.05"),
    *("training.max_steps=2", "training.micro_batch_size=4", "training.warmup_steps=1"),
    *("training.checkpoint_every=1", "data.evaluation.validation.limit=8"),
    *("evaluation.max_new_tokens=4", "evaluation.batch_size=8", "evaluation.bootstrap_samples=50"),
    *("evaluation.bertscore.enabled=false", "evaluation.zero_shot=false", "tracking=disabled"),
    "tracking.pictures=false",
)
TWO = (*SEARCH, "hydra.sweeper.num_trials=2")


def start(directory, *overrides):
    return conftest.start(directory, *overrides, start_new_session=True)


def call(directory, *overrides):
    answer = forked(directory, *overrides, imports=CLI).wait()
    return answer.returncode, answer.stderr + answer.stdout


def trials_of(sweep):
    with (sweep / "trials.csv").open() as file:
        return list(csv.DictReader(file))


def opened(directory, **more):
    return open_study(directory, SPACE, **{"direction": "maximize", "seed": 0, **more})


@pytest.mark.slow
def test_a_search_killed_after_its_first_trial_goes_on_and_repeats_nothing(tmp_path):
    search = start(tmp_path, *TWO)
    wait_for(lambda: list(tmp_path.glob("multirun/*/trials.csv")))
    sweep = sweep_of(tmp_path)
    wait_for(lambda: len(list(sweep.glob("*/status.json"))) == 2)  # the second one is under way
    os.killpg(search.pid, signal.SIGKILL)
    search.communicate()
    (first,) = trials_of(sweep)
    before = (sweep / first["directory"] / "run.json").read_bytes()
    begun = {path.parent.name for path in sweep.glob("*/status.json")}

    code, output = call(tmp_path, *TWO)
    assert code == 0, output
    trials = trials_of(sweep)
    assert [trial["state"] for trial in trials] == ["finished"] * 2
    assert trials[0] == first
    assert (sweep / first["directory"] / "run.json").read_bytes() == before
    assert len({trial["training.learning_rate"] for trial in trials}) == 2
    assert {trial["directory"] for trial in trials} == {run.name for run in runs(sweep)}
    assert {trial["directory"] for trial in trials} == begun
    best = max(trials, key=lambda trial: float(trial["headline"]))
    values = [f"{key}={best[key]}" for key in ("lora.r", "training.learning_rate")]
    assert output.splitlines()[-1].split() == [
        "python",
        "train.py",
        *SEARCH,
        "hydra.mode=RUN",
        *values,
    ]

    code, again = call(tmp_path, *TWO)
    assert (code, again.splitlines()[-1]) == (0, output.splitlines()[-1]), again
    assert trials_of(sweep) == trials
    assert " started" not in again


def suggested(seed, choices):
    """Return what Optuna's own sampler suggests first for such a seed."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed))
    known = read_space({"x": {"choices": choices}})
    return [study.ask(known).params["x"] for _ in choices]


@pytest.mark.slow
def test_a_trial_that_fails_is_recorded_and_the_search_goes_on(tmp_path):
    # A pixel budget too small for one patch can only be seen once the processor is loaded.
    own = tmp_path / "conf" / "experiment" / "pixels.yaml"
    own.parent.mkdir(parents=True)
    text = (ROOT / "conf" / "experiment" / "search_lora.yaml").read_text()
    space = "    space:\n      model.max_pixels: {choices: [64, 16384]}\n"
    own.write_text(text[: text.index("    space:")] + space)
    said = ("experiment=pixels", "model.min_pixels=16", *SEARCH[1:], "hydra.sweeper.num_trials=2")
    wanted = [64, 16384]
    seed = next(seed for seed in range(99) if suggested(seed, wanted) == wanted)
    known = ("--config-dir", str(tmp_path / "conf"), *said)
    code, output = call(tmp_path, *known, f"hydra.sweeper.seed={seed}")
    assert code == 0, output
    failed, finished = trials_of(sweep_of(tmp_path))
    assert (failed["state"], failed["headline"], failed["model.max_pixels"]) == ("failed", "", "64")
    assert "is not obeyed" in failed["error"]
    assert (finished["state"], finished["model.max_pixels"]) == ("finished", "16384")
    assert "1 of 2 trials failed" in output
    best = ["python", "train.py", *known[:-1], "hydra.mode=RUN", "model.max_pixels=16384"]
    assert output.splitlines()[-1].split() == best


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (
            "+hydra.sweeper.space={lora.alpha: {choices: []}}",
            "lora.alpha: .*choices.* must contain one or more",
        ),
        (
            "+hydra.sweeper.space={lora.alpha: {low: 3, high: 2}}",
            "lora.alpha: .*low <= high",
        ),
        ("+hydra.sweeper.space={lora.dropot: {choices: [0.1]}}", "did you mean lora.dropout="),
        ("lora.r=8,16", "lora.r=8,16: a search varies hydra.sweeper.space only"),
        ("hydra.sweeper.num_trials=0", "num_trials must be a whole number"),
    ],
)
def test_a_mistake_in_the_space_comes_before_the_first_trial(tmp_path, said, message):
    code, output = call(tmp_path, "experiment=search_lora", said)
    assert code == 2, output
    assert re.search(message, output), output
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (
            ["data=phantom"],
            r"data.evaluation.test holds test rows \(split=test\); use data=phantom_v",
        ),
        (["data=slake_en", "data.path=x"], r"test rows \(split=test_en\)"),
        (["~data.evaluation.validation"], "data.evaluation is empty"),
    ],
)
def test_a_search_never_chooses_on_test_rows(tmp_path, said, message):
    code, output = call(tmp_path, "experiment=search_lora", *said)
    assert code == 2, output
    assert re.search(message, output), output
    assert len(output.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_directory_that_cannot_be_made_is_one_line_with_the_setting(tmp_path):
    (tmp_path / "file").write_text("in the way")
    directory = f"hydra.sweep.dir={tmp_path}/file/search"
    code, output = call(tmp_path, "experiment=search_lora", directory)
    assert code == 2, output
    (line,) = output.splitlines()
    assert line.startswith(f"medvqa: cannot write to {tmp_path}/file/search")
    assert line.endswith("give hydra.sweep.dir=")


def test_a_value_that_no_run_would_accept_is_one_line(tmp_path):
    space = "+hydra.sweeper.space={lora.alpha: {choices: [16, -1]}}"
    code, output = call(tmp_path, "experiment=search_lora", space)
    assert code == 2
    (line,) = output.splitlines()
    assert line.startswith("medvqa: hydra.sweeper.space: lora.alpha=-1: lora.alpha must be")


def test_what_a_killed_search_left_running_is_asked_for_first_and_counts_once(tmp_path):
    study = opened(tmp_path)
    for value in (0.2, 0.7, None):
        tell(study, study.ask(SPACE), value)
    left = study.ask(SPACE).params
    for _ in range(2):  # killed again before it was asked for
        study = opened(tmp_path)
        assert len(ended(study)) == 3
    again = study.ask(SPACE)
    assert again.params == left
    tell(study, again, 0.3)
    assert [trial.value for trial in ended(study)] == [0.2, 0.7, None, 0.3]
    assert study.best_value == 0.7
    known = [trial.params for trial in study.trials]
    assert opened(tmp_path).ask(SPACE).params not in known


def test_another_space_is_refused_in_the_same_directory(tmp_path):
    opened(tmp_path)
    with pytest.raises(UserError, match="another space"):
        opened(tmp_path, direction="minimize")


def test_a_journal_whose_last_line_was_cut_off_goes_on_without_it(tmp_path):
    study = opened(tmp_path)
    first = study.ask(SPACE)
    tell(study, first, 0.5)
    whole = (tmp_path / "search.journal").stat().st_size
    study.ask(SPACE)
    with (tmp_path / "search.journal").open("r+b") as journal:
        journal.truncate(whole + 30)
    (tmp_path / "search.journal.lock").symlink_to("search.journal")  # as a kill leaves it
    study = opened(tmp_path)
    assert [trial.value for trial in ended(study) if trial.value] == [0.5]
    tell(study, study.ask(SPACE), 0.7)
    assert [trial.value for trial in ended(opened(tmp_path)) if trial.value] == [0.5, 0.7]
