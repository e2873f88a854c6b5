"""The run, readable top to bottom: data -> gate -> plan -> model -> train -> evaluate -> record."""

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from medvqa.config.data import DataConfig
from medvqa.config.schema import Config
from medvqa.contamination import gate as contamination
from medvqa.contamination.overlap import Overlap
from medvqa.curriculum import Plan, PlannedStage, plan_curriculum
from medvqa.data.example import Example
from medvqa.data.pool import Pool, load_pool, load_sets, rows_sha256
from medvqa.data.verification import check_images
from medvqa.evaluation.bertscore import check_encoder
from medvqa.evaluation.evaluate import Evaluation, Evaluator, read_evaluations
from medvqa.evaluation.plots import draw_pictures
from medvqa.evaluation.results import final_values, headline, show_results, write_results
from medvqa.fast.choice import choose_decoding
from medvqa.models.adapter import save_adapter
from medvqa.models.encode import Encoder
from medvqa.models.load import load_model
from medvqa.models.loaded import LoadedModel
from medvqa.models.patches import Patches
from medvqa.models.sample import preview
from medvqa.models.source import model_source
from medvqa.tracking import record
from medvqa.tracking.wandb_mirror import Tracker, tracker
from medvqa.training.ranks import ALONE, Ranks
from medvqa.training.torchrun import run_ranks

log = logging.getLogger(__name__)

LoadModel = Callable[..., LoadedModel]
LOCK_PATIENCE_S = 10.0  # for a process that has just been told to leave
SHOWN_SKIPPED = 100  # reasons in run.json; the log has them all


def run(
    config: Config,
    *,
    directory: Path,
    settings: Mapping[str, Any],
    load: LoadModel = load_model,
    patches: Patches | None = None,
    data: "DataOnce | None" = None,
) -> float | None:
    """Train and evaluate as configured; continue what is half done, show what is finished.

    Args:
        config: The checked config.
        directory: Run directory; every file of the run is below it.
        settings: What run.json keeps of the command: `config`, `overrides`, `run_id`, and in
            a grid `sweep` and `name`, for W&B.
        load: Gives the model; a worker that serves several runs keeps one loaded.
        patches: The pictures that such a worker keeps with it.
        data: The rows that such a worker keeps.

    Returns:
        Overall exact match on the first evaluation set, for sweepers; None without a set.

    Raises:
        UserError: On a mistake in the input, before the model's weights are read; on what only
            they can tell, such as a layer that is not there, before the first step; on too little
            memory, in the step that lacks it.
    """
    with record.directory_lock(directory, patience_s=LOCK_PATIENCE_S):
        if config.fresh:
            record.set_aside(directory)
        if record.read_json(directory / "run.json").get("state") == record.FINISHED:
            log.info("this run is finished already; fresh=true starts it over")
        elif config.training.gpus > 1:
            run_ranks(config.training.gpus, directory=directory, settings=settings)
        else:
            run_rank(
                config,
                directory=directory,
                settings=settings,
                load=load,
                patches=patches,
                data=data,
            )
        evaluations = read_evaluations(directory)
        show_results(evaluations, directory)
        return headline(evaluations, config.data.evaluation)


@dataclass(frozen=True)
class Prepared:
    """All that is known before a model is loaded.

    Attributes:
        pool: Training pool; `sets` are the evaluation sets by name.
        description: Counts and hashes of both, for run.json.
    """

    pool: Sequence[Example]
    sets: Mapping[str, Sequence[Example]]
    plan: Plan
    description: Mapping[str, Any]

    def used(self) -> list[Example]:
        """Return what the model will be shown: the planned examples, then all questions."""
        by_id = {example.id: example for example in self.pool}
        planned = [by_id[name] for name in dict.fromkeys(self.plan.order)]
        return [*planned, *(e for examples in self.sets.values() for e in examples)]


@dataclass(frozen=True)
class Data:
    """The training pool and the evaluation sets by name."""

    training: Pool
    sets: Mapping[str, Pool]


