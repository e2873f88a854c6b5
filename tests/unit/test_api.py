"""A mistake in a call from Python is a `UserError`; settings come as on the command line."""

import pytest

import medvqa.api as api
from medvqa.api import UserError, compose, report, run, score


def test_a_curriculum_of_one_s_own_comes_from_a_folder(tmp_path):
    (tmp_path / "curriculum").mkdir()
    text = "name: short_first\nstages: [{name: short, filter: all, order: easy_first, share: 1}]\n"
    (tmp_path / "curriculum" / "short_first.yaml").write_text(text)
    config = compose(["curriculum=short_first"], config_dir=tmp_path)
    assert config.typed.curriculum.stages[0].name == "short"


def test_evaluation_without_training_is_the_command_s_setting(monkeypatch):
    monkeypatch.setattr(api, "run", lambda config, **_: config)
    assert api.evaluate(["model=tiny"]).typed.only_evaluate


MISTAKES = {
    "a key": (lambda _: compose(["modle=tiny"]), "did you mean model="),
    "a value": (lambda _: compose(["lora.dropout=2"]), r"lora\.dropout must be in"),
    "a text for a list": (lambda _: compose("seed=1"), r"write \['seed=1'\]"),
    "a sweep": (lambda _: compose(["seed=1,2"]), "Ambiguous value|several values"),
    "a folder": (lambda at: compose([], config_dir=at / "no"), "there is no folder"),
    "data": (
        lambda at: run(compose(["data=jsonl", "data.path=no.jsonl"]), directory=at, verbose=False),
        r"cannot read no\.jsonl",
    ),
    "runs": (lambda at: report([at / "no"]), "is no directory"),
    "one directory": (lambda at: report(at / "no"), "is no directory"),
    "a setting": (lambda at: report([at], baselin="x"), "it has within, baseline"),
    "answers": (lambda at: score(at / "no.jsonl"), "cannot read"),
    "an option": (lambda at: score(at, tolerence=1), "it has file, protocol"),
    "a protocol": (lambda at: score(at, "lava"), "'lava' is none of"),
    "protocols": (lambda at: score(at, ["seed"]), "protocol is one text"),
    "a tolerance": (lambda at: score(at, tolerance="x"), "must be a share"),
    "a normalizer": (lambda at: score(at, normalizer="x"), "normalizer is none of medical"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_a_user_error(tmp_path, name):
    mistaken, message = MISTAKES[name]
    with pytest.raises(UserError, match=message):
        mistaken(tmp_path)
