"""Run directories with invented answers, written by the project's own writers.

For tests of readers of grids that need many cells. The files are complete and consistent, and the
config is a real one; only no model was trained.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from medvqa.cli import register
from medvqa.config.compose import resolved
from medvqa.config.identity import run_id
from medvqa.config.schema import Config
from medvqa.curriculum import plan_curriculum
from medvqa.data.example import Example
from medvqa.data.pool import Pool
from medvqa.evaluation.evaluate import to_predictions
from medvqa.evaluation.generate import Answer as Answered
from medvqa.evaluation.phase_scores import write_evaluation
from medvqa.evaluation.score import score_predictions
from medvqa.tracking.record import JsonLines, read_json, write_json

CONF = Path(__file__).resolve().parents[1] / "conf"
Answer = Callable[[Example, str], str]  # of a question in a phase


def config_of(overrides: Sequence[str]) -> tuple[Config, dict[str, Any]]:
    """Return the typed config of a command line, and its plain values."""
    seeds = [int(text.removeprefix("seed=")) for text in overrides if text.startswith("seed=")]
    cfg = deepcopy(_composed(tuple(text for text in overrides if not text.startswith("seed="))))
    if seeds:
        cfg.seed = seeds[-1]
    config = OmegaConf.to_object(cfg)
    assert isinstance(config, Config)
    return config, resolved(cfg)


@cache
def _composed(overrides: tuple[str, ...]) -> DictConfig:
    """Compose once for the cells that differ in their seed alone; Hydra takes half a second."""
    register()
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        return compose("config", overrides=list(overrides))


def write_cell(
    directory: Path,
    overrides: Sequence[str],
    training: Sequence[Example],
    sets: Mapping[str, Sequence[Example]],
    answer: Answer,
    *,
    phases: Sequence[str] = ("majority", "zero_shot", "final"),
) -> None:
    """Write a finished run of this command line whose answers are `answer`'s."""
    config, values = config_of(overrides)
    plan = plan_curriculum(
        config.curriculum,
        training,
        max_steps=config.training.max_steps,
        batch_size=config.training.micro_batch_size * config.training.accumulation_steps,
        seed=config.seed,
    )
    ends = [f"after_{stage.name}" for stage in plan.stages[:-1]]
    for step, phase in enumerate([*phases[:-1], *ends, phases[-1]]):
        for name, examples in sets.items():
            _write_phase(directory, config, phase, name, step, examples, answer)
    rng = random.Random(str(directory.name))
    start = 2.5 + rng.random()
    with JsonLines(directory / "metrics.jsonl", keep_up_to_step=0) as log:
        for step in range(1, plan.num_steps + 1):
            loss = start * 0.9**step + 0.6 + 0.1 * rng.random()
            log.write({"step": step, "loss": loss, "stage": plan.stage_at(step - 1).name})
    write_json(
        directory / "run.json",
        {
            "state": "finished",
            "run_id": run_id(values),
            "config": values,
            "overrides": list(overrides),
            "started": "2026-01-01T00:00:00+00:00",
            "ended": "2026-01-01T00:10:00+00:00",
            "num_starts": 1,
            "seconds": {"data": 1.0, "load": 9.0, "train_and_evaluate_stages": 400.0},
            "git": {"commit": None, "dirty": None},
            "data": {
                name: Pool(list(examples), {}, []).describe()
                for name, examples in {"training": training, **sets}.items()
            },
            "plan": plan.describe(),
            "training": {"final_loss": 0.7, "average_loss": 1.2},
            "peak_memory_bytes": int(2e9 + 1e8 * rng.random()),
            "peak_gpu_bytes": None,
        },
    )


def _write_phase(
    directory: Path,
    config: Config,
    phase: str,
    name: str,
    step: int,
    examples: Sequence[Example],
    answer: Answer,
) -> None:
    answers = [Answered(text=answer(example, phase)) for example in examples]
    predictions = to_predictions(examples, answers)
    scored = score_predictions(predictions, config.evaluation, device="cpu")
    place = directory / "evaluation" / phase / name
    write_evaluation(place, step, predictions, scored, config.evaluation)


def guesser(examples: Sequence[Example], *, ability: float, base: str, seed: str) -> Answer:
    """Return answers that are right the more often the higher the ability.

    Questions are easy or hard for everybody, and each guesser errs in its own way too; before
    training that way is the base's.
    """
    wrong: dict[str, list[str]] = {}
    for example in examples:
        wrong.setdefault(example.answer_type, []).append(example.answers[0])

    def answer(example: Example, phase: str) -> str:
        ease = random.Random(example.id).gauss(0, 1.5)
        untrained = phase in ("majority", "zero_shot")
        own = random.Random(f"{example.id} {phase} {base if untrained else seed}")
        if untrained:
            ease -= ability + 1.0
        helped = {"final": 0.0, "blind": -0.8}.get(phase, -0.4)
        if ease + ability + helped + own.gauss(0, 0.7) > 0:
            return example.answers[0]
        return own.choice(wrong[example.answer_type])

    return answer


def edit_run(directory: Path, **values: Any) -> None:
    """Replace entries of a run's run.json."""
    write_json(directory / "run.json", {**read_json(directory / "run.json"), **values})
