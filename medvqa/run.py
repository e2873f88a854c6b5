"""The run, readable top to bottom: data -> plan -> model -> train -> evaluate -> record."""

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from medvqa import record
from medvqa.bertscore import check_encoder
from medvqa.config import Config, DataConfig
from medvqa.curriculum import Plan, PlannedStage, plan_curriculum
from medvqa.data import Pool, load_pool
from medvqa.evaluation import Evaluation, Evaluator, read_evaluations
from medvqa.example import Example
from medvqa.model import LoadedModel, load_model, model_source, save_adapter
from medvqa.pictures import draw_pictures
from medvqa.results import final_values, headline, show_results, write_results
from medvqa.tracking import Tracker, tracker

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
) -> float | None:
    """Train and evaluate as configured; continue what is half done, show what is finished.

    Args:
        config: The checked config.
        directory: Run directory; every file of the run is below it.
        settings: What run.json keeps of the command: `config`, `overrides`, `run_id`, `sweep`.
        load: Gives the model; a worker that serves several runs keeps one loaded.

    Returns:
        Overall exact match on the first evaluation set, for sweepers; None without a set.

    Raises:
        UserError: On a mistake in the input, before a model is loaded.
    """
    with record.directory_lock(directory, patience_s=LOCK_PATIENCE_S):
        if config.fresh:
            record.set_aside(directory)
        if record.read_json(directory / "run.json").get("state") == record.FINISHED:
            log.info("this run is finished already; fresh=true starts it over")
        else:
            _run(config, directory, settings, load)
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


@dataclass(frozen=True)
class Data:
    """The training pool and the evaluation sets by name."""

    training: Pool
    sets: Mapping[str, Pool]


def load_data(config: DataConfig) -> Data:
    """Load all rows that a run needs; images stay where they are."""
    training = load_pool(config, seed=config.seed)
    sets = {name: load_pool(source, seed=config.seed) for name, source in config.evaluation.items()}
    return Data(training, sets)


def prepare(config: Config, data: Data) -> Prepared:
    """Plan the curriculum and check the rest; nothing slow, nothing written.

    Raises:
        UserError: On whatever would end the run later: data, curriculum, model path, encoder.
    """
    training, pools = data.training, data.sets
    plan = plan_curriculum(
        config.curriculum,
        training.examples,
        max_steps=config.training.max_steps,
        batch_size=config.training.micro_batch_size * config.training.accumulation_steps,
        seed=config.seed,
    )
    model_source(config.model)
    check_encoder(config.evaluation.bertscore)
    return Prepared(
        training.examples,
        {name: pool.examples for name, pool in pools.items()},
        plan,
        {name: describe_pool(pool) for name, pool in {"training": training, **pools}.items()},
    )


def _run(config: Config, directory: Path, settings: Mapping[str, Any], load: LoadModel) -> None:
    keeper = record.RunRecord(directory / "run.json", settings)
    with keeper.recording():
        with keeper.phase("data"):
            prepared = prepare(config, load_data(config.data))
        keeper.update(data=prepared.description, plan=describe_plan(prepared.plan))
        log.info("%s", opening_line(prepared))
        with tracker(
            config.tracking,
            directory=directory,
            group=settings.get("sweep"),
            settings=settings["config"],
        ) as run_tracker:
            train_and_evaluate(config, directory, keeper, run_tracker, prepared, load)
        keeper.finish()


def train_and_evaluate(
    config: Config,
    directory: Path,
    keeper: record.RunRecord,
    run_tracker: Tracker,
    prepared: Prepared,
    load: LoadModel,
) -> None:
    """Load, train and evaluate; from here on the heavy libraries are imported."""
    from medvqa.collate import Encoder, preview
    from medvqa.training import Trainer

    with keeper.phase("load"):
        loaded = load(
            config.model,
            config.lora,
            gradient_checkpointing=config.training.gradient_checkpointing,
            seed=config.seed,
        )
    keeper.update(model=loaded.describe())
    plan, sets = prepared.plan, prepared.sets
    encoder = Encoder(loaded.processor, max_length_tokens=config.model.max_length_tokens)
    by_id = {example.id: example for example in prepared.pool}
    first = preview(encoder, encoder.encode(by_id[plan.order[0]]))
    (directory / "preview.txt").write_text(first + "\n", encoding="utf-8")
    log.info("first sample; the loss is on [[...]] only:\n%s\n", first)

    evaluator = Evaluator(sets, config.evaluation, directory=directory, seed=config.seed)

    def evaluate(phase: str, step: int) -> list[Evaluation]:
        with keeper.phase("evaluate"):
            results = evaluator.model(loaded, encoder, phase=phase, step=step)
        for result in results:
            run_tracker.log(result.flat(), step=step)
        return results

    def stage_ended(stage: PlannedStage, step: int) -> None:
        if step < plan.num_steps and config.evaluation.after_each_stage:
            evaluate(f"after_{stage.name}", step)

    evaluator.majority([(example.answer_type, example.answers[0]) for example in prepared.pool])
    if config.evaluation.zero_shot:
        with loaded.adapter_disabled():
            evaluate("zero_shot", 0)
    trainer = Trainer(loaded, encoder, config.training, directory=directory, seed=config.seed)
    with keeper.phase("train_and_evaluate_stages"):
        result = trainer.train(
            plan,
            by_id,
            on_step=lambda row: run_tracker.log(tracked(row), step=int(row["step"])),
            on_stage_end=stage_ended,
        )
    keeper.update(training=asdict(result))
    save_adapter(loaded, directory / "adapter")
    final = evaluate("final", plan.num_steps)
    keeper.update(
        peak_gpu_bytes=loaded.peak_gpu_bytes(),
        results={e.set_name: e.flat() for e in final},
        headline=headline(final, sets),
    )
    for name, examples in sets.items():
        path = evaluator.place("final", name) / "predictions.jsonl"
        run_tracker.log_predictions(name, path, examples)
    evaluations = read_evaluations(directory)
    write_results(directory, evaluations, keeper.values)
    with keeper.phase("pictures"):
        pictures = draw_pictures(directory, evaluations, sets, seed=config.seed)
    run_tracker.log_pictures(pictures, step=plan.num_steps)
    losses = {"train/final_loss": result.final_loss, "train/average_loss": result.average_loss}
    run_tracker.summarize({**losses, **final_values(final)})


def tracked(row: Mapping[str, Any]) -> dict[str, float | str]:
    """Return a step's values by the names that curves have; the stage has a curve of its own."""
    names = ("loss", "learning_rate", "grad_norm", "num_answer_tokens", "num_tokens")
    return {
        **{f"train/{name}": row[name] for name in names},
        f"train/loss_{row['stage']}": row["loss"],
        "train/stage": row["stage"],
    }


def describe_pool(pool: Pool) -> dict[str, Any]:
    """Return counts, and a hash over what a question is: id, text, answers, pictures."""
    examples = pool.examples
    digest = hashlib.sha256()
    for e in examples:
        digest.update(json.dumps([e.id, e.question, e.answers, e.image_ids]).encode() + b"\n")
    return {
        "num_examples": len(examples),
        "num_images": len({name for example in examples for name in example.image_ids}),
        "answer_types": dict(Counter(example.answer_type for example in examples)),
        "type_origins": dict(Counter(example.type_origin for example in examples)),
        "sources": dict(Counter(example.source for example in examples)),
        "splits": dict(Counter(example.split for example in examples)),
        "num_available": pool.available,
        "num_skipped": len(pool.skipped),
        "skipped": pool.skipped[:SHOWN_SKIPPED],
        "sha256": digest.hexdigest(),
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
