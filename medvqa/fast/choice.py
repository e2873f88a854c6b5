"""Which engine trains and which one answers: the one place that knows both."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Union

from medvqa.config.errors import UserError
from medvqa.config.evaluation import Decoding
from medvqa.config.model import Backend
from medvqa.config.training import Engine
from medvqa.models.encode import Encoder
from medvqa.models.loaded import LoadedModel
from medvqa.models.plain import PlainEngine

if TYPE_CHECKING:
    from medvqa.fast.engine import FusedEngine

ComputeEngine = Union[PlainEngine, "FusedEngine"]  # both have `loss` and `answer`

ARCHITECTURES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")  # whose layers the fused engine computes


def choose_engine(wanted: Engine, loaded: LoadedModel) -> Engine:
    """Return the engine that trains; `auto` is the fused one on a GPU that supports the model.

    Raises:
        UserError: If the fused engine is asked for and does not support the model.
    """
    _check(wanted is Engine.fused, "training.engine", wanted.value, loaded)
    if wanted is not Engine.auto:
        return wanted
    on_gpu = loaded.device.type == "cuda"
    return Engine.fused if on_gpu and is_supported(loaded) else Engine.plain


def choose_decoding(wanted: Decoding, loaded: LoadedModel) -> Decoding:
    """Return how answers are decoded; `auto` shares prefixes wherever the model is supported.

    Raises:
        UserError: If a prefix shall be shared and the fused engine does not support the model.
    """
    _check(wanted is Decoding.shared_prefix, "evaluation.decoding", wanted.value, loaded)
    if wanted is not Decoding.auto:
        return wanted
    return Decoding.shared_prefix if is_supported(loaded) else Decoding.plain


def is_supported(loaded: LoadedModel) -> bool:
    """Whether the fused engine can compute the model; Unsloth has replaced the layers."""
    return (
        loaded.backend is Backend.transformers and loaded.inner.config.model_type in ARCHITECTURES
    )


def make_engine(choice: Engine | Decoding, loaded: LoadedModel, encoder: Encoder) -> ComputeEngine:
    """Return the engine of a choice that is resolved already."""
    return ENGINES[choice](loaded, encoder)


def _fused(loaded: LoadedModel, _: Encoder) -> "FusedEngine":
    """Return the model's one fused engine: it looks at each layer once."""
    from medvqa.fast.engine import FusedEngine

    if "fused" not in loaded.engines:
        loaded.engines["fused"] = FusedEngine(loaded)
    engine: FusedEngine = loaded.engines["fused"]
    return engine


ENGINES: Mapping[Engine | Decoding, Callable[[LoadedModel, Encoder], ComputeEngine]] = {
    Engine.plain: PlainEngine,
    Engine.fused: _fused,
    Decoding.plain: PlainEngine,
    Decoding.shared_prefix: _fused,
}


def _check(needs_fused: bool, option: str, value: str, loaded: LoadedModel) -> None:
    if needs_fused and not is_supported(loaded):
        raise UserError(
            f"{option}={value} cannot compute {loaded.inner.config.model_type} on "
            f"model.backend={loaded.backend.value}; say {option}=auto"
        )
