"""The mode of tracking: the config's, the variable's, or by the key."""

from pathlib import Path

import pytest

from medvqa.config.errors import UserError
from medvqa.config.tracking import TrackingMode
from medvqa.tracking.wandb_mode import resolve_mode

pytestmark = pytest.mark.usefixtures("no_wandb_account")
KEY = {"WANDB_API_KEY": "0" * 40}


@pytest.mark.parametrize(
    ("wanted", "environment", "mode"),
    [
        ("auto", {}, "offline"),
        ("auto", KEY, "online"),
        ("auto", {"WANDB_MODE": "online"}, "offline"),
        ("auto", {**KEY, "WANDB_MODE": "offline"}, "offline"),
        ("online", KEY, "online"),
        ("online", {**KEY, "WANDB_MODE": "disabled"}, "disabled"),
        ("offline", {**KEY, "WANDB_MODE": "online"}, "offline"),
        ("disabled", {**KEY, "WANDB_MODE": "online"}, "disabled"),
        ("disabled", {"WANDB_MODE": "offline"}, "disabled"),
    ],
)
def test_the_variable_can_only_make_the_configs_mode_stricter(
    wanted: str, environment: dict[str, str], mode: str
) -> None:
    assert resolve_mode(TrackingMode[wanted], environment) == mode


def test_a_key_that_wandb_login_has_filed_makes_auto_online(tmp_path: Path) -> None:
    from wandb.sdk.lib.urls import DEFAULT_BASE_URL

    host = DEFAULT_BASE_URL.removeprefix("https://")
    (tmp_path / "netrc").write_text(f"machine {host} login user password {'0' * 40}\n")
    assert resolve_mode(TrackingMode.auto, {}) == "online"


def test_online_without_a_key_is_one_clear_line() -> None:
    with pytest.raises(
        UserError, match=r"tracking\.mode=online needs a W&B key: run `wandb login`"
    ):
        resolve_mode(TrackingMode.online, {})


def test_an_unknown_mode_lists_the_known_ones() -> None:
    with pytest.raises(UserError, match="WANDB_MODE=on is unknown; use one of disabled, off"):
        resolve_mode(TrackingMode.auto, {"WANDB_MODE": "on"})
