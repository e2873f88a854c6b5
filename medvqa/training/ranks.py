"""The processes of one run on several GPUs, and the values that they exchange."""

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar
from zlib import crc32

from medvqa.config.model import Device

if TYPE_CHECKING:
    import torch

Item = TypeVar("Item")
Result = TypeVar("Result")
Arguments = ParamSpec("Arguments")

# Within a step no rank waits for long for another one: training.rank_timeout_s.
STEP_TIMEOUT_S = 600
# Outside a step the slowest rank may load, answer, score or write. Then the others wait so many
# times as long, by default four hours. torchrun notices at once when a rank dies.
TIMES_OUTSIDE = 24


@dataclass(frozen=True)
class Ranks:
    """One process's view of all; alone unless torchrun started several.

    Every method but `share` and `step_seed` is collective: all ranks must call it, in the same
    order.

    Attributes:
        tensors: torch's group for tensors of a step; objects travel in the default group.
    """

    rank: int = 0
    size: int = 1
    tensors: Any = None

    def share(self, items: Sequence[Item], keys: Sequence[str]) -> list[Item]:
        """Return this rank's part, in order; the ranks' parts differ by one item at most.

        Items of one key go to the same rank, in each call, until its part is full. So one rank
        alone computes and keeps the features of a picture, for all questions about it.

        Args:
            items: Of all ranks.
            keys: Of each item.
        """
        room = [len(items[rank :: self.size]) for rank in range(self.size)]
        homes: list[int | None] = []
        for key in keys:
            home = crc32(key.encode()) % self.size
            homes.append(home if room[home] else None)
            room[home] = max(room[home] - 1, 0)
        others = (rank for rank, number in enumerate(room) for _ in range(number))
        ranks = [next(others) if home is None else home for home in homes]
        return [item for item, rank in zip(items, ranks, strict=True) if rank == self.rank]

    def step_seed(self, seed: int, step: int) -> int:
        """Return what a step's dropout depends on: the run's seed, the step and the rank alone."""
        name = f"{seed}:{step}:{self.rank}" if self.rank else f"{seed}:{step}"
        digest = hashlib.sha256(name.encode()).digest()
        return int.from_bytes(digest[:8], "big") >> 1

    def first(
        self,
        function: Callable[Arguments, Result],
        *args: Arguments.args,
        **kwargs: Arguments.kwargs,
    ) -> Result:
        """Let the first rank alone call the function, and give its result to all."""
        if self.size == 1:
            return function(*args, **kwargs)
        import torch.distributed as dist

        results: list[Any] = [function(*args, **kwargs) if self.rank == 0 else None]
        dist.broadcast_object_list(results, src=0)
        result: Result = results[0]
        return result

    def gather(self, value: Item) -> list[Item]:
        """Return every rank's value, in the order of the ranks."""
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def total(self, counts: Sequence[int], device: "torch.device") -> "Sequence[Any]":
        """Return each count summed over the ranks; with several ranks, tensors on the device.

        On the device the ranks' GPUs wait for each other, and no host does.
        """
        if self.size == 1:
            return counts
        import torch
        import torch.distributed as dist

        sums = torch.tensor(counts, dtype=torch.float32)  # exact up to 16 million
        if device.type == "cuda":
            sums = sums.pin_memory().to(device, non_blocking=True)
        dist.all_reduce(sums, group=self.tensors)
        return sums.unbind()

    def sum_in_place(self, tensors: "Sequence[torch.Tensor]") -> "list[torch.Tensor]":
        """Sum each tensor over the ranks, in one transfer; no host waits for a GPU.

        Args:
            tensors: Of one type, in the same order on every rank.

        Returns:
            The number of ranks in the sums, on the device; nothing where this process is alone.
            After a time-out nccl lets the GPU go on with incomplete sums.
        """
        if self.size == 1:
            return []
        import torch
        import torch.distributed as dist

        with torch.no_grad():
            pieces = [*(tensor.reshape(-1) for tensor in tensors), tensors[0].new_ones(1)]
            flat = torch.cat(pieces)
            dist.all_reduce(flat, group=self.tensors)
            *parts, num_ranks = flat.split_with_sizes([piece.numel() for piece in pieces])
            sums = [part.view_as(own) for part, own in zip(parts, tensors, strict=True)]
            torch._foreach_copy_(list(tensors), sums)
        return [num_ranks[0]]


ALONE = Ranks()


def join(device: Device, timeout_s: int = STEP_TIMEOUT_S) -> Ranks:
    """Meet the other processes that torchrun started; this one gets the GPU of its number.

    Objects and counts travel between the processors (gloo), tensors between the GPUs (nccl).

    Args:
        device: As configured.
        timeout_s: Seconds that a rank waits for another one's tensors before it fails; outside a
            step, `TIMES_OUTSIDE` times as long.
    """
    import torch
    import torch.distributed as dist

    on_cpu = device is Device.cpu
    if not on_cpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("gloo", timeout=timedelta(seconds=TIMES_OUTSIDE * timeout_s))
    limit, backend = timedelta(seconds=timeout_s), "gloo" if on_cpu else "nccl"
    tensors = dist.new_group(backend=backend, timeout=limit)
    if not on_cpu:
        # nccl takes its buffers now, before the micro-batch that fits is found.
        dist.all_reduce(torch.zeros(1, device="cuda"), group=tensors)
    return Ranks(dist.get_rank(), dist.get_world_size(), tensors)


def leave() -> None:
    """Leave the group of processes after the last collective call."""
    import torch.distributed as dist

    dist.destroy_process_group()
