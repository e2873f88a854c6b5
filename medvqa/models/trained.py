"""What a directory with a trained model holds: a finished run, or an export of one."""

import hashlib
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any

from medvqa.config.compose import typed_anywhere, typed_group
from medvqa.config.errors import UserError
from medvqa.config.evaluation import EvaluationConfig
from medvqa.config.lora import LoraConfig
from medvqa.config.machine import num_cuda_devices
from medvqa.config.model import Backend, Device, ModelConfig
from medvqa.config.training import Engine
from medvqa.models.adapter import ADAPTER_FILE, load_adapter
from medvqa.models.load import LoadedModel, load_base, load_model
from medvqa.tracking.record import FINISHED, read_json

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
        values: What run.json or export.json holds.
    """

    directory: Path
    kind: Kind
    name: str
    model: ModelConfig
    lora: LoraConfig
    evaluation: EvaluationConfig
    values: Mapping[str, Any]

    @property
    def adapter(self) -> Path | None:
        """The adapter's directory; None for a merged model."""
        places = {Kind.run: self.directory / "adapter", Kind.adapter: self.directory}
        return places.get(self.kind)

    @property
    def engine(self) -> Engine:
        """How the run computed, which its answers may depend on in the last bit."""
        return Engine(self.values["training"]["engine"])

    @property
    def revision(self) -> str | None:
        """The base's commit, as configured or as the hub's cache named it; None if local."""
        found = self.model.revision or self.values["model"].get("commit")
        return None if found is None else str(found)

    def adapter_sha256(self) -> str:
        """Return the hash of the adapter's weights; for a merged model, of what was merged."""
        if self.adapter is None:
            return str(self.values["adapter_sha256"])
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
    what = "no run.json and no export.json" if directory.is_dir() else "no such directory"
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
        directory=directory,
        kind=Kind.run,
        name=directory.name,
        model=config.model,
        lora=config.lora,
        evaluation=config.evaluation,
        values=values,
    )


def _export(directory: Path, values: Mapping[str, Any]) -> Trained:
    config = values["config"]
    return Trained(
        directory=directory,
        kind=Kind(values["kind"]),
        name=str(values["name"]),
        model=typed_group(ModelConfig, config["model"]),
        lora=typed_group(LoraConfig, config["lora"]),
        evaluation=typed_group(EvaluationConfig, config["evaluation"]),
        values=values,
    )


def _check_whole(trained: Trained) -> None:
    adapter = trained.adapter
    needed = trained.directory / "config.json" if adapter is None else adapter / ADAPTER_FILE
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
        return load_base(config)
    return load_with_adapter(trained, config)


def load_with_adapter(trained: Trained, config: ModelConfig) -> LoadedModel:
    """Return the configured base with the trained adapter on it."""
    adapter = trained.adapter
    assert adapter is not None
    loaded = load_model(config, trained.lora, gradient_checkpointing=False, seed=0)
    load_adapter(loaded, adapter)
    return loaded


def model_config(trained: Trained, *, device: Device, base: str | None = None) -> ModelConfig:
    """Return the run's model settings, with what another machine must change, said aloud.

    Raises:
        UserError: If the base is in 4 bits and there is no GPU.
    """
    model = trained.model
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
    # The very weights that were trained on, also where the config named no revision.
    return replace(model, device=device, path=base or model.path, revision=trained.revision)
