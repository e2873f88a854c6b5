"""What it costs to record how sure each answer is: seconds per question with and without."""

import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from unittest import mock

from benchmarks.engine.answering import Asked, ask, put_trained_adapter, use_type_of
from benchmarks.engine.workload import Bench, Row
from medvqa.config.evaluation import Decoding
from medvqa.config.training import Engine
from medvqa.fast.engine import FusedEngine
from medvqa.fast.prefix import begin
from medvqa.models.sample import Decoded, Sample

NUM_ROUNDS = 3


def confidence(bench: Bench, engine: Engine) -> Iterator[Row]:
    """Yield the rates of shared-prefix decoding; the two kinds take turns, pictures encoded."""
    if engine is not Engine.fused:
        return
    put_trained_adapter(bench)
    use_type_of(bench, engine)
    cases = [Asked.parse(text) for text in bench.settings.answering]
    for case in cases:
        if (case.engine, case.decoding) != (engine, Decoding.shared_prefix):
            continue
        questions = bench.questions[: min(case.limit or len(bench.questions),
                                          bench.settings.num_questions)]  # fmt: skip
        encoder = bench.encoder()
        ask(bench, encoder, questions, case)  # encodes the pictures
        seconds: dict[str, list[float]] = {"with": [], "without": []}
        texts = {}
        for _ in range(NUM_ROUNDS):
            spent, texts["with"], _ = ask(bench, encoder, questions, case)
            seconds["with"].append(spent)
            with without_confidence():
                spent, texts["without"], _ = ask(bench, encoder, questions, case)
            seconds["without"].append(spent)
        medians = {kind: statistics.median(own) for kind, own in seconds.items()}
        yield {
            "batch_size": case.batch_size,
            "num_questions": len(questions),
            "seconds": {kind: [round(s, 3) for s in own] for kind, own in seconds.items()},
            "cost": round(medians["with"] / medians["without"] - 1, 4),
            "equal_answers": texts["with"] == texts["without"],
        }


@contextmanager
def without_confidence() -> Iterator[None]:
    """Decode as if nobody asked how sure an answer is: no softmax, no gathering, no choices."""
    with (
        mock.patch("medvqa.fast.engine.answer", _answer),
        mock.patch(
            "medvqa.evaluation.generate._choice_probs", lambda _, choices: [None] * len(choices)
        ),
    ):
        yield


def _answer(
    engine: FusedEngine, samples: Sequence[Sample], max_new_tokens: int, end_token_id: int
) -> Decoded:
    """Return the tokens that `medvqa.fast.prefix.answer` gives, by the loop without confidence."""
    import torch

    branches, rests = begin(engine, samples, num_more=max_new_tokens)
    logits = branches.extend(rests)
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
