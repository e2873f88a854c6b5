"""The optimiser over the adapter, with weights in full precision behind those that compute."""

import logging
from typing import TYPE_CHECKING, Any

from medvqa.config.errors import UserError
from medvqa.config.training import Optimizer, TrainingConfig
from medvqa.models.loaded import LoadedModel
from medvqa.training.flat_tensors import FlatTensors

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)


class AdapterOptimizer:
    """Steps the adapter.

    With `in_compute_type` the adapter computes in the model's type, so that no product needs a
    cast. This class keeps the weights and sums the gradients in float32, so updates far below
    bfloat16's resolution are not lost. Source: Micikevicius et al., Mixed Precision Training, 2018.

    Attributes:
        name: The optimiser really used.
        parameters: Of the adapter, as they compute, in the order of the model.
    """

    def __init__(
        self, loaded: LoadedModel, config: TrainingConfig, *, in_compute_type: bool
    ) -> None:
        import torch

        self._names = [name for name, _ in loaded.trainable]
        self.parameters: list[torch.Tensor] = [parameter for _, parameter in loaded.trainable]
        self._in_compute_type = in_compute_type
        self._is_summed = [False] * len(self.parameters)
        self._weights = self._stepped = self.parameters
        if in_compute_type:
            shapes = [parameter.shape for parameter in self.parameters]
            self._flat = FlatTensors(shapes, self.parameters[0].device)
            self._weights, self._stepped = self._flat.parts, self._flat.wholes
            torch._foreach_copy_(self._weights, [p.detach() for p in self.parameters])
            sums = FlatTensors(shapes, self.parameters[0].device)
            self._sums = sums.parts
            for whole, total in zip(self._stepped, sums.wholes, strict=True):
                whole.grad = total
            for name, parameter in loaded.trainable:
                copy = torch.empty_like(parameter, dtype=loaded.dtype)
                copy = loaded.adapter_copies.setdefault(name, copy)
                parameter.data = copy.copy_(parameter.detach())
        self._config = config
        self._on_gpu = loaded.device.type == "cuda"
        self.reset()

    def reset(self) -> None:
        """Forget the moments."""
        self._optimizer, self.name = _build(self._stepped, self._config, on_gpu=self._on_gpu)

    def collect(self) -> None:
        """Add a micro-batch's gradients; needed after each backward pass."""
        if not self._in_compute_type:
            return
        import torch

        gradients = [(i, p.grad) for i, p in enumerate(self.parameters) if p.grad is not None]
        first = [(i, gradient) for i, gradient in gradients if not self._is_summed[i]]
        more = [(i, gradient) for i, gradient in gradients if self._is_summed[i]]
        # One call for all tensors: with one call per tensor, a step would wait for the host.
        with torch.no_grad():
            if first:
                torch._foreach_copy_([self._sums[i] for i, _ in first], [g for _, g in first])
            if more:
                torch._foreach_add_([self._sums[i] for i, _ in more], [g.float() for _, g in more])
        for i, _ in gradients:
            self._is_summed[i] = True
            self.parameters[i].grad = None

    def forget_gradients(self) -> None:
        """Drop what a step that ran out of memory has left."""
        self._is_summed = [False] * len(self.parameters)
        for parameter in self.parameters:
            parameter.grad = None

    def gradients(self) -> "list[torch.Tensor]":
        """Return the gradients of the next step in full precision; zeros where there is none."""
        import torch

        for i, parameter in enumerate(self.parameters):
            if self._in_compute_type and not self._is_summed[i]:
                self._sums[i].zero_()
                self._is_summed[i] = True
            elif not self._in_compute_type and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        if self._in_compute_type:
            return list(self._sums)
        return [p.grad for p in self.parameters if p.grad is not None]

    def whole_gradients(self) -> "list[torch.Tensor]":
        """Return `gradients` in as few tensors as they lie in: one, or one each."""
        gradients = self.gradients()
        if not self._in_compute_type:
            return gradients
        return [whole.grad for whole in self._stepped if whole.grad is not None]

    def step(self, learning_rate: float, *, max_grad_norm: float) -> "torch.Tensor":
        """Clip, step, and return the gradients' norm before clipping, on the device."""
        import torch

        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        # A norm of each tensor's norm, also where they lie together: summed otherwise, it differs.
        norm = torch.nn.utils.get_total_norm(self.gradients())
        torch.nn.utils.clip_grads_with_norm_(self._stepped, max_grad_norm, norm)
        self._optimizer.step()
        self.forget_gradients()
        self._copy_to_model()
        return norm

    def _copy_to_model(self) -> None:
        import torch

        if self._in_compute_type:
            with torch.no_grad():
                torch._foreach_copy_(self.parameters, self._weights)

    def is_finite(self) -> bool:
        """Return whether every weight is a number; waits for the device."""
        import torch

        return bool(torch.stack([weight.isfinite().all() for weight in self._weights]).all())

    def weights(self) -> "dict[str, torch.Tensor]":
        """Return the adapter in full precision on the CPU, by name."""
        copies = (
            self._flat.on_cpu()
            if self._in_compute_type
            else [weight.detach().to("cpu", copy=True) for weight in self._weights]
        )
        return dict(zip(self._names, copies, strict=True))

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of the moments on the CPU, which later steps do not change."""
        import torch

        def copied(value: Any) -> Any:
            if isinstance(value, dict):  # bitsandbytes keeps its moments a level deeper
                return {name: copied(inner) for name, inner in value.items()}
            return value.to("cpu", copy=True) if isinstance(value, torch.Tensor) else value

        whole = self._optimizer.state_dict()
        return {**whole, "state": copied(whole["state"]), "name": self.name}

    def load(self, weights: "dict[str, torch.Tensor]", state: dict[str, Any]) -> None:
        """Go on from a checkpoint.

        Raises:
            UserError: If it is of another adapter or of another optimiser.
        """
        import torch

        own = dict(zip(self._names, self._weights, strict=True))
        if {name: weight.shape for name, weight in weights.items()} != {
            name: weight.shape for name, weight in own.items()
        }:
            raise UserError(
                f"the checkpoint's {len(weights)} adapter tensors are not the model's {len(own)} "
                "in name and shape. Another model or LoRA configuration wrote the checkpoint; "
                "say fresh=true to start over"
            )
        with torch.no_grad():
            for name, weight in own.items():
                weight.copy_(weights[name])
        self._copy_to_model()
        try:
            moments = dict(state)
            name = moments.pop("name", self.name)
            if name != self.name:
                raise ValueError(f"{name} wrote it, this run has {self.name}")
            self._optimizer.load_state_dict(moments)
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"the checkpoint's moments do not fit ({error!r:.200}). Its run had another "
                "optimiser, engine, device or an earlier version; say fresh=true to start over"
            ) from error


def adamw_8bit() -> Any:
    """Return bitsandbytes' AdamW in 8 bits, which does not wait for the GPU.

    The library's own step waits after each tensor. Then the host cannot launch the next training
    step while the GPU computes this one. The kernels run in their order without that.

    Raises:
        ImportError: Without bitsandbytes.
    """
    import torch
    from bitsandbytes.optim import AdamW8bit

    class Unsynchronized(AdamW8bit):  # type: ignore[misc]
        initialized: bool

        @torch.no_grad()
        def step(self, closure: None = None) -> None:
            if not self.initialized:
                self.check_overrides()
                self.to_gpu()
                self.initialized = True
            for number, group in enumerate(self.param_groups):
                for place, weight in enumerate(group["params"]):
                    if weight.grad is None:
                        continue
                    if not self.state[weight]:
                        self.init_state(group, weight, number, place)
                    self.update_step(group, weight, number, place)

    return Unsynchronized


def _build(weights: Any, config: TrainingConfig, *, on_gpu: bool) -> tuple[Any, str]:
    import torch

    options: dict[str, Any] = {"lr": config.learning_rate, "weight_decay": config.weight_decay}
    if config.optimizer is Optimizer.adamw_8bit and on_gpu:
        try:
            return adamw_8bit()(weights, **options), "adamw_8bit (bitsandbytes)"
        except ImportError:
            log.warning("bitsandbytes is not installed: AdamW in 32 bits instead of adamw_8bit")
    elif config.optimizer is Optimizer.adamw_8bit:
        log.warning("adamw_8bit needs a GPU: AdamW in 32 bits instead")
    return torch.optim.AdamW(weights, fused=on_gpu, **options), "adamw (torch)"
