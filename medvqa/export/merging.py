"""Adapter -> weights of the original base, proved equal to the one and different from the other."""

import gc
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from medvqa.config.errors import UserError
from medvqa.config.model import Backend, BasePrecision, Dtype, ModelConfig
from medvqa.config.schema import Config
from medvqa.data.example import Example
from medvqa.evaluation.answering import by_model
from medvqa.evaluation.evaluate import Evaluator
from medvqa.evaluation.phase_scores import read_answers
from medvqa.models.encode import Encoder, encoder_of
from medvqa.models.load import load_base
from medvqa.models.loaded import LoadedModel
from medvqa.models.source import is_stored_in_4bit
from medvqa.models.trained import Trained, load_with_adapter
from medvqa.tracking.record import read_lines

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

NUM_PROMPTS = 8
# Error of the merged logits as a share of what the adapter changes. A bfloat16 weight keeps eight
# bits, so a small change of a large weight is rounded.
TOLERANCES = {Dtype.float32: 1e-3, Dtype.bfloat16: 0.25}
MERGED = "merged"  # the phase's name beside `final`
PLACE = "after_merge"  # below the run: predictions hold questions, which an export must not carry


@dataclass(frozen=True, kw_only=True)
class MergeCheck:
    """Root mean squares of differences between logits of the first new token.

    Attributes:
        adapter_minus_base: What the adapter changes.
        merged_minus_adapter: What merging and saving got wrong.
        merged_minus_base: What the saved model changes.
        tolerance: Allowed `merged_minus_adapter`, as a share of `adapter_minus_base`.
    """

    num_prompts: int
    adapter_minus_base: float
    merged_minus_adapter: float
    merged_minus_base: float
    tolerance: float

    def require(self) -> None:
        """Raise a `UserError` unless merged equals adapter and differs from the base."""
        if self.merged_minus_base <= self.adapter_minus_base / 2:
            raise UserError(
                f"merged equals base: on {self.num_prompts} prompts the adapter changes the logits "
                f"by {self.adapter_minus_base:.3g} and the merged model by "
                f"{self.merged_minus_base:.3g}; nothing is exported"
            )
        share = self.merged_minus_adapter / self.adapter_minus_base
        if not share <= self.tolerance:
            raise UserError(
                f"merged differs from adapter: its logits are off by {share:.1%} of what the "
                f"adapter changes (tolerance {self.tolerance:.1%}); nothing is exported"
            )


def merging_config(config: ModelConfig, *, dtype: Dtype) -> ModelConfig:
    """Return how the original base is loaded for merging.

    Raises:
        UserError: If the weights at hand are in 4 bits.
    """
    merging = replace(
        config,
        load_in_4bit=False,
        base_precision=BasePrecision.dtype,
        backend=Backend.transformers,
        dtype=dtype,
    )
    if is_stored_in_4bit(merging):
        raise UserError(
            f"{config.path or config.name} is stored in 4 bits: merging into it would round the "
            "adapter away and lose accuracy; give the original 16-bit weights with --base DIR"
        )
    return merging


def merge(
    trained: Trained, config: ModelConfig, prompts: Sequence[Example], directory: Path
) -> MergeCheck:
    """Write weights and processor of the merged model to the directory; return what was checked.

    Raises:
        UserError: If the saved model is not what the adapter makes of the base.
    """
    import torch

    loaded = load_with_adapter(trained, config)
    encoder = encoder_of(loaded, config, None, trained.prompt)
    prompts = prompts[:NUM_PROMPTS]
    adapter = _logits(loaded, encoder, prompts)
    with loaded.adapter_disabled():
        base = _logits(loaded, encoder, prompts)
    with torch.no_grad():
        merged = loaded.model.merge_and_unload()
    merged.save_pretrained(str(directory), safe_serialization=True)
    loaded.processor.save_pretrained(str(directory))
    del loaded, merged
    gc.collect()
    torch.cuda.empty_cache()
    # Read back from the disk: what counts is what others will load.
    saved = _logits(load_saved(config, directory), encoder, prompts)
    check = MergeCheck(
        num_prompts=len(prompts),
        adapter_minus_base=_rms(adapter - base),
        merged_minus_adapter=_rms(saved - adapter),
        merged_minus_base=_rms(saved - base),
        tolerance=TOLERANCES[config.dtype],
    )
    check.require()
    return check


def load_saved(config: ModelConfig, directory: Path) -> LoadedModel:
    """Return the merged model from the disk."""
    return load_base(replace(config, path=str(directory), revision=None))


def _logits(loaded: LoadedModel, encoder: Encoder, prompts: Sequence[Example]) -> "torch.Tensor":
    """Return the logits (prompts, V) of the first new token, in float32 on the CPU."""
    import torch

    loaded.use_for(training=False)
    batch = encoder.generation_batch([encoder.encode(example) for example in prompts])
    inputs = {name: tensor.to(loaded.device) for name, tensor in batch.items()}
    with torch.inference_mode(), loaded.autocast():
        logits: torch.Tensor = loaded.model(**inputs).logits[:, -1].float().cpu()
    return logits


def _rms(difference: "torch.Tensor") -> float:
    return float(difference.square().mean().sqrt())


def reevaluate(
    trained: Trained,
    config: Config,
    loaded: LoadedModel,
    sets: Mapping[str, Sequence[Example]],
) -> dict[str, dict[str, int]]:
    """Evaluate the merged model as the run was evaluated; its files go to `PLACE` below the run.

    Returns:
        Per set, the number of answers that equal the run's.
    """
    place = trained.directory / PLACE
    shutil.rmtree(place, ignore_errors=True)
    evaluator = Evaluator(sets, config.evaluation, directory=place, seed=config.seed)
    encoder = encoder_of(loaded, config.model, None, config.prompt)
    steps = int(trained.values["training"]["num_steps"])
    answer = by_model(loaded, encoder, config.evaluation)
    evaluator.phase(MERGED, steps, answer, device=loaded.device.type)
    equal = {}
    for name in sets:
        final = trained.directory / "evaluation" / "final" / name / "predictions.jsonl"
        before = {row["id"]: row["prediction"] for row in read_answers(final, "id", "prediction")}
        rows = read_lines(evaluator.place(MERGED, name) / "predictions.jsonl")
        num_equal = sum(before.get(row["id"]) == row["prediction"] for row in rows)
        equal[name] = {"equal": num_equal, "of": len(rows)}
        log.info("%s: %d of %d answers equal the run's", name, num_equal, len(rows))
    return equal
