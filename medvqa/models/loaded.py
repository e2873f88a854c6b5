"""The loaded model: PEFT's wrapper, the processor, the device and the compute type."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from medvqa.config.model import Backend, BasePrecision
from medvqa.models.families.layers import family_of
from medvqa.models.patches import PictureCache

if TYPE_CHECKING:
    import torch

FEATURE_BYTES = 4 * 2**30  # 512 pictures of 512 x 512 pixels for an 8B model
FEATURE_SHARE = 20  # of a smaller GPU's memory a twentieth
USED_FOR = "_medvqa_used_for_training"  # absent until `use_for` has been called


def feature_bytes() -> int:
    """Return how much GPU memory the features of pictures may take."""
    import torch

    if not torch.cuda.is_available():
        return FEATURE_BYTES
    _, total = torch.cuda.mem_get_info()
    return min(FEATURE_BYTES, total // FEATURE_SHARE)


@dataclass(frozen=True)
class LoadedModel:
    """A PEFT model with its processor, ready to train and to generate.

    Attributes:
        source: Directory or hub id that the base was loaded from.
        is_quantized: Whether the base's linear layers are stored in 4 bits.
        base_precision: How the fused engine stores the base's linear layers.
        is_adapted: Whether PEFT's wrapper is around it; a merged model has none.
        is_sharded: Whether the base's weights are spread over the ranks of a run.
        features: Of pictures that the frozen vision tower has seen, one tensor per layer.
        engines: What computes with the model and is built once, by name.
        adapter_copies: The adapter in the compute type, by name. Each run of a process uses the
            same memory: captured passes read it.
    """

    model: Any
    processor: Any
    device: "torch.device"
    dtype: "torch.dtype"
    backend: Backend
    source: str
    is_quantized: bool
    base_precision: BasePrecision = BasePrecision.dtype
    is_adapted: bool = True
    is_sharded: bool = False
    features: PictureCache = field(
        default_factory=lambda: PictureCache(max_bytes=feature_bytes()), init=False, repr=False
    )
    engines: dict[str, Any] = field(default_factory=dict, init=False, repr=False)
    adapter_copies: "dict[str, torch.Tensor]" = field(default_factory=dict, init=False, repr=False)

    @property
    def inner(self) -> Any:
        """The transformers model itself."""
        return self.model.get_base_model() if self.is_adapted else self.model

    @property
    def family(self) -> str:
        """The architecture as transformers' configuration names it, such as `qwen3_vl`."""
        return str(self.inner.config.model_type)

    @property
    def trainable(self) -> "list[tuple[str, torch.nn.Parameter]]":
        """The adapter's parameters: nothing else takes a gradient."""
        return [(n, p) for n, p in self.model.named_parameters() if p.requires_grad]

    @property
    def has_frozen_vision(self) -> bool:
        """Whether a picture's features stay the same throughout training."""
        tower = f".{family_of(self.inner).vision}."
        return not any(tower in name for name, _ in self.trainable)

    def describe(self) -> dict[str, Any]:
        """Return what run.json keeps of the model."""
        names = [name for name, _ in self.trainable]
        trainable = sum(parameter.numel() for _, parameter in self.trainable)
        return {
            "source": self.source,
            # Names the weights where the config names no revision; None for a local directory.
            "commit": getattr(self.inner.config, "_commit_hash", None),
            "architecture": type(self.inner).__name__,
            "backend": self.backend.value,
            "device": str(self.device),
            "dtype": str(self.dtype).removeprefix("torch."),
            "is_quantized": self.is_quantized,
            "base_precision": self.base_precision.value,
            "num_parameters": sum(p.numel() for p in self.model.parameters()),
            "num_trainable": trainable,
            "adapted_layers": sorted({n.split(".lora_")[0].rsplit(".", 1)[-1] for n in names}),
            "num_adapted_layers": sum("lora_A" in name for name, _ in self.trainable),
        }

    def peak_gpu_bytes(self) -> int | None:
        """Return the most GPU memory that tensors have held so far; None on a CPU."""
        import torch

        return torch.cuda.max_memory_allocated() if self.device.type == "cuda" else None

    def reset_peak(self) -> None:
        """Start measuring the peak anew."""
        import torch

        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()

    def use_for(self, *, training: bool) -> None:
        """Switch dropout and the backend's kernels between training and generation."""
        # An 8B model has 3,400 modules: asked for in each step, 16 ms of it were spent here.
        if getattr(self.model, USED_FOR, None) is training and self.model.training is training:
            return
        if self.backend is Backend.unsloth:
            from unsloth import FastVisionModel

            switch = FastVisionModel.for_training if training else FastVisionModel.for_inference
            switch(self.model)
        self.model.train(training)
        setattr(self.model, USED_FOR, training)

    @property
    def recomputes(self) -> bool:
        """Whether the layers keep only their inputs for the backward pass."""
        return any(getattr(m, "gradient_checkpointing", False) for m in self.inner.modules())

    def recompute_layers(self) -> None:
        """Keep only the layers' inputs for the backward pass."""
        inner = self.inner
        # transformers 5.17 has only the old name, of which 5.24 warns.
        name = "activation_checkpointing_enable"
        getattr(inner, name, inner.gradient_checkpointing_enable)({"use_reentrant": False})
        inner.enable_input_require_grads()

    def autocast(self) -> AbstractContextManager[None]:
        """Compute in `dtype` on a GPU where the adapter itself is in float32."""
        import torch

        if self.device.type != "cuda" or self.dtype is torch.float32:
            return nullcontext()
        if all(parameter.dtype is self.dtype for _, parameter in self.trainable):
            return nullcontext()
        return torch.autocast("cuda", dtype=self.dtype)

    def answering(self) -> AbstractContextManager[None]:
        """Compute without gradients."""
        import torch

        # FSDP2 gathers weights into memory that training uses again.
        return torch.no_grad() if self.is_sharded else torch.inference_mode()

    @contextmanager
    def adapter_disabled(self) -> Iterator[None]:
        """Answer as the base does, for the zero-shot row."""
        with self.model.disable_adapter():
            yield
