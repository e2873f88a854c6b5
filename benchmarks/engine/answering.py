"""Answering: seconds per question, and whose answers are equal."""

import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.engine.training import Case, config_of, forget_features, train
from benchmarks.engine.workload import Bench, Row
from medvqa.config.evaluation import Decoding
from medvqa.config.training import Engine
from medvqa.data.example import Example
from medvqa.evaluation.generate import generate
from medvqa.models.adapter import reset_adapter
from medvqa.models.encode import Encoder
from medvqa.training.loop import Trainer


@dataclass(frozen=True)
class Asked:
    """Kernels, decoding, batch and, where it is slow, a limit: `plain:shared_prefix:128:256`."""

    engine: Engine
    decoding: Decoding
    batch_size: int
    limit: int | None

    @classmethod
    def parse(cls, text: str) -> "Asked":
        """Return the case that the text names."""
        engine, decoding, size, *limit = text.split(":")
        limited = int(limit[0]) if limit else None
        return cls(Engine[engine], Decoding[decoding], int(size), limited)

    @property
    def label(self) -> str:
        """Name in the record's comparisons."""
        return f"{self.engine.value} {self.decoding.value} {self.batch_size}"


def answering(bench: Bench, engine: Engine) -> Iterator[Row]:
    """Yield each case's rate, and the share of answers that equal each earlier case's.

    A fast case is measured twice: with pictures never seen, and with all of them encoded.
    """
    settings = bench.settings
    put_trained_adapter(bench)
    use_type_of(bench, engine)
    for text in settings.answering:
        case = Asked.parse(text)
        if case.engine is not engine:
            continue
        limit = min(case.limit or settings.num_questions, settings.num_questions)
        questions = bench.questions[:limit]
        encoder = bench.encoder()
        forget_features(bench.loaded)
        for is_repeated in (False,) if case.decoding is Decoding.plain else (False, True):
            seconds, texts, used = ask(bench, encoder, questions, case)
            equal = {name: equal_share(texts, others) for name, others in bench.answers.items()}
            yield {
                "engine": engine.value,
                "decoding": used,
                "batch_size": case.batch_size,
                "num_questions": len(questions),
                "pictures_seen_before": is_repeated,
                "seconds_per_question": round(seconds / len(questions), 5),
                "peak_gpu_gb": bench.peak_gb(),
                "equal_answers": equal,
            }
            bench.answers.setdefault(case.label, texts)


def put_trained_adapter(bench: Bench) -> None:
    """Put an adapter into the model that has learnt for some steps, the same one for all rows.

    A fresh one changes no answer, and with one of noise the model is undecided between tokens.
    """
    import torch

    if not bench.adapter:
        train(bench.loaded, bench.encoder(), bench.pool, Case(Engine.auto, 8),
              bench.settings.curve_steps)  # fmt: skip
        bench.adapter.update({n: p.detach().float().cpu() for n, p in bench.loaded.trainable})
    reset_adapter(bench.loaded.model, seed=0)
    with torch.no_grad():
        for name, parameter in bench.loaded.trainable:
            parameter.copy_(bench.adapter[name])


def use_type_of(bench: Bench, engine: Engine) -> None:
    """Let the adapter compute in the engine's type, as training does before an evaluation."""
    with tempfile.TemporaryDirectory() as directory:
        config = config_of(Case(engine, 8), 1)
        Trainer(bench.loaded, bench.encoder(), config, directory=Path(directory), seed=0)


def ask(
    bench: Bench, encoder: Encoder, questions: Sequence[Example], case: Asked
) -> tuple[float, tuple[str, ...], str]:
    """Return seconds, answers, and the decoding really used."""
    bench.loaded.reset_peak()
    started = time.perf_counter()
    answers = generate(
        bench.loaded,
        encoder,
        questions,
        max_new_tokens=bench.settings.new_tokens,
        batch_size=case.batch_size,
        decoding=case.decoding,
    )
    return time.perf_counter() - started, answers.texts, answers.decoding


def equal_share(one: Sequence[str], two: Sequence[str]) -> Row:
    """Return the share of equal answers among the questions that both were asked."""
    pairs = list(zip(one, two, strict=False))
    return {"share": sum(a == b for a, b in pairs) / len(pairs), "num_questions": len(pairs)}
