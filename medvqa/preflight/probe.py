"""A few real steps and answers, for a time estimate; loads the model."""

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from medvqa.config.schema import Config
from medvqa.data.example import Example
from medvqa.data.plan import Plan
from medvqa.evaluation.likelihood import by_generation
from medvqa.models.encode import encoder_of
from medvqa.models.load import load_model
from medvqa.tracking.record import read_lines
from medvqa.training.loop import Trainer

NUM_STEPS = 4
NUM_QUESTIONS = 32


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What was measured on this machine.

    Attributes:
        step_seconds: Median of the steps after the first, which warms up.
        answer_seconds: Of one question of the first evaluation set; None without a set.
        peak_gpu_bytes: None on a CPU.
    """

    load_seconds: float
    step_seconds: float
    answer_seconds: float | None
    peak_gpu_bytes: int | None
    device: str


def run_probe(
    config: Config, plan: Plan, pool: Sequence[Example], sets: Mapping[str, Sequence[Example]]
) -> Probe:
    """Load the model, train the first steps of the plan, answer some questions; keep nothing."""
    started = time.perf_counter()
    loaded = load_model(
        config.model,
        config.lora,
        gradient_checkpointing=config.training.gradient_checkpointing,
        seed=config.seed,
    )
    load_seconds = time.perf_counter() - started
    encoder = encoder_of(loaded, config.model, None, config.prompt)
    questions = next(iter(sets.values()), [])[:NUM_QUESTIONS]
    with tempfile.TemporaryDirectory() as place:
        directory = Path(place)
        # A configured warm-up may be longer than these few steps.
        training = replace(config.training, warmup_steps=None)
        trainer = Trainer(loaded, encoder, training, directory=directory, seed=config.seed)
        num_steps = min(NUM_STEPS, plan.num_steps)
        ids = plan.order[: num_steps * config.training.batch_size]
        short = Plan((replace(plan.stages[0], example_ids=ids, num_steps=num_steps),))
        by_id = {example.id: example for example in pool}
        trainer.train(short, by_id, on_step=lambda _: None, on_stage_end=lambda *_: None)
        seconds = [float(row["seconds"]) for row in read_lines(directory / "metrics.jsonl")]
    started = time.perf_counter()
    by_generation(loaded, encoder, questions, config.evaluation, "probe: answering")
    seconds_answering = time.perf_counter() - started
    return Probe(
        load_seconds=load_seconds,
        step_seconds=median(seconds[1:] or seconds),
        answer_seconds=seconds_answering / len(questions) if questions else None,
        peak_gpu_bytes=loaded.peak_gpu_bytes(),
        device=str(loaded.device),
    )


def total_seconds(probe: Probe, config: Config, plan: Plan, num_questions: int) -> float:
    """Return the wall time of the run: loading, all steps, every evaluation of every set.

    A hallucination probe counts as one evaluation.
    """
    own = config.evaluation
    stages = len(plan.stages) - 1 if own.after_each_stage else 0
    num_phases = (1 + own.zero_shot) * (1 + own.rephrasings) + own.blind + stages + len(own.probes)
    answers = num_phases * num_questions * (probe.answer_seconds or 0.0)
    return probe.load_seconds + plan.num_steps * probe.step_seconds + answers