def load_data(config: DataConfig) -> Data:
    """Load all rows that a run needs; images stay where they are."""
    return Data(load_pool(config, seed=config.seed), load_sets(config))


def pass_gate(config: Config, data: Data, overlap: Overlap) -> Data:
    """Return what may be trained on.

    Raises:
        UserError: If the contamination gate refuses.
    """
    expected = config.data.allow_training_rows
    rows = data.training.examples
    kept = contamination.kept_rows(config.contamination, rows, overlap, expected=expected)
    return Data(data.training._replace(examples=kept), data.sets)


def measure_overlap(config: Config, data: Data) -> Overlap:
    """Compare the pool with every evaluation set."""
    sets = {name: pool.examples for name, pool in data.sets.items()}
    return contamination.measure(config.contamination, data.training.examples, sets)


class DataOnce:
    """Loads and compares each data set once, however many runs use it.

    Args:
        show: Print each comparison's table when it is made.
    """

    def __init__(self, *, show: bool = True) -> None:
        self._show = show
        self._data: dict[str, Data] = {}
        self._overlaps: dict[str, Overlap] = {}

    def load(self, config: Config) -> Data:
        """Return the run's data; see `load_data`."""
        key = repr(config.data)
        if key not in self._data:
            self._data[key] = load_data(config.data)
        return self._data[key]

    def overlap(self, config: Config) -> Overlap:
        """Return the run's overlap; see `measure_overlap`."""
        key = f"{config.data!r} {config.contamination.max_distance}"
        if key not in self._overlaps:
            self._overlaps[key] = measure_overlap(config, self.load(config))
            if self._show:
                contamination.show_overlap(self._overlaps[key])
        return self._overlaps[key]


def check(config: Config, data: Data) -> Plan:
    """Plan the curriculum and check what costs nothing, before every picture is read.

    Raises:
        UserError: If the curriculum finds too little, or model path, encoder or cache are wrong.
    """
    plan = plan_curriculum(
        config.curriculum,
        data.training.examples,
        max_steps=config.training.max_steps,
        batch_size=config.training.micro_batch_size * config.training.accumulation_steps,
        seed=config.seed,
    )
    model_source(config.model)
    check_encoder(config.evaluation.bertscore)
    return plan


def prepare(config: Config, data: Data) -> Prepared:
    """Plan the curriculum and check the rest, the planned pictures too; nothing is written.

    Raises:
        UserError: On whatever would end the run later: data, curriculum, model path, encoder.
    """
    training, pools = data.training, data.sets
    plan = check(config, data)
    prepared = Prepared(
        training.examples,
        {name: pool.examples for name, pool in pools.items()},
        plan,
        {name: describe_pool(pool) for name, pool in {"training": training, **pools}.items()},
    )
    num_left = check_images(prepared.used())
    if num_left:
        log.info("%s pictures are not looked at before training", f"{num_left:,}")
    return prepared


def run_rank(
    config: Config,
    *,
    directory: Path,
    settings: Mapping[str, Any],
    load: LoadModel = load_model,
    patches: Patches | None = None,
    data: DataOnce | None = None,
    ranks: Ranks = ALONE,
) -> None:
    """Do one process's part of a run; see `run` for the arguments.

    Every rank writes its records below its directory; `medvqa.sweep.rank_worker` keeps only
    those of the first rank.
    """
    keeper = record.RunRecord(directory / "run.json", settings)
    once = data or DataOnce(show=False)
    with keeper.recording():
        keeper.update(world_size=ranks.size)
        with keeper.phase("data"):
            rows = once.load(config)
            check(config, rows)  # a mistake is said before every picture is read
        with keeper.phase("contamination"):
            overlap = once.overlap(config)
            contamination.show_overlap(overlap)
            found = contamination.as_json(config.contamination, overlap)
            record.write_json(directory / "contamination.json", found)
            keeper.update(contamination=contamination.headline(config.contamination, overlap))
            prepared = prepare(config, pass_gate(config, rows, overlap))
        orders = set(ranks.gather(prepared.plan.sha256))
        assert len(orders) == 1, "the ranks have read the data in different orders"
        keeper.update(data=prepared.description, plan=describe_plan(prepared.plan))
        log.info("%s", opening_line(prepared))
        with tracker(
            config.tracking,
            directory=directory,
            name=settings.get("name"),
            group=settings.get("sweep"),
            settings=settings["config"],
        ) as run_tracker:
            run_tracker.summarize(contamination.flat(overlap))
            train_and_evaluate(
                config, directory, keeper, run_tracker, prepared, load, patches, ranks
            )
        keeper.finish()


