"""The lines of metrics.jsonl: which steps are refused."""

import pytest
import torch

from medvqa.config.errors import RankError
from medvqa.training.clock import Arriving, GpuTimestamp
from medvqa.training.step_log import Step


def step(num_summed):
    numbers = [torch.tensor(float(number)) for number in (1.5, 0.5, 20, 300, num_summed)]
    return Step(
        number=7, stage="all", ids=["a"], numbers=Arriving(numbers), learning_rate=1e-4,
        counts=(10, 150), num_examples=56, begun=GpuTimestamp(torch.device("cpu")), num_ranks=2,
    )  # fmt: skip


def test_a_step_that_lacks_a_ranks_part_is_refused():
    with pytest.raises(RankError, match="step 7 lacks the part of a rank"):
        step(1).row(since=None)


def test_a_step_of_all_ranks_counts_the_tokens_of_all():
    row = step(2).row(since=None)
    assert (row["loss"], row["num_answer_tokens"], row["num_tokens"]) == (1.5, 20, 300)
