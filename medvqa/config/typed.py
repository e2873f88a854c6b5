"""Plain, resolved values -> the typed config, within its bounds and on this machine's hardware."""

import os
from collections.abc import Mapping
from typing import Any, TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from medvqa.config.bounds import within_bounds
from medvqa.config.earlier import upgraded
from medvqa.config.errors import UserError, explain
from medvqa.config.machine import num_cuda_devices
from medvqa.config.model import Backend, BasePrecision, Device
from medvqa.config.schema import Config

Group = TypeVar("Group")


def typed(values: Mapping[str, Any], *, runs_here: bool = True) -> Config:
    """Return the typed config of plain, resolved values; see `checked` for what it raises."""
    config = typed_anywhere(values)
    if runs_here:
        check_hardware(config)
    return config


def typed_anywhere(values: Mapping[str, Any]) -> Config:
    """Return the typed config of a run that may have been trained on another machine."""
    return typed_group(Config, upgraded(values))


def with_defaults(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recorded config as plain values, with this version's names and defaults.

    Raises:
        UserError: If it has a setting that this version does not know.
    """
    try:
        merged = OmegaConf.merge(OmegaConf.structured(Config), upgraded(values))
    except OmegaConfBaseException as error:
        raise UserError(f"the config of an earlier version: {explain(error)}") from error
    plain = OmegaConf.to_container(merged, enum_to_str=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def typed_group(schema: type[Group], values: Mapping[str, Any]) -> Group:
    """Return one dataclass of the schema, or the whole, from plain, resolved values."""
    structured = OmegaConf.structured(schema)
    try:
        merged = OmegaConf.merge(structured, dict(values))
        plain = OmegaConf.to_container(merged, enum_to_str=True)
        if (bounded := within_bounds(schema, plain)) != plain:  # a path with `~`
            merged = OmegaConf.merge(structured, bounded)
        group = OmegaConf.to_object(merged)
    except OmegaConfBaseException:
        raise
    except ValueError as error:
        raise UserError(str(error)) from error
    except OverflowError as error:  # hundreds of digits do not fit a float
        raise UserError("the config holds a number of too many digits") from error
    assert isinstance(group, schema)
    return group


def check_hardware(config: Config) -> None:
    """Raise a `UserError` if the config asks for more GPUs than there are."""
    model, num_gpus = config.model, config.training.gpus
    settings = {
        "model.backend=unsloth": model.backend is Backend.unsloth,
        "model.load_in_4bit=true": model.load_in_4bit,
        "model.base_precision=fp8": model.base_precision is BasePrecision.fp8,
        "model.device=cuda": model.device is Device.cuda,
    }
    gpu_settings = " and ".join(name for name, is_set in settings.items() if is_set)
    if gpu_settings and num_cuda_devices(os.environ) == 0:
        raise UserError(
            f"no CUDA GPU is visible here, but the config says {gpu_settings}; on a CPU "
            "use model=tiny, or model.device=cpu model.backend=auto "
            "model.load_in_4bit=false model.base_precision=dtype"
        )
    visible = num_cuda_devices(os.environ) if num_gpus > 1 else num_gpus
    if model.device is not Device.cpu and num_gpus > visible:
        raise UserError(
            f"training.gpus={num_gpus}, but {visible} CUDA GPU(s) are visible here; use "
            f"training.gpus={max(1, visible)} (model.device=cpu runs any number of processes)"
        )
