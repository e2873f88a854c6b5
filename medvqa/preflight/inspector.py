"""The report of one run before it starts: samples, tokens, memory, time, disk, power, mistakes."""

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from medvqa.config.errors import UserError
from medvqa.config.machine import num_cuda_devices
from medvqa.config.model import Backend
from medvqa.config.schema import Config
from medvqa.contamination import gate as contamination
from medvqa.data.example import Example
from medvqa.data.plan import Plan
from medvqa.evaluation.power import minimal_detectable_effect
from medvqa.inputs import Inputs
from medvqa.models.encode import Encoder
from medvqa.models.source import model_source
from medvqa.preflight.downloads import (
    free_bytes,
    needed_downloads,
    written_bytes,
)
from medvqa.preflight.gpu_memory import (
    MemoryEstimate,
    compute_path,
    estimate_memory,
    is_on_gpu,
)
from medvqa.preflight.model_shapes import Shapes, model_shapes
from medvqa.preflight.probe import Probe, run_probe, total_seconds
from medvqa.preflight.tables import Assumptions, CellReport
from medvqa.preflight.tokens import Estimator, TokenReport, count_tokens, encoder_for

OUTPUT_DIRECTORY = Path("outputs")


@dataclass(frozen=True)
class Cell:
    """One run that is being inspected, and what has come to light about it."""

    config: Config
    plan: Plan
    pool: Sequence[Example]
    sets: Mapping[str, Sequence[Example]]
    problems: list[str]
    notes: list[str]


class Inspector:
    """Inspects one cell after another; work that several share is done once."""

    def __init__(self, assumptions: Assumptions) -> None:
        self.assumptions = assumptions
        self.cache: dict[str, Any] = {}
        self._results: dict[str, Any] = {}

    def inspect(self, config: Config, swept: Sequence[str]) -> CellReport:
        """Return what is known of the cell.

        Raises:
            UserError: If data, curriculum or paths are wrong: there is nothing to inspect then.
        """
        inputs = Inputs(config, self.cache)
        model_source(config.model)
        inputs.check_data()  # a base that cannot be had here is estimated
        inputs.show_overlap()
        cell = _cell(config, inputs)
        plan, pool, sets = cell.plan, cell.pool, cell.sets
        tokens = self._count(cell)
        shapes = self._shapes(cell)
        memory = _memory(cell, shapes, tokens)
        probe = self._probe(cell)
        num_questions = sum(map(len, sets.values()))
        return CellReport(
            swept=tuple(swept),
            samples={
                source: dict(Counter(e.answer_type for e in pool if e.source == source))
                for source in dict.fromkeys(e.source for e in pool)
            },
            num_samples=len(pool),
            num_dropped=len(inputs.pool.examples) - len(pool),
            num_steps=plan.num_steps,
            batch_size=config.training.batch_size,
            num_seen=len(set(plan.order)),
            tokens=tokens,
            memory=memory,
            probe=probe,
            seconds=total_seconds(probe, config, plan, num_questions) if probe else None,
            downloads=tuple(needed_downloads(config)),
            free_bytes=free_bytes(OUTPUT_DIRECTORY.absolute()),
            written_bytes=written_bytes(shapes.num_adapter) if shapes else None,
            contamination=contamination.headline(config.contamination, inputs.overlap),
            detectable=self._detectable(next(iter(sets.values()), ())),
            problems=tuple(cell.problems),
            notes=tuple(cell.notes),
        )

    def _once(self, key: str, compute: Callable[[], Any]) -> Any:
        """Return the result, or the `UserError`, of the first cell with this key."""
        if key not in self._results:
            try:
                self._results[key] = compute()
            except UserError as error:
                self._results[key] = error
        return self._results[key]

    def _count(self, cell: Cell) -> dict[str, TokenReport]:
        config = cell.config
        encoder = self._once(f"encoder {config.model!r}", lambda: encoder_for(config))
        if isinstance(encoder, UserError):
            cell.notes.append(f"tokens are unknown: {encoder}")
            return {}
        reports = {}
        for name, examples in {"training": cell.pool, **cell.sets}.items():
            count = partial(
                count_tokens,
                encoder,
                examples,
                at_most=self.assumptions.at_most if name == "training" else None,
                seed=config.data.seed,
                always=frozenset(cell.plan.order),
            )
            key = f"{config.model!r} {config.data!r} {name} {len(examples)} {cell.plan.sha256}"
            reports[name] = self._once(key, count)
        if isinstance(encoder, Estimator):  # no reason to call a run failed
            cell.notes.append(
                f"tokens of texts are estimated: the processor of {config.model.name} is "
                "unavailable here (no network? give model.path=, a local copy)"
            )
        else:
            cell.problems.extend(_too_long(cell, encoder, reports))
        return reports

    def _shapes(self, cell: Cell) -> Shapes | None:
        config = cell.config
        key = f"shapes {config.model!r} {config.lora!r}"
        shapes = self._once(key, lambda: model_shapes(config))
        if isinstance(shapes, UserError):
            cell.notes.append(f"memory is unknown: {shapes}")
            return None
        assert isinstance(shapes, Shapes)
        try:
            path = compute_path(config, shapes.family, on_gpu=is_on_gpu(config))
        except UserError as error:
            cell.problems.append(str(error))
            return None
        cell.notes.append(path.line)
        return shapes

    def _probe(self, cell: Cell) -> Probe | None:
        is_asked = self.assumptions.probe
        if is_asked is None:
            is_asked = num_cuda_devices(os.environ) > 0
        if is_asked and not cell.problems:
            return run_probe(cell.config, cell.plan, cell.pool, cell.sets)
        reason = (
            "of a run that would fail" if cell.problems else "without a GPU (--probe makes one)"
        )
        cell.notes.append(
            f"time is unknown: no probe {reason}; measured for Qwen3-VL-8B on an H100 by the fused "
            "engine: 47 samples/s in training, 0.007 s per question in batches of 128"
        )
        return None

    def _detectable(self, questions: Sequence[Example]) -> dict[str, tuple[int, float | None]]:
        groups = Counter[str](example.answer_type for example in questions)
        counts = {"overall": len(questions), **groups} if questions else {}
        share, effect = self.assumptions.discordant_fraction, self.assumptions.design_effect
        return {
            group: (number, minimal_detectable_effect(number, share, design_effect=effect))
            for group, number in counts.items()
        }


