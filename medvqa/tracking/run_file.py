"""The types of what is read of run.json, contamination.json and metrics.jsonl."""

from typing import Any, Required, TypedDict


class PlanFile(TypedDict, total=False):
    """The plan in run.json."""

    num_steps: int
    order_sha256: str | None
    stages: list[dict[str, Any]]


class TrainingFile(TypedDict, total=False):
    """The training in run.json."""

    num_steps: int
    final_loss: float | None
    average_loss: float | None


class PoolFile(TypedDict, total=False):
    """One pool of examples in run.json."""

    num_examples: int
    sources: dict[str, int]
    sha256: str


class OverlapFile(TypedDict, total=False):
    """What the gate found for one set."""

    image_overlap: Required[float]
    item_overlap: float


class ContaminationFile(TypedDict, total=False):
    """contamination.json, and the same in run.json."""

    sets: dict[str, OverlapFile]


class GitFile(TypedDict, total=False):
    """The state of the code in run.json."""

    commit: str | None
    dirty: bool | None


class RunFile(TypedDict, total=False):
    """run.json; earlier versions lack some values."""

    state: str
    run_id: str
    error: str | None
    overrides: list[str]
    started: str
    ended: str
    num_starts: int
    seconds: dict[str, float]
    evaluation_seconds: dict[str, float]
    git: GitFile
    environment: dict[str, Any]
    code: dict[str, str | None] | None
    rows: dict[str, str]
    plan: PlanFile
    training: TrainingFile
    model: dict[str, Any]
    data: dict[str, PoolFile]
    contamination: ContaminationFile
    peak_gpu_bytes: int | None
    peak_memory_bytes: int | None


class StepFile(TypedDict):
    """What a reader takes from a line of metrics.jsonl."""

    step: int
    loss: float
    stage: str
