"""All that can be known of one run before it costs anything."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from medvqa.config.errors import UserError
from medvqa.config.machine import num_cuda_devices
from medvqa.config.model import Backend, Device
from medvqa.config.schema import Config
from medvqa.contamination import gate as contamination
from medvqa.contamination.overlap import Overlap
from medvqa.curriculum import Plan
from medvqa.data.example import Example
from medvqa.evaluation.power import minimal_detectable_effect
from medvqa.models.encode import Encoder
from medvqa.models.source import load_processor
from medvqa.preflight.downloads import (
    Download,
    free_bytes,
    hub_answers,
    needed_downloads,
    written_bytes,
)
from medvqa.preflight.memory import PUBLISHED, MemoryEstimate, Shapes, estimate_memory, model_shapes
from medvqa.preflight.probe import Probe, run_probe, total_seconds
from medvqa.preflight.tokens import Estimator, TokenReport, count_tokens
from medvqa.run import Data, DataOnce, check, pass_gate, prepare

OUTPUT_DIRECTORY = Path("outputs")


@dataclass(frozen=True, kw_only=True)
class Assumptions:
    """What the user may set.

    Attributes:
        at_most: Training samples whose tokens are counted; of more, a seeded sample.
        probe: Whether to load the model for a few steps; None where there is a GPU.
        discordant_fraction: Share of questions that exactly one of two runs has right.
        design_effect: By how much questions on one picture repeat each other.
    """

    at_most: int
    probe: bool | None
    discordant_fraction: float
    design_effect: float


@dataclass(frozen=True, kw_only=True)
class CellReport:
    """One row of the table; None stands for what could not be found out, and `notes` say why.

    Attributes:
        swept: Overrides that tell this cell from the others.
        samples: Source -> answer type -> training samples, after what the gate drops.
        tokens: Of the training pool, and of each evaluation set under its name.
        detectable: Group of the first evaluation set -> (questions, smallest difference found with
            80 % power at level 5 %, or None).
        problems: Why the run would fail.
    """

    swept: tuple[str, ...]
    samples: Mapping[str, Mapping[str, int]]
    num_samples: int
    num_dropped: int
    num_steps: int
    batch_size: int
    num_seen: int
    tokens: Mapping[str, TokenReport]
    memory: MemoryEstimate | None
    probe: Probe | None
    seconds: float | None
    downloads: tuple[Download, ...]
    free_bytes: int
    written_bytes: int | None
    contamination: Mapping[str, Any]
    detectable: Mapping[str, tuple[int, float | None]]
    problems: tuple[str, ...]
    notes: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Return the report as plain values."""
        values = asdict(self)
        values["tokens"] = {
            name: {
                **values["tokens"][name],
                "quantiles": {f"{q:g}": n for q, n in r.quantiles.items()},
            }
            for name, r in self.tokens.items()
        }
        values["memory_bytes"] = None if self.memory is None else self.memory.total
        return values