def _cell(config: Config, inputs: Inputs) -> Cell:
    problems, notes = [], []
    try:
        pool = inputs.training.examples
    except UserError as error:  # of the gate: all rows are inspected
        problems.append(str(error))
        inputs.training, pool = inputs.pool, inputs.pool.examples
    if not num_cuda_devices(os.environ) and config.model.name != "medvqa/tiny":
        notes.append("no CUDA GPU is visible here; memory and data are checked as for one")
    return Cell(config, inputs.plan, pool, inputs.questions, problems, notes)


def _too_long(cell: Cell, encoder: Encoder, reports: Mapping[str, TokenReport]) -> list[str]:
    limit, consumed = cell.config.model.max_length_tokens, frozenset(cell.plan.order)
    trained = [e for e in cell.pool if e.id in consumed and encoder.count(e).total > limit]
    counts = [(f"{len(trained)} samples that are trained on", e.id) for e in trained[:1]]
    counts += [
        (f"{report.num_too_long} questions of {name}", report.too_long[0])
        for name, report in reports.items()
        if name != "training" and report.num_too_long
    ]
    return [
        f"{count} are longer than model.max_length_tokens={limit}, first {first}"
        for count, first in counts
    ]


def _memory(
    cell: Cell, shapes: Shapes | None, tokens: Mapping[str, TokenReport]
) -> MemoryEstimate | None:
    config, notes = cell.config, cell.notes
    if shapes is None or not tokens:
        return None  # a note gives the reason
    if config.lora.vision_layers:
        notes.append("lora.vision_layers=true: the vision tower's activations are not estimated")
    if config.model.backend is Backend.unsloth and not config.training.gradient_checkpointing:
        notes.append("Unsloth recomputes by itself: the memory estimate is an upper bound")
    longest = tokens["training"].longest
    return estimate_memory(shapes, config, longest_tokens=longest, on_gpu=is_on_gpu(config))
