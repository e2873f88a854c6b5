"""What the report takes from the files of a run, beside what every reader takes."""

from typing import Any, NotRequired, TypedDict

from medvqa.data.example import Score
from medvqa.tracking.run_file import PlanFile

REQUIRED = ("id", "question", "references", "prediction", "answer_type", "source", "split",
            "cluster", "exact_match")  # fmt: skip


class Model(TypedDict):
    """The model in a config."""

    name: str
    load_in_4bit: bool


class Data(TypedDict):
    """The data in a config."""

    evaluation: dict[str, dict[str, Any]]


class Sizes(TypedDict):
    """The batch in a config."""

    micro_batch_size: int
    accumulation_steps: int


class Ordering(TypedDict):
    """The curriculum in a config."""

    name: str


class Configured(TypedDict):
    """The config."""

    seed: int
    model: Model
    data: Data
    training: Sizes
    curriculum: Ordering


class Reported(TypedDict):
    """run.json of a run that has ended."""

    config: Configured
    plan: PlanFile


class Overall(TypedDict):
    """The group of all questions in a summary."""

    exact_match: Score


class Summary(TypedDict):
    """The summary of a metrics.json."""

    overall: Overall


class Stored(TypedDict):
    """What the report takes from a metrics.json."""

    phase: str
    set_name: str
    step: int
    summary: Summary
    normalizer: NotRequired[str | None]
    bertscore: NotRequired[dict[str, Any] | None]


class Groups(TypedDict):
    """The same summary, group by group."""

    summary: dict[str, dict[str, Score]]
