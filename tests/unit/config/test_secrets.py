import pytest

from medvqa.config.secrets import masked


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
    ],
)
def test_secrets_are_masked_and_nothing_else_is(override: str, kept: str) -> None:
    assert masked([override]) == [kept]
