"""Whether a run is tracked in W&B online, offline or not at all; W&B's refusals in one line."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from medvqa.config.errors import UserError, first_line
from medvqa.config.tracking import TrackingConfig, TrackingMode

MODES = ("disabled", "offline", "online")


def resolve_mode(config_mode: TrackingMode, environment: Mapping[str, str]) -> str:
    """Return W&B's mode: the config's, unless `WANDB_MODE` asks for less; `auto` goes by the key.

    Raises:
        UserError: If the variable is no mode, or online is asked for without a key.
    """
    mode, limit = config_mode.value, environment.get("WANDB_MODE") or "online"
    if mode == "disabled":
        return mode
    if limit not in MODES:
        raise UserError(f"WANDB_MODE={limit} is unknown; use one of {', '.join(MODES)}")
    if "disabled" in (mode, limit) or "offline" in (mode, limit):
        return "disabled" if limit == "disabled" else "offline"
    if has_key(environment):
        return "online"
    if mode == "online":
        raise UserError(
            "tracking.mode=online needs a W&B key: run `wandb login`, set WANDB_API_KEY, or use "
            "tracking.mode=offline"
        )
    return "offline"


def check_key(config: TrackingConfig) -> None:
    """Raise the `UserError` of `resolve_mode` early, if the config insists on online tracking.

    Otherwise a missing key is no mistake, and to look for one would import W&B.
    """
    if config.mode is TrackingMode.online:
        resolve_mode(config.mode, os.environ)


def has_key(environment: Mapping[str, str]) -> bool:
    """Return whether a W&B key is set or filed; asks no server."""
    if environment.get("WANDB_API_KEY"):
        return True
    # Where a key is filed depends on the server, whose address W&B's settings know.
    import wandb
    from wandb.sdk.lib.wbauth import read_netrc_auth

    if os.environ.get("WANDB_MODE") == "":  # W&B would take it for a mode
        del os.environ["WANDB_MODE"]
    with refusals():
        return read_netrc_auth(host=wandb.setup().settings.base_url) is not None


@contextmanager
def refusals() -> Iterator[None]:
    """Turn what W&B says about its settings, which the environment may hold, into one line."""
    try:
        yield
    except UserError:
        raise
    except ValueError as error:
        details = error.errors()[0] if hasattr(error, "errors") else {}
        names = ".".join(name for name in details.get("loc", ()) if isinstance(name, str))
        reason = f"{names}: {details['msg']}" if names else first_line(error)
        raise UserError(
            f"W&B refuses its settings ({reason}); mend the variable WANDB_..., or use "
            "tracking.mode=disabled"
        ) from error
