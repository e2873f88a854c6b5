"""Steps of a training that goes on where it was stopped."""

import logging
import math
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

WARM_UP = 0.05
SAVE_EVERY = 100  # steps


class Training:
    """AdamW steps with a warm-up and a cosine, which go on where they were stopped.

    Args:
        parameters: What is trained.
        generator: Of everything random, on the CPU.
        path: Where the state is kept; it stays there after the last step.
        num_steps: Of the whole training.
        learning_rate: At the end of the warm-up.
    """

    def __init__(
        self,
        parameters: Sequence["torch.Tensor"],
        generator: "torch.Generator",
        path: Path,
        *,
        num_steps: int,
        learning_rate: float,
    ) -> None:
        import torch

        self._parameters, self._generator, self._path = list(parameters), generator, path
        self._num_steps, self._rate = num_steps, learning_rate
        self._optimizer = torch.optim.AdamW(
            self._parameters, lr=learning_rate, weight_decay=0.05, betas=(0.9, 0.98), fused=True
        )
        self._losses: list[torch.Tensor] = []
        self._done = 0
        if path.is_file():
            self._restore(torch.load(path, map_location="cpu", weights_only=True))

    def run(self, loss_of: Callable[[], "torch.Tensor"]) -> float:
        """Take the steps that are left and return the mean loss of the last 50."""
        import torch

        started = time.monotonic()
        for step in range(self._done, self._num_steps):
            for group in self._optimizer.param_groups:
                group["lr"] = self._rate * learning_rate_factor(step / self._num_steps)
            loss = loss_of()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self._parameters, 1.0)
            self._optimizer.step()
            self._optimizer.zero_grad(set_to_none=True)
            self._losses.append(loss.detach().cpu())
            self._done = step + 1
            if self._done % SAVE_EVERY == 0 or self._done == self._num_steps:
                self._save()
                seconds = time.monotonic() - started
                log.info("%s: step %d, loss %.3f, %.0f s", self._path.stem, self._done,
                         self._mean(), seconds)  # fmt: skip
        return self._mean()

    def _mean(self) -> float:
        import torch

        return float(torch.stack(self._losses[-50:]).mean())

    def _save(self) -> None:

        state = {
            "done": self._done,
            "losses": self._losses[-50:],
            "parameters": [parameter.detach() for parameter in self._parameters],
            "optimizer": self._optimizer.state_dict(),
            "generator": self._generator.get_state(),
        }
        save_whole(state, self._path)

    def _restore(self, state: dict[str, Any]) -> None:
        import torch

        with torch.no_grad():
            for parameter, stored in zip(self._parameters, state["parameters"], strict=True):
                parameter.copy_(stored)
        self._optimizer.load_state_dict(state["optimizer"])
        self._generator.set_state(state["generator"])
        self._losses, self._done = state["losses"], state["done"]


def save_whole(state: Any, path: Path) -> None:
    """Write a state so that a killed process leaves the old one or the new one."""
    import torch

    written = path.with_suffix(f".{os.getpid()}")
    torch.save(state, written)
    written.replace(path)


def learning_rate_factor(part: float) -> float:
    """Return the share of the learning rate at a part in [0, 1) of the training."""
    if part < WARM_UP:
        return min(1.0, (part + 1e-3) / WARM_UP)
    return 0.5 * (1 + math.cos(math.pi * (part - WARM_UP) / (1 - WARM_UP)))