class Inspector:
    """Inspects cell after cell; what several share is found out once."""

    def __init__(self, assumptions: Assumptions) -> None:
        self.assumptions = assumptions
        self.once = DataOnce()
        self._encoders: dict[str, Encoder | Estimator | UserError] = {}
        self._tokens: dict[str, TokenReport] = {}
        self._shapes: dict[str, Shapes | UserError] = {}

    def inspect(self, config: Config, swept: Sequence[str]) -> CellReport:
        """Return what is known of the cell.

        Raises:
            UserError: If data, curriculum or paths are wrong: there is nothing to inspect then.
        """
        data = self.once.load(config)
        check(config, data)
        overlap = self.once.overlap(config)
        problems: list[str] = []
        notes = _machine_notes(config)
        kept = _kept(config, data, overlap, problems)
        prepared = prepare(config, kept)
        plan, pool, sets = prepared.plan, prepared.pool, prepared.sets
        tokens = self._count(config, pool, sets, plan, problems, notes)
        shapes = self._shapes_of(config, notes)
        memory = _memory(config, shapes, tokens, notes)
        probe = self._probe(config, plan, pool, sets, problems, notes)
        num_questions = sum(map(len, sets.values()))
        samples: dict[str, Counter[str]] = {}
        for example in pool:
            samples.setdefault(example.source, Counter())[example.answer_type] += 1
        return CellReport(
            swept=tuple(swept),
            samples={source: dict(counts) for source, counts in samples.items()},
            num_samples=len(pool),
            num_dropped=len(data.training.examples) - len(pool),
            num_steps=plan.num_steps,
            batch_size=config.training.micro_batch_size * config.training.accumulation_steps,
            num_seen=len(set(plan.order)),
            tokens=tokens,
            memory=memory,
            probe=probe,
            seconds=None if probe is None else total_seconds(probe, config, plan, num_questions),
            downloads=tuple(needed_downloads(config)),
            free_bytes=free_bytes(OUTPUT_DIRECTORY.absolute()),
            written_bytes=None if shapes is None else written_bytes(shapes.num_adapter),
            contamination=contamination.headline(config.contamination, overlap),
            detectable=self._detectable(sets),
            problems=tuple(problems),
            notes=tuple(notes),
        )

    def _count(
        self,
        config: Config,
        pool: Sequence[Example],
        sets: Mapping[str, Sequence[Example]],
        plan: Plan,
        problems: list[str],
        notes: list[str],
    ) -> dict[str, TokenReport]:
        key = f"{config.model!r}"
        if key not in self._encoders:
            self._encoders[key] = _encoder(config)
        encoder = self._encoders[key]
        if isinstance(encoder, UserError):
            notes.append(f"tokens are unknown: {encoder}")
            return {}
        is_estimate = isinstance(encoder, Estimator)
        if is_estimate:
            notes.append(
                f"tokens of texts are estimated, the processor of {config.model.name} is not to be "
                "had here (no network? give model.path=, a local copy)"
            )
        consumed = frozenset(plan.order)
        reports = {}
        for name, examples in {"training": pool, **sets}.items():
            at_most = self.assumptions.at_most if name == "training" else None
            known = f"{key} {config.data!r} {name} {len(examples)} {plan.sha256}"
            if known not in self._tokens:
                self._tokens[known] = count_tokens(
                    encoder, examples, at_most=at_most, seed=config.data.seed, always=consumed
                )
            reports[name] = self._tokens[known]
        if is_estimate:  # no reason to call a run failed
            return reports
        limit = config.model.max_length_tokens
        trained = [e for e in pool if e.id in consumed and encoder.count(e).total > limit]
        if trained:
            problems.append(
                f"{len(trained)} samples that are trained on are longer than "
                f"model.max_length_tokens={limit}, first {trained[0].id}"
            )
        problems += [
            f"{r.num_too_long} questions of {name} are longer than "
            f"model.max_length_tokens={limit}, first {r.too_long[0]}"
            for name, r in reports.items()
            if name != "training" and r.num_too_long
        ]
        return reports

    def _shapes_of(self, config: Config, notes: list[str]) -> Shapes | None:
        key = f"{config.model!r} {config.lora!r}"
        if key not in self._shapes:
            try:
                self._shapes[key] = model_shapes(config)
            except UserError as error:
                self._shapes[key] = error
        found = self._shapes[key]
        if isinstance(found, UserError):
            notes.append(f"memory is unknown: {found}")
            return None
        return found

    def _probe(
        self,
        config: Config,
        plan: Plan,
        pool: Sequence[Example],
        sets: Mapping[str, Sequence[Example]],
        problems: Sequence[str],
        notes: list[str],
    ) -> Probe | None:
        wanted = self.assumptions.probe
        if wanted is None:
            wanted = num_cuda_devices(os.environ) > 0
        if not wanted or problems:
            notes.append(
                "time is unknown: no probe "
                + ("of a run that would fail" if problems else "without a GPU (--probe makes one)")
                + "; measured for 8B on an H100 (DESIGN 7): 3.5 to 23 samples/s in training, "
                "0.02 to 0.04 s a question in batches"
            )
            return None
        return run_probe(config, plan, pool, sets)

    def _detectable(
        self, sets: Mapping[str, Sequence[Example]]
    ) -> dict[str, tuple[int, float | None]]:
        first = next(iter(sets.values()), ())
        counts: Counter[str] = Counter(example.answer_type for example in first)
        groups: dict[str, int] = {"overall": len(first)} if first else {}
        groups.update(counts)
        return {
            group: (
                num,
                minimal_detectable_effect(
                    num,
                    self.assumptions.discordant_fraction,
                    design_effect=self.assumptions.design_effect,
                ),
            )
            for group, num in groups.items()
        }


def _encoder(config: Config) -> Encoder | Estimator | UserError:
    model = config.model
    try:
        processor = load_processor(model, local_only=not hub_answers())
    except UserError as error:
        is_known = model.path is None and model.name in PUBLISHED
        return Estimator(model) if is_known else error
    return Encoder(processor, max_length_tokens=model.max_length_tokens)


def _kept(config: Config, data: Data, overlap: Overlap, problems: list[str]) -> Data:
    """Return what passes the gate, or everything with the reason among the problems."""
    try:
        return pass_gate(config, data, overlap)
    except UserError as error:
        problems.append(str(error))
        return data


def _memory(
    config: Config, shapes: Shapes | None, tokens: Mapping[str, TokenReport], notes: list[str]
) -> MemoryEstimate | None:
    if shapes is None or "training" not in tokens:
        if shapes is not None:
            notes.append("memory is unknown without the samples' tokens")
        return None
    if config.lora.vision_layers:
        notes.append("lora.vision_layers=true: the vision tower's activations are not estimated")
    if config.model.backend is Backend.unsloth and not config.training.gradient_checkpointing:
        notes.append("Unsloth recomputes by itself: the memory estimate is an upper bound")
    on_gpu = config.model.device is not Device.cpu
    longest = tokens["training"].longest
    return estimate_memory(shapes, config, longest_tokens=longest, on_gpu=on_gpu)


def _machine_notes(config: Config) -> list[str]:
    if num_cuda_devices(os.environ) or config.model.name == "medvqa/tiny":
        return []
    return ["no CUDA GPU is visible here; memory and data are checked as for one"]
