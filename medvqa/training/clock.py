"""When a GPU reaches a place in its work, and numbers that are still on their way from it.

A GPU works behind the host. Reading a number at once would wait for all work launched since.
"""

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


class GpuTimestamp:
    """A place in the device's work; on a CPU, which is never behind, the time it was made."""

    def __init__(self, device: "torch.device") -> None:
        import torch

        self._host_s = time.perf_counter()
        self._event: torch.cuda.Event | None = None
        if device.type == "cuda":
            self._event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            self._event.record(torch.cuda.current_stream(device))

    def wait(self) -> None:
        """Wait until the device has come here."""
        if self._event is not None:
            self._event.synchronize()

    def seconds_since(self, earlier: "GpuTimestamp") -> float:
        """Return the device's time from the earlier mark to this one, waiting for it."""
        if self._event is None or earlier._event is None:
            return self._host_s - earlier._host_s
        self.wait()
        return float(earlier._event.elapsed_time(self._event)) / 1000


class Arriving:
    """Some numbers of the device; reading them waits for them and for nothing behind them."""

    def __init__(self, values: "Sequence[torch.Tensor]") -> None:
        import torch

        # Copied, because what they were computed in is used again by the next step.
        together = torch.stack([value.detach().float() for value in values])
        on_gpu = together.device.type == "cuda"
        self._host = torch.empty(together.shape, pin_memory=on_gpu)
        self._host.copy_(together, non_blocking=True)
        self.mark = GpuTimestamp(together.device)

    def read(self) -> list[float]:
        """Return the numbers."""
        self.mark.wait()
        values: list[float] = self._host.tolist()
        return values
