"""Answering: seconds per question, whose answers are equal, and what confidence costs."""

import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from unittest import mock

from benchmarks.engine.training import Case, train, trainer_of
from benchmarks.engine.workload import Bench
from benchmarks.runs import Row
from medvqa.config.evaluation import Decoding
from medvqa.config.training import Engine
from medvqa.data.example import Example
from medvqa.evaluation.generate import generate
from medvqa.fast.choice import choose_path
from medvqa.fast.engine import FusedEngine
from medvqa.fast.prefix import Branches
from medvqa.models.adapter import reset_adapter
from medvqa.models.encode import Encoder
from medvqa.models.sample import Decoded, Sample

NUM_ROUNDS = 3


@dataclass(frozen=True)
class Asked:
    """Kernels, decoding, batch and, where it is slow, a limit: `plain:shared_prefix:128:256`."""

    engine: Engine
    decoding: Decoding
    batch_size: int
    questions: Sequence[Example]


def cases_of(bench: Bench, engine: Engine) -> list[Asked]:
    """Return the cases of this engine, once the model is ready to answer."""
    cases = []
    for text in bench.options.answering:
        name, decoding, size, *limit = text.split(":")
        count = min(bench.options.num_questions, *map(int, limit), len(bench.questions))
        if Engine[name] is engine:
            cases.append(Asked(engine, Decoding[decoding], int(size), bench.questions[:count]))
    if cases:
        put_trained_adapter(bench)
        # Where it is made, a trainer lets the adapter compute in its engine's type.
        with trainer_of(bench.loaded, bench.encoder(), Case(engine, 8), 1):
            pass
    return cases


def answering(bench: Bench, engine: Engine) -> Iterator[Row]:
    """Yield each case's rate, and the share of answers that equal each earlier case's.

    A fast case is measured twice: with pictures never seen, and with all of them encoded.
    """
    for case in cases_of(bench, engine):
        encoder = bench.encoder()
        bench.loaded.features.clear()
        for is_repeated in (False,) if case.decoding is Decoding.plain else (False, True):
            seconds, texts, used = ask(bench, encoder, case)
            yield {
                "engine": engine.value,
                "decoding": used,
                "batch_size": case.batch_size,
                "num_questions": len(case.questions),
                "pictures_seen_before": is_repeated,
                "seconds_per_question": round(seconds / len(case.questions), 5),
                "peak_gpu_gb": bench.peak_gb(),
                "equal_answers": {n: equal_share(texts, o) for n, o in bench.answers.items()},
            }
            label = f"{engine.value} {case.decoding.value} {case.batch_size}"
            bench.answers.setdefault(label, texts)


def put_trained_adapter(bench: Bench) -> None:
    """Put an adapter into the model that has learnt for some steps, the same one for all rows.

    A fresh one changes no answer, and with one of noise the model is undecided between tokens.
    """
    import torch

    if not bench.adapter:
        train(bench.loaded, bench.encoder(), bench.pool, Case(Engine.auto, 8),
              bench.options.adapter_steps)  # fmt: skip
        bench.adapter.update({n: p.detach().float().cpu() for n, p in bench.loaded.trainable})
    reset_adapter(bench.loaded.model, seed=0)
    with torch.no_grad():
        for name, parameter in bench.loaded.trainable:
            parameter.copy_(bench.adapter[name])


def ask(bench: Bench, encoder: Encoder, case: Asked) -> tuple[float, tuple[str, ...], str]:
    """Return seconds, answers, and the decoding really used."""
    bench.loaded.reset_peak()
    started = time.perf_counter()
    answers = generate(
        *(bench.loaded, encoder, case.questions),
        max_new_tokens=bench.options.new_tokens,
        batch_size=case.batch_size,
        decoding=case.decoding,
    )
    seconds = time.perf_counter() - started
    path = choose_path(bench.loaded, Engine.auto, case.decoding)
    return seconds, tuple(answer.text for answer in answers), path.decoding.value


def equal_share(one: Sequence[str], two: Sequence[str]) -> Row:
    """Return the share of equal answers among the questions that both were asked."""
    pairs = list(zip(one, two, strict=False))
    return {"share": sum(a == b for a, b in pairs) / len(pairs), "num_questions": len(pairs)}


def confidence(bench: Bench, engine: Engine) -> Iterator[Row]:
    """Yield what it costs to record how sure each answer is; both kinds take turns."""
    if engine is not Engine.fused:
        return
    for case in cases_of(bench, engine):
        if case.decoding is not Decoding.shared_prefix:
            continue
        encoder, texts = bench.encoder(), {}
        ask(bench, encoder, case)  # encodes the pictures
        seconds: dict[str, list[float]] = {"with": [], "without": []}
        for _ in range(NUM_ROUNDS):
            spent, texts["with"], _ = ask(bench, encoder, case)
            seconds["with"].append(round(spent, 3))
            with (
                mock.patch("medvqa.fast.engine.answer", answer_without_confidence),
                mock.patch(
                    "medvqa.evaluation.generate._choice_probs", lambda _, c: [None] * len(c)
                ),
            ):
                spent, texts["without"], _ = ask(bench, encoder, case)
            seconds["without"].append(round(spent, 3))
        medians = {kind: statistics.median(own) for kind, own in seconds.items()}
        yield {
            "batch_size": case.batch_size,
            "num_questions": len(case.questions),
            "seconds": seconds,
            "cost": round(medians["with"] / medians["without"] - 1, 4),
            "equal_answers": texts["with"] == texts["without"],
        }


def answer_without_confidence(
    engine: FusedEngine, samples: Sequence[Sample], max_new_tokens: int, end_token_id: int
) -> Decoded:
    """Return the tokens of `medvqa.fast.prefix.answer`: no softmax, no gathering, no choices."""
    import torch

    branches = Branches(engine, samples, num_more=max_new_tokens)
    logits = branches.extend()
    columns: list[torch.Tensor] = []
    finished = torch.zeros(len(samples), dtype=torch.bool, device=logits.device)
    while True:
        token = logits.argmax(dim=-1).masked_fill(finished, end_token_id)
        columns.append(token)
        finished = finished | (token == end_token_id)
        if len(columns) == max_new_tokens or bool(finished.all()):
            tokens = torch.stack(columns, dim=1).cpu()
            return Decoded(tokens, torch.zeros(tokens.shape), logits)
        logits = branches.step(token)
