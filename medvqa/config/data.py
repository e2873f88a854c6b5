"""The config group `data`: the training pool and the sets to evaluate on."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from medvqa.config.bounds import SEED, bounded, check

ROLES = (
    *("image", "question", "answer", "conversations", "id", "image_id", "answer_type"),
    *("options", "difficulty", "split"),
)


@dataclass(kw_only=True)
class RowsConfig:
    """Some rows of one data set.

    Attributes:
        name: A name of `medvqa.data.pool.DATASETS`, or `mixture`.
        path: Local copy in the hub's or the authors' layout, or any table; the hub if null.
        repository: Data set of the hub that `data=table` reads.
        subset: Configuration of that data set; its only one if null.
        revision: Commit, tag or branch of the hub's repository; its main branch if null.
        split: As the data set calls it.
        columns: What holds image, question, answer and more; see `medvqa/data/columns.py`.
        image_root: Folder or ZIP file that the paths of pictures start from; the table's if null.
        difficulty: A numeric column, for curricula that sort by it.
        limit: Keep a seeded sample of so many rows; all if null.
        max_bad_rows: So many unusable rows may be skipped, counted and listed; the next one is
            an error.
        with_modality: Write PubMedVision's modality and body part after each question.
    """

    name: str = MISSING
    path: str | None = None
    revision: str | None = None
    split: str = MISSING
    limit: int | None = None
    max_bad_rows: int = bounded("[0, 1000000000]", 0)
    repository: str | None = None
    subset: str | None = None
    columns: Any = None  # a mapping; typed as one, Hydra would refuse a file's roles
    image_root: str | None = None
    difficulty: str | None = None
    with_modality: bool = False

    def __post_init__(self) -> None:
        """Check the type that the schema cannot state."""
        check(
            self.columns is None or isinstance(self.columns, Mapping),
            f"data.columns must map roles to columns, such as {{image: img}}, got {self.columns!r}",
        )
        for role in self.columns or ():
            check(role in ROLES, f"data.columns: unknown role {role!r}; known: {', '.join(ROLES)}")
        check(
            not self.with_modality or self.name in ("pubmed_vision", MISSING),
            f"data.with_modality=true is for pubmed_vision; {self.name} states no modality",
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
        """Check contradictions."""
        super().__post_init__()
        check(
            self.quota is None or self.weight is None,
            f"data.parts: {self.name} has a quota and a weight; give one of them",
        )
        check(
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
        """Check contradictions."""
        super().__post_init__()
        mixed, weights = self.name == "mixture", [part.weight for part in self.parts.values()]
        check(mixed == bool(self.parts), "data.parts and data.name=mixture belong together")
        check(
            None in weights or self.limit is not None or not mixed,
            "data.parts have weights: say how many rows they share with data.limit=",
        )
        check(
            all(weight is None for weight in weights) or None not in weights,
            "data.parts: give every part a weight, or none",
        )
        check(
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
    seed: int = bounded(SEED, 0)
