"""The command line: `python train.py ...` and `medvqa COMMAND ...`; imports nothing heavy."""

import difflib
import logging
import os
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from medvqa.config import Backend, Config
from medvqa.errors import explain
from medvqa.example import UserError
from medvqa.hardware import num_cuda_devices
from medvqa.record import run_id

log = logging.getLogger("medvqa")

COMMANDS = {
    "train": "train and evaluate; the same as `python train.py` (see `medvqa train --help`)",
    "score": "score a predictions file",
    "build-tiny": "build the embedded tiny base model",
}
HANDLERS = {"score": "medvqa.score:main_score", "build-tiny": "medvqa.tiny:main_build"}


def config_directory() -> str:
    """Return the checkout's `conf`, or the one that an installed wheel carries."""
    checkout = Path(__file__).resolve().parent.parent / "conf"
    return str(checkout) if (checkout / "config.yaml").is_file() else "pkg://medvqa.conf"


def run_name(*, _root_: DictConfig) -> str:
    """Return the run's directory name: the same resolved config gives the same name."""
    choices = _root_.hydra.runtime.choices
    parts = [str(choices.get(group, group)) for group in ("model", "data", "curriculum")]
    return "-".join([*parts, f"s{_root_.seed}", run_id(resolved(_root_))[:8]])


def resolved(cfg: DictConfig) -> dict[str, Any]:
    """Return the config as plain values without Hydra's own node."""
    own = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
    values = OmegaConf.to_container(own, resolve=True, enum_to_str=True)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def checked(cfg: DictConfig) -> Config:
    """Return the typed config.

    Raises:
        UserError: If a value is missing, unknown (`+typo=1` slips through composition), out of
            range, contradicts another, or asks for a GPU that is not there.
    """
    missing = sorted(OmegaConf.missing_keys(cfg))
    if missing:
        raise UserError(f"missing value: give {' '.join(f'{key}=...' for key in missing)}")
    schema = OmegaConf.structured(Config)
    try:
        config = OmegaConf.to_object(OmegaConf.merge(schema, resolved(cfg)))
    except ValueError as error:
        raise UserError(str(error)) from error
    assert isinstance(config, Config)
    check_hardware(config)
    return config


def check_hardware(config: Config) -> None:
    """Raise a `UserError` if the config needs a GPU and there is none."""
    model = config.model
    needs = [
        setting
        for setting, asked in (
            ("model.backend=unsloth", model.backend is Backend.unsloth),
            ("model.load_in_4bit=true", model.load_in_4bit),
            ("model.device=cuda", model.device.value == "cuda"),
        )
        if asked
    ]
    if needs and num_cuda_devices(os.environ) == 0:
        raise UserError(
            f"{' and '.join(needs)} need a CUDA GPU and this machine shows none; "
            "on a CPU use model=tiny, or model.backend=transformers model.load_in_4bit=false"
        )


def register() -> None:
    """Make schema and resolver known to Hydra."""
    ConfigStore.instance().store(name="schema", node=Config)
    OmegaConf.register_new_resolver("medvqa.run_name", run_name, replace=True)


@hydra.main(version_base="1.3", config_path=config_directory(), config_name="config")
def train(cfg: DictConfig) -> float | None:
    """Check the config, then run it."""
    job = HydraConfig.get()
    is_sweep = job.mode is RunMode.MULTIRUN
    try:
        config = checked(cfg)
        from medvqa.run import run

        values = resolved(cfg)
        settings = {
            "config": values,
            "overrides": list(job.overrides.task),
            "run_id": run_id(values),
            "sweep": Path(job.sweep.dir).name if is_sweep else None,
        }
        return run(config, directory=Path(job.runtime.output_dir), settings=settings)
    except (UserError, OmegaConfBaseException) as error:
        if is_sweep:  # the other jobs go on
            raise
        _fail(message(error))
    except Exception:
        log.exception("the run failed; the same command goes on from its last checkpoint")
        raise
    return None


def message(error: Exception) -> str:
    """Return one line for the user."""
    return str(error) if isinstance(error, UserError) else explain(error)


def main() -> None:
    """Entry of `train.py` and of the console script."""
    is_script = Path(sys.argv[0]).name == "train.py"
    if not is_script:
        command = sys.argv[1] if len(sys.argv) > 1 else "--help"
        if command in ("-h", "--help"):
            _say(_usage())
            sys.exit(0)
        if command not in COMMANDS:
            near = difflib.get_close_matches(command, COMMANDS, 1)
            hint = f"; did you mean `medvqa {near[0]}`?" if near else ""
            _fail(f"unknown command {command!r}{hint}\n{_usage()}")
        if command in HANDLERS:
            module, _, function = HANDLERS[command].partition(":")
            handler = getattr(import_module(module), function)
            sys.exit(guarded(lambda: handler(sys.argv[2:])))
        del sys.argv[1]
    register()
    sys.exit(guarded(train))


def guarded(action: Callable[[], Any]) -> int:
    """Run the action; a user's mistake becomes one line and exit code 2."""
    asked_for_traceback = os.environ.get("HYDRA_FULL_ERROR") not in (None, "", "0")
    # Hydra would print its own message and leave; with this it raises, and we speak.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        action()
    except (UserError, HydraException, OmegaConfBaseException) as error:
        if asked_for_traceback:
            raise
        _fail(message(error))
    except KeyboardInterrupt:
        _fail("interrupted; the same command goes on from the last checkpoint", code=130)
    return 0


def _usage() -> str:
    lines = [f"  {name:<12}{text}" for name, text in COMMANDS.items()]
    return "usage: medvqa COMMAND ...\n" + "\n".join(lines)


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")


def _fail(text: str, *, code: int = 2) -> None:
    sys.stderr.write(f"medvqa: {text}\n")
    sys.exit(code)
