"""The sum of the adapter's gradients over the ranks, while earlier layers are still computed.

torch's DistributedDataParallel averages what must be a sum over answer tokens and wants each
parameter touched in each backward pass. Here gradients travel in a few buckets, in the order of
the backward pass; the host waits for no other rank.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from medvqa.training.optimizer import AdapterOptimizer
from medvqa.training.ranks import Ranks

if TYPE_CHECKING:
    import torch

NUM_BUCKETS = 4


class GradientSum:
    """Sums one step's gradients after another; alone it does nothing.

    A rank that runs out of memory computes its share again in smaller pieces. Buckets that it has
    sent already were whole, so no other rank need know of it.
    """

    def __init__(self, ranks: Ranks, optimizer: AdapterOptimizer, *, overlaps: bool) -> None:
        """Prepare the buckets.

        Args:
            ranks: Whose gradients are summed.
            optimizer: It holds this rank's gradients.
            overlaps: Whether a repeated backward pass gives the same gradients, so that a bucket
                may leave before the pass has ended; dropout in other pieces draws other masks.
        """
        self._ranks, self._optimizer = ranks, optimizer
        self._overlaps = overlaps and ranks.size > 1
        order = range(len(optimizer.parameters))[::-1]
        size = -(-len(order) // NUM_BUCKETS)
        self._buckets = [order[start : start + size] for start in range(0, len(order), size)]
        self._num_arrived = [0] * len(self._buckets)
        self._sent: list[tuple[torch.Tensor, Any]] = []

    @contextmanager
    def overlapping(self) -> Iterator[None]:
        """Send each bucket when the last backward pass of this rank's share has completed it."""
        if not self._overlaps:
            yield
            return
        self._num_arrived = [0] * len(self._buckets)
        hooks: list[Any] = []
        for number, bucket in enumerate(self._buckets):
            for index in bucket:
                parameter: Any = self._optimizer.parameters[index]
                hook = partial(self._arrived, number)
                hooks.append(parameter.register_post_accumulate_grad_hook(hook))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _arrived(self, number: int, _: "torch.Tensor") -> None:
        self._num_arrived[number] += 1
        # In order, which is the same on every rank whatever arrives first.
        while len(self._sent) < len(self._buckets):
            following = len(self._sent)
            if self._num_arrived[following] < len(self._buckets[following]):
                return
            self._send(self._buckets[following])

    def _send(self, bucket: Sequence[int]) -> None:
        import torch
        import torch.distributed as dist

        with torch.no_grad():
            self._optimizer.collect(bucket)
            flat = torch.cat([g.reshape(-1) for g in self._optimizer.gradients(bucket)])
        self._sent.append((flat, dist.all_reduce(flat, async_op=True)))

    def finish(self, loss: "torch.Tensor") -> None:
        """Put the sums in place of this rank's gradients and of its part of the loss."""
        if self._ranks.size == 1:
            return
        import torch
        import torch.distributed as dist

        for bucket in self._buckets[len(self._sent) :]:
            self._send(bucket)
        dist.all_reduce(loss)
        for bucket, (flat, work) in zip(self._buckets, self._sent, strict=True):
            work.wait()  # on a GPU its stream waits, not the host
            targets = self._optimizer.gradients(bucket)
            parts = flat.split_with_sizes([target.numel() for target in targets])
            sums = [part.view_as(target) for part, target in zip(parts, targets, strict=True)]
            torch._foreach_copy_(targets, sums)
        self._sent.clear()
