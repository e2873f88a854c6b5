"""Questions divided among the ranks of a run, and their answers in one piece again."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

from medvqa.data.example import Example
from medvqa.evaluation.generate import Answers, answering_order, even_batch_size, from_rows
from medvqa.training.ranks import Ranks


def answers_of_ranks(
    answer: Callable[[Sequence[Example], int], Answers],
    examples: Sequence[Example],
    batch_size: int,
    ranks: Ranks,
) -> Answers:
    """Return all answers in the set's order; each rank answers its share.

    Args:
        answer: Gives the answers of some examples in batches of that size.
        examples: All of the set.
        batch_size: At most.
        ranks: Of the run.
    """
    size = even_batch_size(len(examples), batch_size)
    shares = shares_of_batches(examples, size, ranks.size)
    mine = answer([examples[index] for index in shares[ranks.rank]], size)
    parts = list(zip(shares, ranks.gather(mine), strict=True))
    rows = {
        place: row for share, part in parts for place, row in zip(share, part.rows, strict=True)
    }
    likelihoods = {
        share[place]: values for share, part in parts for place, values in part.likelihoods.items()
    }
    return from_rows(rows, mine.decoding, likelihoods)


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
