"""The config group `tracking`: Weights & Biases and the pictures of a run."""

from dataclasses import dataclass, field
from enum import Enum

from medvqa.config.bounds import bounded, check

MAX_TAG, MAX_NAME = 64, 128  # characters


class TrackingMode(Enum):
    """`auto` is online where a key is found, else offline."""

    auto = "auto"
    online = "online"
    offline = "offline"
    disabled = "disabled"


@dataclass(kw_only=True)
class TrackingConfig:
    """Pictures of a run, and Weights & Biases, which mirrors the run's files.

    Attributes:
        project: W&B project.
        entity: W&B user or team; the key's own if null.
        tags: W&B tags of the run.
        group: Joins the runs of one study; a sweep's directory name if null.
        table_rows: Predictions with images in the table, so that a log stays small.
        pictures: Draw loss.png, metrics.png and their like at the end, which takes a second.
    """

    mode: TrackingMode = TrackingMode.auto
    project: str = "medvqa"
    entity: str | None = None
    group: str | None = None
    tags: list[str] = field(default_factory=list)
    table_rows: int = bounded("[0, 1000000]", 64)
    pictures: bool = True

    def __post_init__(self) -> None:
        """Check W&B's own limits."""
        for tag in self.tags:
            check(
                0 < len(tag) <= MAX_TAG,
                f"tracking.tags: W&B takes 1 to {MAX_TAG} characters per tag, got {len(tag)}: "
                f"{tag[:20]!r}",
            )
        for name in ("project", "group", "entity"):
            text = getattr(self, name)
            check(
                text is None or 0 < len(text) <= MAX_NAME,
                f"tracking.{name}: W&B takes 1 to {MAX_NAME} characters",
            )
