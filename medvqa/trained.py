"""What a directory with a trained model holds: a finished run, or an export of one."""

import hashlib
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any

from medvqa.composition import typed_anywhere
from medvqa.config import Backend, Config, Device, Engine, ModelConfig
from medvqa.evaluation import Evaluation, read_evaluations
from medvqa.example import UserError
from medvqa.hardware import num_cuda_devices
from medvqa.model import ADAPTER_FILE, LoadedModel, load_adapter, load_merged, load_model
from medvqa.record import FINISHED, read_json

log = logging.getLogger(__name__)

EXPORT_FILE = "export.json"


class Kind(Enum):
    """What the directory is."""

    run = "run"
    adapter = "adapter"
    merged = "merged"


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A trained model on the disk, not loaded.

    Attributes:
        name: The run's name, whatever the directory is called now.
        config: Of the run that trained it.
        values: What run.json or export.json holds.
    """

    directory: Path
    kind: Kind
    name: str
    config: Config
    values: Mapping[str, Any]

    @property
    def adapter(self) -> Path | None:
        """The adapter's directory; None for a merged model."""
        places = {Kind.run: self.directory / "adapter", Kind.adapter: self.directory}
        return places.get(self.kind)

    @property
    def engine(self) -> Engine:
        """How the run computed, which its answers may depend on in the last bit."""
        return Engine(self.values.get("training", {}).get("engine", Engine.plain.value))

    def evaluations(self) -> list[Evaluation]:
        """Return what was measured of the run; of a merged model its own scores."""
        return read_evaluations(self.directory)

    def adapter_sha256(self) -> str | None:
        """Return the hash of the adapter's weights, of the one that was merged for a merged one."""
        if self.adapter is None:
            recorded = self.values.get("adapter_sha256")
            return None if recorded is None else str(recorded)
        return hashlib.sha256((self.adapter / ADAPTER_FILE).read_bytes()).hexdigest()


def read_trained(directory: Path) -> Trained:
    """Return what the directory holds; reads only small files.

    Raises:
        UserError: If it is neither a finished run nor an export.
    """
    for name, read in (("run.json", _finished_run), (EXPORT_FILE, _export)):
        if (directory / name).is_file():
            trained = read(directory.resolve(), read_json(directory / name))
            _check_whole(trained)
            return trained
    what = "no such directory" if not directory.is_dir() else "no run.json and no export.json"
    raise UserError(f"{directory} is neither a run nor an export: {what}")


def _finished_run(directory: Path, values: Mapping[str, Any]) -> Trained:
    state = values.get("state")
    if state != FINISHED:
        reason = f" ({values['error']})" if values.get("error") else ""
        raise UserError(
            f"the run in {directory} is {state}, not finished{reason}; "
            "its own command goes on from the last checkpoint"
        )
    config = typed_anywhere(values["config"])
    return Trained(
        directory=directory, kind=Kind.run, name=directory.name, config=config, values=values
    )


def _export(directory: Path, values: Mapping[str, Any]) -> Trained:
    return Trained(
        directory=directory,
        kind=Kind(values["kind"]),
        name=str(values["name"]),
        config=typed_anywhere(values["config"]),
        values=values,
    )


def _check_whole(trained: Trained) -> None:
    needed = (
        trained.directory / "config.json"
        if trained.adapter is None
        else trained.adapter / ADAPTER_FILE
    )
    if not needed.is_file():
        raise UserError(f"{trained.directory} is incomplete: no {needed.name}")


def load_trained(
    trained: Trained, *, device: Device = Device.auto, base: str | None = None
) -> LoadedModel:
    """Return the model as the evaluator had it, or as close as this machine allows.

    Args:
        trained: What to load.
        device: Where to.
        base: Local directory of the base, in place of the one that the run names.

    Raises:
        UserError: If the base cannot be loaded, or needs a GPU that is not there.
    """
    config = model_config(trained, device=device, base=base)
    if trained.adapter is None:
        return load_merged(config)
    loaded = load_model(
        config, trained.config.lora, gradient_checkpointing=False, seed=trained.config.seed
    )
    load_adapter(loaded, trained.adapter)
    if trained.engine is not Engine.plain:
        from medvqa.engine import accelerate

        accelerate(loaded)
    return loaded


def model_config(trained: Trained, *, device: Device, base: str | None = None) -> ModelConfig:
    """Return the run's model settings, with what another machine must change, said aloud."""
    model = trained.config.model
    if trained.kind is Kind.merged:
        return replace(
            model,
            path=str(trained.directory),
            revision=None,
            device=device,
            backend=Backend.transformers,
            load_in_4bit=False,
        )
    has_gpu = device is not Device.cpu and num_cuda_devices(os.environ) > 0
    if model.load_in_4bit and not has_gpu:
        raise UserError(
            f"{trained.name} was trained on a 4-bit base, which needs a GPU; on a CPU use the "
            "merged model (medvqa export RUN --merge)"
        )
    if model.backend is Backend.unsloth and not has_gpu:
        log.info("no GPU: transformers in place of unsloth")
        model = replace(model, backend=Backend.transformers)
    return replace(model, device=device, path=base or model.path)
