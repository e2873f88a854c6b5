"""What a run consumes, known before a model is loaded: rows -> contamination gate -> plan."""

import logging
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from medvqa.config.schema import Config
from medvqa.config.training import Sharding
from medvqa.contamination import gate
from medvqa.contamination.overlap import Overlap
from medvqa.contamination.picture_hash import contents_sha256
from medvqa.curriculum import plan_curriculum, stage_pools
from medvqa.data.example import Example
from medvqa.data.plan import Plan
from medvqa.data.pool import Pool, load_pool, load_sets, rows_sha256
from medvqa.data.storage.cache import open_cache
from medvqa.data.verification import check_images, stored_images
from medvqa.evaluation.bertscore import check_encoder
from medvqa.evaluation.probing import more_questions
from medvqa.models.encode import Encoder
from medvqa.models.source import base_folder, check_base, files_sha256
from medvqa.tracking.wandb_mode import check_key
from medvqa.training.ranks import Ranks
from medvqa.training.schedule import warmup_steps

log = logging.getLogger(__name__)

Value = TypeVar("Value")
PICTURES = "/pictures"  # no name of a set holds a slash


class Inputs:
    """The rows, the overlap and the plan of one run; each is computed once, when first needed.

    Args:
        config: Of the run.
        cache: Rows and overlaps of earlier runs; a process that serves several runs keeps one.
    """

    def __init__(self, config: Config, cache: dict[str, Any] | None = None) -> None:
        self.config = config
        self._cache = {} if cache is None else cache

    @cached_property
    def pool(self) -> Pool:
        """All training rows, before the gate; images stay where they are."""
        data = self.config.data
        return self._once(f"pool {data!r}", lambda: load_pool(data, seed=data.seed))

    @cached_property
    def sets(self) -> Mapping[str, Pool]:
        """The evaluation sets by name."""
        data = self.config.data
        return self._once(f"sets {data!r}", lambda: load_sets(data))

    def _once(self, key: str, compute: Callable[[], Value]) -> Value:
        if key not in self._cache:
            self._cache[key] = compute()
        value: Value = self._cache[key]
        return value

    def row_hashes(self) -> dict[str, str]:
        """Return hashes of what a run reads, before the gate.

        Each pool has one of its rows (questions, answers, types, names of pictures) and one of its
        pictures' bytes. A base on this machine, and an adapter, have one of their files.
        """
        config = self.config
        pools = {} if config.only_evaluate else {"training": self.pool}
        hashes = self._once(
            f"hashes {config.data!r} {config.only_evaluate}",
            lambda: _hashes({**pools, **self.sets}),
        )
        adapter = Path(config.adapter) if config.adapter else None
        folders = {"base": base_folder(config.model), "adapter": adapter}
        stored = {name: folder for name, folder in folders.items() if folder and folder.is_dir()}
        return {**hashes, **{name: files_sha256(folder) for name, folder in stored.items()}}

    def check(self) -> None:
        """Find mistakes that cost nothing, before every picture is read.

        Raises:
            UserError: If there is no key for online tracking, model path, encoder or data are
                wrong, or a stage asks for more examples than there are.
        """
        check_key(self.config.tracking)
        check_base(self.config.model)
        self.check_data()

    def check_data(self) -> None:
        """Find the same mistakes but for a base that the hub holds; see `check`."""
        check_encoder(self.config.evaluation.bertscore)
        examples = self.pool.examples
        stage_pools(self.config.curriculum, examples, seed=self.config.seed)
        assert self.sets is not None

    @cached_property
    def overlap(self) -> Overlap:
        """The overlap of the pool and every evaluation set."""
        config = self.config.contamination
        return self._once(
            f"overlap {self.config.data!r} {config.max_distance}",
            lambda: gate.measure(config, self.pool.examples, self.questions),
        )

    def show_overlap(self) -> None:
        """Print the overlap as a table, once per overlap that the cache holds."""
        earlier = self._cache.setdefault("overlaps that were shown", [])
        if not any(overlap is self.overlap for overlap in earlier):
            earlier.append(self.overlap)
            gate.show_overlap(self.overlap)

    @cached_property
    def training(self) -> Pool:
        """The training rows that pass the gate.

        Raises:
            UserError: If the gate refuses.
        """
        examples = gate.allowed_rows(
            self.config.contamination,
            self.pool.examples,
            self.overlap,
            expected=self.config.data.allow_training_rows,
        )
        return self.pool._replace(examples=examples)

    @cached_property
    def plan(self) -> Plan:
        """The order of the training rows; the pictures that it uses have been checked.

        Raises:
            UserError: If the curriculum cannot be planned, or a picture is damaged.
        """
        training = self.config.training
        plan = plan_curriculum(
            self.config.curriculum,
            self.training.examples,
            max_steps=training.max_steps,
            batch_size=training.batch_size,
            seed=self.config.seed,
        )
        warmup_steps(training, plan)
        unchecked = check_images(self.used(plan))
        if unchecked:
            log.info("%s pictures are not checked before training", f"{unchecked:,}")
        return plan

    @property
    def by_id(self) -> dict[str, Example]:
        """The training rows by id."""
        return {example.id: example for example in self.training.examples}

    @property
    def questions(self) -> dict[str, list[Example]]:
        """The questions of each evaluation set."""
        return {name: pool.examples for name, pool in self.sets.items()}

    def used(self, plan: Plan) -> list[Example]:
        """Return what the model will be shown: the planned examples, then all questions."""
        by_id = self.by_id
        planned = [by_id[name] for name in dict.fromkeys(plan.order)]
        return [*planned, *(e for examples in self.questions.values() for e in examples)]

    def load_options(self, ranks: Ranks) -> dict[str, Any]:
        """Return the options of `medvqa.models.load.load_model`."""
        training = self.config.training
        is_sharded = training.sharding is not Sharding.none
        return {
            "gradient_checkpointing": training.gradient_checkpointing,
            "seed": self.config.seed,
            "check": self.check_lengths,
            **({"group": ranks.tensors} if is_sharded else {}),
        }

    def check_lengths(self, processor: Any) -> None:
        """Raise a `UserError` if a sample that the model will be shown is too long for it."""
        limit = self.config.model.max_length_tokens
        encoder = Encoder(processor, max_length_tokens=limit, prompt=self.config.prompt)
        encoder.check_lengths(self.used(self.plan))
        for examples in self.questions.values():
            encoder.check_lengths(
                more_questions(self.config.evaluation, examples, self.config.seed)
            )

    def describe(self) -> dict[str, Any]:
        """Return counts and hashes of pools and plan, for run.json."""
        pools = {"training": self.training, **self.sets}
        warmup = {"warmup_steps": warmup_steps(self.config.training, self.plan)}
        return {
            "data": {name: pool.describe() for name, pool in pools.items()},
            "plan": {**self.plan.describe(), **warmup},
        }

    def opening_line(self) -> str:
        """Return one line about what will happen: steps, warm-up, share of the pool, sets."""
        plan, pool = self.plan, self.training.examples
        stages = ", ".join(map(str, plan.stages))
        warmup = warmup_steps(self.config.training, plan)
        seen = len(set(plan.order))
        counts = [f"{name} {len(examples)}" for name, examples in self.questions.items()]
        return (
            f"{plan.num_steps} steps ({stages}), {warmup} of them warm-up, see {seen:,} of "
            f"{len(pool):,} training examples ({seen / len(pool):.0%}); "
            f"evaluation sets: {', '.join(counts) or 'none'}"
        )


def _hashes(pools: Mapping[str, Pool]) -> dict[str, str]:
    rows = {name: rows_sha256(pool.examples, with_types=True) for name, pool in pools.items()}
    images = {name: list(stored_images(pool.examples).values()) for name, pool in pools.items()}
    with open_cache() as cache:
        pictures = {
            f"{name}{PICTURES}": contents_sha256(stored, cache)
            for name, stored in images.items()
            if stored
        }
    return {**rows, **pictures}
