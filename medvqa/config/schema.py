"""The schema of a whole run: one dataclass per config group, and the rules that join two groups."""

from dataclasses import dataclass, field

from omegaconf import MISSING

from medvqa.config.bounds import SEED, bounded, check, exclude
from medvqa.config.contamination import ContaminationConfig
from medvqa.config.curriculum import CurriculumConfig
from medvqa.config.data import DataConfig
from medvqa.config.evaluation import Decoding, EvaluationConfig
from medvqa.config.lora import LoraConfig
from medvqa.config.model import Backend, BasePrecision, ModelConfig
from medvqa.config.prompt import PromptConfig
from medvqa.config.study import StudyConfig
from medvqa.config.tracking import TrackingConfig
from medvqa.config.training import Engine, Sharding, TrainerName, TrainingConfig


@dataclass(kw_only=True)
class Config:
    """A whole run.

    Attributes:
        seed: Adapter initialisation, order of examples, dropout.
        only_evaluate: Answer and score without training; `medvqa evaluate` sets it.
        adapter: A saved adapter, ours or plain PEFT's, that is put on the base.
        endpoint: URL of an OpenAI-compatible server that answers in the model's place.
        model_name: Name by which that server knows its model.
        fresh: Start over although this very run is finished or begun; the old one is kept aside.
    """

    model: ModelConfig = MISSING
    data: DataConfig = MISSING
    contamination: ContaminationConfig = MISSING
    curriculum: CurriculumConfig = MISSING
    lora: LoraConfig = MISSING
    training: TrainingConfig = field(default_factory=TrainingConfig)
    evaluation: EvaluationConfig = MISSING
    tracking: TrackingConfig = MISSING
    prompt: PromptConfig = field(default_factory=PromptConfig)
    study: StudyConfig = field(default_factory=StudyConfig)
    seed: int = bounded(SEED, 0)
    only_evaluate: bool = False
    adapter: str | None = None
    endpoint: str | None = None
    model_name: str | None = None
    fresh: bool = False

    def __post_init__(self) -> None:
        """Check what joins two groups."""
        names = [n for n in ("adapter", "endpoint", "model_name") if getattr(self, n) is not None]
        check(
            self.only_evaluate or not names,
            f"{' and '.join(names)} belong to `medvqa evaluate`; training starts a new adapter",
        )
        check(
            (self.endpoint is None) == (self.model_name is None),
            "endpoint=URL and model_name=NAME belong together",
        )
        check(
            self.endpoint is None or self.adapter is None,
            "adapter=DIR is put on a base that is loaded here; with endpoint=URL the server has it",
        )
        evaluation_is_not_training(self.data)
        self._check_computation()

    def _check_computation(self) -> None:
        """Check that one library or engine can compute everything that is configured."""
        is_shared = self.evaluation.decoding is Decoding.shared_prefix
        if self.model.base_precision is BasePrecision.fp8:
            exclude(
                {
                    "training.engine=plain": self.training.engine is Engine.plain,
                    "training.trainer=trl": self.training.trainer is TrainerName.trl,
                    "evaluation.decoding=plain": self.evaluation.decoding is Decoding.plain,
                },
                "model.base_precision=fp8 is computed by the fused engine, not by {setting}; use "
                "model.base_precision=dtype",
            )
        if self.training.sharding is not Sharding.none:
            exclude(
                {
                    "model.backend=unsloth": self.model.backend is Backend.unsloth,
                    "model.load_in_4bit=true": self.model.load_in_4bit,
                    "model.base_precision=fp8": self.model.base_precision is BasePrecision.fp8,
                    "evaluation.decoding=shared_prefix": is_shared,
                },
                "training.sharding=fsdp2 spreads the weights of transformers' own modules and "
                "does not go with {setting}; leave out one of the two",
            )
        if self.model.backend is Backend.unsloth:
            exclude(
                {
                    "training.engine=fused": self.training.engine is Engine.fused,
                    "evaluation.decoding=shared_prefix": is_shared,
                },
                "{setting} computes on transformers' own layers, and model.backend=unsloth "
                "replaces them; say {key}=auto or model.backend=auto",
            )


def evaluation_is_not_training(data: DataConfig) -> None:
    """Raise if an evaluation set shares a split with the training pool and nobody asked for it.

    What the names of the splits do not tell, the contamination gate finds in the rows.
    """
    trained = [data, *data.parts.values()]
    for name, source in data.evaluation.items():
        for rows in (source, *source.parts.values()):
            shared = [
                part.split
                for part in trained
                if (part.name, part.path) == (rows.name, rows.path)
                and rows.name != "mixture"
                and splits_overlap(part.split, rows.split)
            ]
            check(
                not shared or data.allow_training_rows,
                f"data.evaluation.{name}.split={rows.split} contains training rows "
                f"(data.split={', '.join(shared)}); choose another split or say "
                "data.allow_training_rows=true",
            )


def splits_overlap(one: str, other: str) -> bool:
    """Return whether two splits of a set share rows: `test` and `test_en` do, and `all` with any.

    An image-disjoint split divides the rows anew, so both its sides hold rows of each standard one.
    """
    if "all" in (one, other) or one.endswith("_disjoint") != other.endswith("_disjoint"):
        return True
    return one == other or one.startswith(f"{other}_") or other.startswith(f"{one}_")
