"""Which engine trains and which one answers: the one place that knows both."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Union

from medvqa.config.errors import UserError
from medvqa.config.evaluation import Decoding
from medvqa.config.model import Backend, BasePrecision
from medvqa.config.schema import Config
from medvqa.config.training import Engine
from medvqa.models.encode import Encoder
from medvqa.models.loaded import LoadedModel
from medvqa.models.plain import PlainEngine
from medvqa.tracking import identity

if TYPE_CHECKING:
    from medvqa.fast.engine import FusedEngine

ComputeEngine = Union[PlainEngine, "FusedEngine"]  # both have the same methods

log = logging.getLogger(__name__)

SHARDED = " with sharded weights"  # which transformers' own modules gather
FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")  # whose layers the fused engine computes
# Measured on one H100 with InternVL 3 8B, against Qwen3-VL-8B; docs/models.md has the table.
COST = "a step takes about 1.4 times as long as a fused one would, an answer about 8 times"
LINE = "compute path: %(backend)s backend, %(engine)s engine, %(decoding)s decoding: %(reason)s"


@dataclass(frozen=True)
class ComputePath:
    """How a run computes, and why so.

    Attributes:
        backend: Library that loads the model.
        engine: What trains.
        decoding: How answers are decoded.
        reason: One sentence, with the cost where a faster path exists for other models.
    """

    backend: Backend
    engine: Engine
    decoding: Decoding
    reason: str

    @property
    def line(self) -> str:
        """The line that logs and preflight show."""
        return LINE % self.describe()

    def describe(self) -> dict[str, str]:
        """Return what run.json keeps."""
        choices = {"backend": self.backend, "engine": self.engine, "decoding": self.decoding}
        return {**{n: choice.value for n, choice in choices.items()}, "reason": self.reason}


def choose_path(loaded: LoadedModel, engine: Engine, decoding: Decoding) -> ComputePath:
    """Return the path of a loaded model; see `path_of`."""
    on_gpu, family = loaded.device.type == "cuda", loaded.family
    layer_types = getattr(loaded.inner.config.get_text_config(), "layer_types", None) or ()
    if "sliding_attention" in layer_types:
        family += " with sliding attention"  # which no fused layer computes
    if loaded.is_sharded:
        family += SHARDED
    path = path_of(family, loaded.backend, engine, decoding, on_gpu=on_gpu)
    is_plain = Engine.plain is path.engine or Decoding.plain is path.decoding
    if loaded.base_precision is BasePrecision.fp8 and is_plain:
        raise UserError(
            f"model.base_precision=fp8 is computed by the fused engine, but {path.line}; use "
            "model.base_precision=dtype"
        )
    return path


def log_path(loaded: LoadedModel, config: Config, engine_name: str) -> dict[str, Any]:
    """Log a run's path in one line; return what run.json keeps of model, path and their code."""
    path = choose_path(loaded, config.training.engine, config.evaluation.decoding)
    if engine_name != path.engine.value:
        path = replace(path, reason=f"{engine_name} takes the steps, as configured")
    values = {**path.describe(), "engine": engine_name}
    log.info("%s", LINE % values)
    code = identity.code(engine_name)
    return {"model": loaded.describe(), "compute_path": values, "code": code}


def path_of(
    family: str, backend: Backend, engine: Engine, decoding: Decoding, *, on_gpu: bool
) -> ComputePath:
    """Return the fastest path that is proven equal, as far as the options leave a choice.

    Unsloth is never chosen by itself. The fused engine is faster where it supports the model.
    Elsewhere nobody has shown that Unsloth's results are equal.

    Args:
        family: The `model_type` of transformers' configuration.
        backend: As configured.
        engine: As configured; `auto` is the fused one on a GPU.
        decoding: As configured; `auto` shares prefixes on a CPU, too.
        on_gpu: Whether the model is on a GPU.

    Raises:
        UserError: If the fused engine is chosen and does not support the model.
    """
    backend = Backend.transformers if backend is Backend.auto else backend
    is_supported = backend is Backend.transformers and family in FAMILIES
    for option, choice in (("training.engine", engine), ("evaluation.decoding", decoding)):
        if choice in (Engine.fused, Decoding.shared_prefix) and not is_supported:
            raise UserError(
                f"{option}={choice.value} cannot compute {family} on "
                f"model.backend={backend.value}; say {option}=auto"
            )
    if engine is Engine.auto:
        engine = Engine.fused if is_supported and on_gpu else Engine.plain
    if decoding is Decoding.auto:
        decoding = Decoding.shared_prefix if is_supported else Decoding.plain
    reason = _reason(family, backend, is_supported=is_supported, on_gpu=on_gpu)
    if is_supported and on_gpu and Engine.plain is engine:
        reason = "as configured; auto would take the fused engine"
    return ComputePath(backend, engine, decoding, reason)


def _reason(family: str, backend: Backend, *, is_supported: bool, on_gpu: bool) -> str:
    if backend is Backend.unsloth:
        return "as configured; Unsloth's kernels replace the layers that the fused engine needs"
    if not is_supported:
        return f"the fused engine does not support {family}; {COST}"
    if not on_gpu:
        return "on a CPU transformers' own modules train, the reference"
    return f"the fused engine gives the plain engine's results for {family}"


def make_engine(choice: Engine | Decoding, loaded: LoadedModel, encoder: Encoder) -> ComputeEngine:
    """Return the engine of a choice that is resolved already."""
    return ENGINES[choice](loaded, encoder)


def _plain(loaded: LoadedModel, encoder: Encoder) -> PlainEngine:
    """Return transformers' own modules; for Qwen the reference, which computes as PEFT does."""
    is_whole = loaded.backend is Backend.transformers and not loaded.is_sharded
    if not encoder.encodes_batches or not is_whole:
        return PlainEngine(loaded, encoder)
    from medvqa.fast.language_model import LanguageModel

    if "plain" not in loaded.engines:
        loaded.engines["plain"] = LanguageModel(loaded)
    return PlainEngine(loaded, encoder, loaded.engines["plain"])


def _fused(loaded: LoadedModel, _: Encoder) -> "FusedEngine":
    """Return the model's one fused engine: it looks at each layer once."""
    from medvqa.fast.engine import FusedEngine

    if "fused" not in loaded.engines:
        loaded.engines["fused"] = FusedEngine(loaded)
    engine: FusedEngine = loaded.engines["fused"]
    return engine


ENGINES: Mapping[Engine | Decoding, Callable[[LoadedModel, Encoder], ComputeEngine]] = {
    Engine.plain: _plain,
    Engine.fused: _fused,
    Decoding.plain: _plain,
    Decoding.shared_prefix: _fused,
}
