"""Who answers: a loaded model on all ranks of a run, or a server."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from medvqa.config.evaluation import EvaluationConfig
from medvqa.data.example import Example
from medvqa.evaluation.endpoint import Endpoint
from medvqa.evaluation.generate import Answer, answering_order, even_batch_size
from medvqa.evaluation.likelihood import ANSWERERS
from medvqa.models.encode import Encoder
from medvqa.models.loaded import LoadedModel
from medvqa.training.ranks import ALONE, Ranks

# Given the directory `<phase>/<set>` of the answers' files and the questions, in any number.
Answerer = Callable[[Path, Sequence[Example]], list[Answer]]


def by_model(
    loaded: LoadedModel, encoder: Encoder, config: EvaluationConfig, ranks: Ranks = ALONE
) -> Answerer:
    """Return what answers with the model as it is then; each rank answers its share.

    With sharded weights, all ranks answer all questions.
    """

    def answer(place: Path, examples: Sequence[Example]) -> list[Answer]:
        description = f"{place.parent.name}: answering {place.name}"
        size = even_batch_size(len(examples), config.batch_size)
        together = ALONE if loaded.is_sharded else ranks  # a pass takes all ranks' weights
        shares = shares_of_batches(examples, size, together.size)
        own = [examples[index] for index in shares[together.rank]]
        even = replace(config, batch_size=size)
        mine = ANSWERERS[config.scoring](loaded, encoder, own, even, description)
        answers: dict[int, Answer] = {}
        for share, part in zip(shares, together.gather(mine), strict=True):
            answers |= zip(share, part, strict=True)
        return [answers[index] for index in range(len(examples))]

    return answer


def by_server(endpoint: Endpoint) -> Answerer:
    """Return what asks the server; its replies are kept beside the answers."""
    return lambda place, examples: endpoint.answer(examples, place / "served.jsonl")


def shares_of_batches(
    examples: Sequence[Example], batch_size: int, num_shares: int
) -> list[list[int]]:
    """Divide the questions so that each share is answered in batches that one process would make.

    Rounding depends on what is computed together: answers do not depend on the number of GPUs.
    Returns the places of each share's examples, in the order of the set.
    """
    order = answering_order(examples)
    num_batches = math.ceil(len(order) / batch_size)
    ends = [round(num_batches * share / num_shares) * batch_size for share in range(num_shares + 1)]
    return [sorted(order[start:end]) for start, end in pairwise(ends)]
