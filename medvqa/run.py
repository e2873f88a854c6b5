"""The run, from top to bottom: data -> gate -> plan -> model -> train -> evaluate -> record."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from medvqa.config.schema import Config
from medvqa.contamination import gate
from medvqa.evaluation.answering import by_model
from medvqa.evaluation.evaluate import Evaluator
from medvqa.evaluation.phase_scores import Evaluation, read_evaluations
from medvqa.evaluation.phases import Phases
from medvqa.evaluation.results import record_results
from medvqa.evaluation.untrained import evaluate_only
from medvqa.fast.choice import log_path
from medvqa.inputs import Inputs
from medvqa.models.adapter import save_adapter
from medvqa.models.encode import encoder_of
from medvqa.models.load import load_model
from medvqa.models.patches import Patches
from medvqa.models.preview import write_preview
from medvqa.tracking import files, identity, record
from medvqa.tracking.wandb_mirror import Records, log_step, tracker
from medvqa.training.ranks import ALONE, Ranks
from medvqa.training.torchrun import run_ranks
from medvqa.training.trainers import TRAINERS

log = logging.getLogger(__name__)
Settings = Mapping[str, Any]


@dataclass(frozen=True)
class ProcessState:
    """What a process reuses in its next run: a loaded model, encoded pictures, rows, overlaps."""

    load: Callable[..., Any] = load_model
    patches: Patches | None = None
    cache: dict[str, Any] = field(default_factory=dict)


def run(
    config: Config, directory: Path, settings: Settings, process: ProcessState
) -> list[Evaluation]:
    """Train and evaluate; continue a half-done run, read a finished one; return its evaluations.

    Args:
        config: The checked config.
        directory: Every file of the run is below it.
        settings: For run.json: config, overrides, run id; of a grid's cell also `sweep` and `name`.
        process: What it loaded in earlier runs.
    """
    with files.directory_lock(directory, patience_s=files.PATIENCE_S):
        if config.fresh:
            files.set_aside(directory)
        inputs = Inputs(config, process.cache)
        if identity.is_finished(directory, settings["config"], inputs.row_hashes):
            log.info("this run is finished already; fresh=true starts it over")
        elif config.only_evaluate:
            evaluate_only(config, directory, settings, inputs.row_hashes, lambda: inputs.sets)
        elif config.training.gpus > 1:
            run_ranks(config.training.gpus, directory=directory, settings=settings)
        else:
            run_rank(config, directory, settings, process)
        return read_evaluations(directory)


def run_rank(
    config: Config, directory: Path, settings: Settings, process: ProcessState, ranks: Ranks = ALONE
) -> None:
    """Do one process's part; every rank writes records, and only the first one keeps them."""
    keeper = record.RunRecord(directory / "run.json", settings)
    inputs = Inputs(config, process.cache)
    with keeper.recording():
        with keeper.phase("data"):
            inputs.check()
            keeper.update(code=identity.code(), rows=inputs.row_hashes())
        with keeper.phase("contamination"):
            overlap = gate.record_overlap(config.contamination, inputs.overlap, directory)
            keeper.update(world_size=ranks.size, contamination=overlap)
            assert len(set(ranks.gather(inputs.plan.sha256))) == 1, "the ranks' orders differ"
        keeper.update(**inputs.describe())
        log.info("%s", inputs.opening_line())
        with tracker(config.tracking, directory, settings) as mirror:
            mirror.summarize(gate.flat(inputs.overlap))
            final = train_and_evaluate(inputs, directory, process, (keeper, mirror), ranks)
            ranks.first(record_results, directory, (keeper, mirror), final, inputs.questions)
        keeper.finish()


def train_and_evaluate(
    inputs: Inputs, directory: Path, process: ProcessState, records: Records, ranks: Ranks
) -> list[Evaluation]:
    """Load the model, train and evaluate it; return the final evaluations."""
    config, plan, (keeper, mirror) = inputs.config, inputs.plan, records
    with keeper.phase("load"):
        loaded = process.load(config.model, config.lora, **inputs.load_options(ranks))
    encoder = encoder_of(loaded, config.model, process.patches, config.prompt)
    write_preview(encoder, inputs.by_id[plan.order[0]], directory)
    places: dict[str, Any] = {"directory": directory, "seed": config.seed, "ranks": ranks}
    trainer = TRAINERS[config.training.trainer](loaded, encoder, config.training, **places)
    keeper.update(**log_path(loaded, config, trainer.engine_name))
    evaluator = Evaluator(inputs.questions, config.evaluation, **places)
    answer = by_model(loaded, encoder, config.evaluation, ranks)
    phases = Phases(evaluator, answer, records, loaded)
    phases.before_training(inputs.training.examples)
    with trainer.checkpoints:  # the last one is written while the model answers
        with keeper.phase("train_and_evaluate_stages"):
            result = trainer.train(
                plan,
                inputs.by_id,
                on_step=lambda row: log_step(mirror, row),
                on_stage_end=lambda stage, step: phases.after_stage(plan, stage, step),
                wait=False,
            )
        keeper.update(training=asdict(result))
        with keeper.phase("write"):
            ranks.first(save_adapter, loaded, directory / "adapter")
        return phases.after_training(plan.num_steps)