def train_and_evaluate(
    config: Config,
    directory: Path,
    keeper: record.RunRecord,
    run_tracker: Tracker,
    prepared: Prepared,
    load: LoadModel,
    patches: Patches | None,
    ranks: Ranks,
) -> None:
    """Load, train and evaluate; from here on the heavy libraries are imported."""
    from medvqa.training.loop import Trainer

    max_length_tokens = config.model.max_length_tokens

    def check_lengths(processor: Any) -> None:
        Encoder(processor, max_length_tokens=max_length_tokens).check_lengths(prepared.used())

    with keeper.phase("load"):
        loaded = load(
            config.model,
            config.lora,
            gradient_checkpointing=config.training.gradient_checkpointing,
            seed=config.seed,
            check=check_lengths,
        )
    keeper.update(model=loaded.describe())
    plan, sets = prepared.plan, prepared.sets
    encoder = Encoder(
        loaded.processor,
        max_length_tokens=max_length_tokens,
        patches=patches,
        pixel_dtype=loaded.dtype,
    )
    by_id = {example.id: example for example in prepared.pool}
    first = preview(encoder, encoder.encode(by_id[plan.order[0]]))
    (directory / "preview.txt").write_text(first + "\n", encoding="utf-8")
    log.info("first sample; the loss is on [[...]] only:\n%s\n", first)

    places: dict[str, Any] = {"directory": directory, "seed": config.seed, "ranks": ranks}
    evaluator = Evaluator(sets, config.evaluation, **places)
    seconds: dict[str, float] = keeper.values["evaluation_seconds"]

    def evaluate(phase: str, step: int, *, show_images: bool = True) -> list[Evaluation]:
        started = time.monotonic()
        with keeper.phase("evaluate"):
            results = evaluator.model(
                loaded, encoder, phase=phase, step=step, show_images=show_images
            )
        # A phase that an earlier start has evaluated is only read here.
        seconds.setdefault(phase, round(time.monotonic() - started, 3))
        for result in results:
            run_tracker.log(result.flat(), step=step)
        keeper.update()
        return results

    def stage_ended(stage: PlannedStage, step: int) -> None:
        if step < plan.num_steps and config.evaluation.after_each_stage:
            evaluate(f"after_{stage.name}", step)

    answers = [(example.answer_type, example.answers[0]) for example in prepared.pool]
    evaluator.majority(answers, device=loaded.device.type)
    # First, because it puts the engine's kernels into the model: all phases compute with them,
    # and a model that has served another run has them already.
    trainer = Trainer(loaded, encoder, config.training, **places)
    choose_decoding(config.evaluation.decoding, loaded)  # an error now, not when all is trained
    if config.evaluation.zero_shot:
        with loaded.adapter_disabled():
            evaluate("zero_shot", 0)
    with trainer.checkpoints:  # the last one is written while the model answers
        with keeper.phase("train_and_evaluate_stages"):
            result = trainer.train(
                plan,
                by_id,
                on_step=lambda row: run_tracker.log(tracked(row), step=int(row["step"])),
                on_stage_end=stage_ended,
                wait=False,
            )
        keeper.update(training=asdict(result))
        with keeper.phase("write"):
            ranks.first(save_adapter, loaded, directory / "adapter")
        final = evaluate("final", plan.num_steps)
        if config.evaluation.blind:
            evaluate("blind", plan.num_steps, show_images=False)
        with keeper.phase("write"):
            trainer.checkpoints.settle()
    keeper.update(
        peak_gpu_bytes=max(ranks.gather(loaded.peak_gpu_bytes() or 0)) or None,
        results={e.set_name: e.flat() for e in final},
        headline=headline(final, sets),
    )
    losses = {"train/final_loss": result.final_loss, "train/average_loss": result.average_loss}
    run_tracker.summarize({**losses, **final_values(final)})
    ranks.first(show_run, config, directory, keeper, run_tracker, sets, plan.num_steps)


