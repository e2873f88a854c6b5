"""Training passes as CUDA graphs: the host launches a whole pass, not each of its kernels.

An 8B decoder's pass has thousands of kernels. With few tokens, launching them takes the host longer
than computing them takes the GPU. Passes of equal shapes are captured once and replayed: the same
kernels on the same numbers (Nguyen et al., Accelerating PyTorch with CUDA Graphs, 2021).
"""

import logging
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Sequence
from typing import Any

import torch

log = logging.getLogger(__name__)

MAX_GRAPHS = 16  # each keeps some ten megabytes
EAGER_PASSES = 1  # of a shape, by which libraries prepare what no capture may contain
MAX_TOKENS = 8192  # with more, the GPU computes for longer than the host launches
TILE = 128  # tokens; a matrix product computes whole tiles in any case
SHORT = 512  # tokens; a picture and a question are about half of it, on either side of 256

Function = Callable[..., torch.Tensor]


def padded_length(num_tokens: int, used: Collection[int] = ()) -> int:
    """Return the number of tokens that a pass is filled up to, so that few shapes occur.

    Args:
        num_tokens: Of the pass; one is added at least.
        used: Lengths of passes before; one of them is taken if it is little longer.
    """
    step = max(TILE, int(2 ** (num_tokens.bit_length() - 5)))
    length = (num_tokens // step + 1) * step
    return min((own for own in used if length <= own <= length + step), default=length)


def length_bound(longest: int) -> int:
    """Return a bound of a pass's longest sequence, of few values: a kernel's grid depends on it."""
    return max(SHORT, 1 << longest.bit_length())


class Graphs:
    """The captured passes of one model. They share their memory, since one computes at a time."""

    def __init__(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        self._parameters = list(parameters)
        self._addresses: list[int] = []
        self._num_passes: Counter[Hashable] = Counter()
        self._captured: dict[Hashable, Captured] = {}
        self._gradients: list[torch.Tensor] = []
        self._is_possible = bool(self._parameters) and self._parameters[0].is_cuda
        self._pool: Any = None
        self._stream: Any = None

    def __len__(self) -> int:
        return len(self._captured)

    @property
    def num_bytes(self) -> int:
        """GPU memory of the tensors that captured passes keep."""
        passes = sum(captured.num_bytes for captured in self._captured.values())
        return passes + sum(gradient.nbytes for gradient in self._gradients)

    def run(self, function: Function, inputs: Sequence[torch.Tensor], key: Hashable) -> Any:
        """Return `function(*inputs)` with gradients for the parameters alone.

        Args:
            function: It computes with the same parameters and without random numbers.
            inputs: All that differs between passes; none of them takes a gradient.
            key: What else the function depends on.
        """
        if not self._is_possible or not torch.is_grad_enabled():
            return function(*inputs)
        addresses = [parameter.data_ptr() for parameter in self._parameters]
        if addresses != self._addresses:  # the adapter lies elsewhere
            self.forget()
            self._addresses = addresses
        name = (key, tuple((tensor.shape, tensor.dtype) for tensor in inputs))
        self._num_passes[name] += 1
        is_worth_it = self._num_passes[name] > EAGER_PASSES and len(self) < MAX_GRAPHS
        if name not in self._captured and (
            not is_worth_it or not self._capture(name, function, inputs)
        ):
            return function(*inputs)
        return self._captured[name](inputs)

    def forget(self) -> bool:
        """Give the graphs' memory back; return whether there were any."""
        had_some = bool(self._captured)
        self._captured.clear()
        self._num_passes.clear()
        self._gradients, self._pool = [], None
        return had_some

    def stop(self) -> bool:
        """Capture no pass from now on; return whether that is new."""
        was_possible, self._is_possible = self._is_possible, False
        self.forget()
        return was_possible

    def _capture(self, name: Hashable, function: Function, inputs: Sequence[torch.Tensor]) -> bool:
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
            self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            self._gradients = [torch.zeros_like(p, requires_grad=False) for p in self._parameters]
        targets = list(zip(self._parameters, self._gradients, strict=True))
        try:
            with torch.cuda.stream(torch.cuda.current_stream()):  # a failure would leave another
                captured = Captured(function, inputs, targets, self._pool, self._stream)
        except torch.OutOfMemoryError:  # fewer samples may fit: the trainer decides
            self.forget()
            raise
        except RuntimeError as error:  # an operation that cannot be captured
            log.warning("without CUDA graphs from now on: %s", str(error).splitlines()[0])
            self.stop()
            torch.cuda.empty_cache()
            return False
        self._captured[name] = captured
        return True


class Captured:
    """One forward pass and its backward pass as two graphs."""

    def __init__(
        self,
        function: Function,
        inputs: Sequence[torch.Tensor],
        targets: Sequence[tuple[torch.nn.Parameter, torch.Tensor]],
        pool: Any,
        stream: Any,
    ) -> None:
        self.targets = targets
        self._inputs = [tensor.detach().clone() for tensor in inputs]
        parameters = [parameter for parameter, _ in targets]
        self.forward, self.backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        # Other threads go on: they encode, and NCCL's looks after its events.
        options = {"pool": pool, "stream": stream, "capture_error_mode": "thread_local"}
        with torch.cuda.graph(self.forward, **options):
            result = function(*self._inputs)
        self.result_gradient = torch.zeros_like(result)
        with torch.cuda.graph(self.backward, **options):
            gradients = torch.autograd.grad(result, parameters, self.result_gradient)
            torch._foreach_copy_([gradient for _, gradient in targets], list(gradients))
        self.result = result.detach()
        kept = (*self._inputs, self.result, self.result_gradient)
        self.num_bytes = sum(tensor.nbytes for tensor in kept)

    def __call__(self, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return the function's result on these inputs, valid until the next call."""
        torch._foreach_copy_(self._inputs, [tensor.detach() for tensor in inputs])
        result: torch.Tensor = _Replay.apply(self.targets[0][0], self)  # type: ignore[no-untyped-call]
        return result


class _Replay(torch.autograd.Function):
    """The passes of a `Captured`; a parameter as input tells autograd that there is a gradient."""

    @staticmethod
    def forward(ctx: Any, _: torch.Tensor, captured: Captured) -> torch.Tensor:
        ctx.captured = captured
        captured.forward.replay()
        return captured.result.detach()

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        captured: Captured = ctx.captured
        for parameter, gradient in captured.targets:
            if parameter.grad is gradient:  # of a pass before, which nobody has collected
                parameter.grad = gradient.clone()
        captured.result_gradient.copy_(grads[0])
        captured.backward.replay()
        for parameter, gradient in captured.targets:
            parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
        return None, None
