"""What a directory with a trained model holds: a finished run, or an export of one."""

import hashlib
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any, Literal, TypedDict

from medvqa.config.errors import UserError
from medvqa.config.evaluation import EvaluationConfig
from medvqa.config.lora import LoraConfig
from medvqa.config.machine import num_cuda_devices
from medvqa.config.model import Backend, BasePrecision, Device, ModelConfig
from medvqa.config.prompt import PromptConfig
from medvqa.config.typed import typed_group
from medvqa.models.adapter import ADAPTER_FILE, load_adapter
from medvqa.models.load import load_base, load_model
from medvqa.models.loaded import LoadedModel
from medvqa.tracking.record import DIVERGED, FINISHED, read_json, read_run
from medvqa.tracking.shape import checked

log = logging.getLogger(__name__)

EXPORT_FILE = "export.json"
GROUPS = ("model", "lora", "evaluation")  # of a config
CALIBRATION_FILE = "calibration.json"


class Kind(Enum):
    """What the directory is."""

    run = "run"
    adapter = "adapter"
    merged = "merged"


class CalibrationFile(TypedDict):
    """calibration.json, and the same in export.json."""

    set: str
    temperature: float
    threshold: float | None
    max_error: float
    delta: float


class ExportFile(TypedDict):
    """What is read of export.json beside the config."""

    kind: Literal["adapter", "merged"]
    name: str
    model: dict[str, Any]


@dataclass(frozen=True)
class Trained:
    """A trained model on the disk, not loaded.

    Attributes:
        name: The run's name, whatever the directory of an export is called now.
        prompt: What stood around each question in training; ours in records that name none.
        values: What run.json or export.json holds.
    """

    directory: Path
    kind: Kind
    name: str
    model: ModelConfig
    lora: LoraConfig
    evaluation: EvaluationConfig
    prompt: PromptConfig
    values: Mapping[str, Any]

    @property
    def adapter(self) -> Path | None:
        """The adapter's directory; None for a merged model."""
        directories = {Kind.run: self.directory / "adapter", Kind.adapter: self.directory}
        return directories.get(self.kind)

    @property
    def revision(self) -> str | None:
        """The base's commit, as configured or as the hub's cache named it; None if local."""
        revision = self.model.revision or self.values["model"].get("commit")
        return None if revision is None else str(revision)

    @property
    def calibration(self) -> dict[str, Any] | None:
        """Temperature and abstention threshold, where `medvqa calibrate` made them."""
        path = self.directory / CALIBRATION_FILE
        values = read_json(path) if path.is_file() else self.values.get("calibration")
        return None if values is None else checked(values, CalibrationFile, path)

    def adapter_sha256(self) -> str:
        """Return the hash of the adapter's weights; for a merged model, of what was merged."""
        if self.adapter is None:
            return str(self.values["adapter_sha256"])
        return hashlib.sha256((self.adapter / ADAPTER_FILE).read_bytes()).hexdigest()


def read_trained(directory: Path) -> Trained:
    """Return what the directory holds; reads only small files.

    Raises:
        UserError: If it is neither a finished run nor an export, or lacks weights.
    """
    is_run = (directory / "run.json").is_file()
    if not is_run and not (directory / EXPORT_FILE).is_file():
        reason = "no run.json and no export.json" if directory.is_dir() else "no such directory"
        raise UserError(f"{directory} is neither a run nor an export: {reason}")
    file = directory / ("run.json" if is_run else EXPORT_FILE)
    values = read_run(directory, file.name)
    directory = directory.resolve()
    if is_run:
        _check_finished(directory, values)
    else:
        checked(values, ExportFile, file)
    checked(values, dict[str, Any], file, ("model",))
    config = checked(values["config"], dict[str, Any], file, GROUPS)
    trained = Trained(
        directory,
        Kind.run if is_run else Kind(values["kind"]),
        directory.name if is_run else str(values["name"]),
        typed_group(ModelConfig, config["model"]),
        typed_group(LoraConfig, config["lora"]),
        typed_group(EvaluationConfig, config["evaluation"]),
        typed_group(PromptConfig, config.get("prompt", {})),
        values,
    )
    adapter = trained.adapter
    weights = directory / "config.json" if adapter is None else adapter / ADAPTER_FILE
    if not weights.is_file():
        raise UserError(f"{directory} is incomplete: no {weights.name}")
    return trained


def _check_finished(directory: Path, values: Mapping[str, Any]) -> None:
    state = values.get("state")
    if state != FINISHED:
        reason = f" ({values['error']})" if values.get("error") else ""
        advice = "its own command goes on from the last checkpoint"
        if state == DIVERGED:
            advice = "fresh=true with another learning rate starts it over"
        raise UserError(f"the run in {directory} is {state}, not finished{reason}; {advice}")


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
    return load_base(config) if trained.adapter is None else load_with_adapter(trained, config)


def load_with_adapter(trained: Trained, config: ModelConfig) -> LoadedModel:
    """Return the configured base with the trained adapter on it."""
    assert trained.adapter is not None
    loaded = load_model(config, trained.lora, gradient_checkpointing=False, seed=0)
    load_adapter(loaded, trained.adapter)
    return loaded


def model_config(trained: Trained, *, device: Device, base: str | None = None) -> ModelConfig:
    """Return the run's model settings, changed for this machine where needed, and logged.

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
            base_precision=BasePrecision.dtype,
        )
    has_gpu = device is not Device.cpu and num_cuda_devices(os.environ) > 0
    if model.load_in_4bit and not has_gpu:
        raise UserError(
            f"{trained.name} was trained on a 4-bit base, which needs a GPU; on a CPU use the "
            "merged model (medvqa export RUN --merge)"
        )
    if model.backend is Backend.unsloth and not has_gpu:
        log.info("no GPU: transformers in place of unsloth")
        model = replace(model, backend=Backend.auto)
    if model.base_precision is BasePrecision.fp8 and not has_gpu:
        log.info("no GPU: the base as model.dtype says in place of FP8")
        model = replace(model, base_precision=BasePrecision.dtype)
    # The very weights that were trained on, also where the config named no revision.
    return replace(model, device=device, path=base or model.path, revision=trained.revision)