def show_run(
    config: Config,
    directory: Path,
    keeper: record.RunRecord,
    run_tracker: Tracker,
    sets: Mapping[str, Sequence[Example]],
    num_steps: int,
) -> None:
    """Write results.json and the pictures of what the run's files hold, and mirror them."""
    for name, examples in sets.items():
        path = directory / "evaluation" / "final" / name / "predictions.jsonl"
        run_tracker.log_predictions(name, path, examples)
    evaluations = read_evaluations(directory)
    write_results(directory, evaluations, keeper.values)
    with keeper.phase("pictures"):
        pictures = draw_pictures(directory, evaluations, sets, seed=config.seed)
    run_tracker.log_pictures(pictures, step=num_steps)


def tracked(row: Mapping[str, Any]) -> dict[str, float | str]:
    """Return a step's values by the names that curves have; the stage has a curve of its own."""
    names = ("loss", "learning_rate", "grad_norm", "num_answer_tokens", "num_tokens")
    return {
        **{f"train/{name}": row[name] for name in names},
        f"train/loss_{row['stage']}": row["loss"],
        "train/stage": row["stage"],
    }


def describe_pool(pool: Pool) -> dict[str, Any]:
    """Return counts, for each part too, and a hash over what a question is."""
    examples = pool.examples
    return {
        "num_examples": len(examples),
        "num_images": len({name for example in examples for name in example.image_ids}),
        "answer_types": dict(Counter(example.answer_type for example in examples)),
        "type_origins": dict(Counter(example.type_origin for example in examples)),
        "sources": dict(Counter(example.source for example in examples)),
        "splits": dict(Counter(example.split for example in examples)),
        "parts": {
            name: {**part._asdict(), "num_not_sampled": part.num_available - part.num_sampled}
            for name, part in pool.parts.items()
        },
        "num_skipped": len(pool.skipped),
        "skipped": pool.skipped[:SHOWN_SKIPPED],
        "sha256": rows_sha256(examples),
    }


def describe_plan(plan: Plan) -> dict[str, Any]:
    """Return what each stage consumes, and the hash of the order."""
    return {
        "num_steps": plan.num_steps,
        "order_sha256": plan.sha256,
        "stages": [
            {
                "name": stage.name,
                "num_steps": stage.num_steps,
                "num_examples": len(stage.example_ids),
                "num_distinct": stage.num_distinct,
                "num_available": stage.num_available,
                "learning_rate": stage.learning_rate.name,
                "optimizer": stage.optimizer.name,
            }
            for stage in plan.stages
        ],
    }


def opening_line(prepared: Prepared) -> str:
    """Return one line that says what is about to happen, the share of the pool included."""
    plan, pool = prepared.plan, prepared.pool
    stages = ", ".join(f"{stage.name} {stage.num_steps} steps" for stage in plan.stages)
    seen = len(set(plan.order))
    counts = [f"{name} {len(examples)}" for name, examples in prepared.sets.items()]
    return (
        f"{plan.num_steps} steps ({stages}) see {seen:,} of {len(pool):,} training examples "
        f"({seen / len(pool):.0%}); evaluation sets: {', '.join(counts) or 'none'}"
    )
