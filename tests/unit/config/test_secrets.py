import logging
import sys

import pytest

from medvqa.config.secrets import MaskingFormatter, masked, masked_text, masked_values


@pytest.mark.parametrize(
    ("override", "kept"),
    [
        ("tracking.api_key=abc", "tracking.api_key=***"),
        ("+hub.token='a b'", "+hub.token=***"),
        ("data.path=https://x.org/d?token=abc&v=1", "data.path=https://x.org/d?token=***&v=1"),
        ("data.path=https://me:abc@x.org/d", "data.path=https://***@x.org/d"),
        ("data.path=/a/me@x.org/d", "data.path=/a/me@x.org/d"),
        ("+x={password: abc, seed: 1}", "+x={password: ***, seed: 1}"),
        ("WANDB_API_KEY=abc", "WANDB_API_KEY=***"),
        ("evaluation.max_new_tokens=32", "evaluation.max_new_tokens=32"),
        ("model.max_length_tokens=2048", "model.max_length_tokens=2048"),
        ("data=monkey", "data=monkey"),
        ("it needs a W&B key: run `wandb login`", "it needs a W&B key: run `wandb login`"),
        ("write key=value, or key='a=b'", "write key=value, or key='a=b'"),
        ("model.revision=hf_abcdefghijklmnopqrst", "model.revision=***"),
        ("hydra.job.env_set.HF_TOKEN=abc", "hydra.job.env_set.HF_TOKEN=***"),
        ("hydra.job.env_set={HF_TOKEN: abc, A: b}", "hydra.job.env_set={HF_TOKEN: ***, A: b}"),
    ],
)
def test_secrets_are_masked_and_nothing_else_is(override: str, kept: str) -> None:
    assert masked([override]) == [kept]


def test_a_config_loses_its_secrets_at_any_depth_and_nothing_else():
    config = {
        "hydra": {
            "job": {"env_set": {"HF_TOKEN": "abc", "A": "b"}},
            "overrides": ["x.api_key=abc"],
        },
        "data": {"path": "https://me:abc@host/d", "limit": 3, "image_key": None},
        "evaluation": {"max_new_tokens": 32, "bertscore": {"enabled": False}},
    }
    assert masked_values(config) == {
        "hydra": {
            "job": {"env_set": {"HF_TOKEN": "***", "A": "b"}},
            "overrides": ["x.api_key=***"],
        },
        "data": {"path": "https://***@host/d", "limit": 3, "image_key": None},
        "evaluation": {"max_new_tokens": 32, "bertscore": {"enabled": False}},
    }


def test_the_value_of_a_secret_variable_is_masked_wherever_it_stands(monkeypatch):
    monkeypatch.setenv("MY_API_KEY", "correct-horse-battery")
    monkeypatch.setenv("OTHER", "staple-in-plain-sight")
    assert masked_text("said correct-horse-battery twice") == "said *** twice"
    assert masked_text("staple-in-plain-sight") == "staple-in-plain-sight"


def test_a_log_line_and_its_traceback_hold_no_secret():
    try:
        raise ValueError("token=abc")
    except ValueError:
        arguments = ("medvqa", logging.ERROR, "f.py", 1, "key=%s", ("abc",), sys.exc_info())
    line = MaskingFormatter("%(message)s").format(logging.LogRecord(*arguments))
    assert line.startswith("key=***\nTraceback") and "abc" not in line
