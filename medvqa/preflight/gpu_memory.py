"""GPU memory of a training step; docs/preflight.md has the formula and its checks."""

import os
from dataclasses import dataclass

from medvqa.config.machine import num_cuda_devices
from medvqa.config.model import Backend, Device, Dtype
from medvqa.config.schema import Config
from medvqa.config.training import Optimizer, Sharding
from medvqa.fast.choice import SHARDED, ComputePath, path_of
from medvqa.models.activations import PLAIN_SCALE_BYTES, kept_bytes
from medvqa.preflight.model_shapes import Shapes

LOGIT_BYTES = 6  # 16 bits, and a copy in 32 for the loss
ANSWER_COLUMNS = 64  # of a micro-batch, where the plain engine computes only those
BYTES_OF_4_BITS = 0.5 + 1 / 64 + 4 / (64 * 256)  # double quantisation: a byte for 64 weights


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """Bytes at the peak of a training step.

    Attributes:
        tokens: In one micro-batch, each sample as long as the longest.
    """

    weights: int
    adapter: int
    activations: int
    logits: int
    micro_batch_size: int
    tokens: int
    engine: str

    @property
    def total(self) -> int:
        """The sum; the allocator and CUDA itself take about a gigabyte more."""
        return self.weights + self.adapter + self.activations + self.logits


def estimate_memory(
    shapes: Shapes, config: Config, *, longest_tokens: int, on_gpu: bool = True
) -> MemoryEstimate:
    """Return what a training step needs on a GPU, or on a CPU.

    `longest_tokens` are those of the longest sample that is trained on.
    """
    training, is_wide = config.training, config.model.dtype is Dtype.float32 or not on_gpu
    engine = compute_path(config, shapes.family, on_gpu=on_gpu).engine.value
    batch_size = training.micro_batch_size
    is_sharded = training.sharding is not Sharding.none
    if on_gpu and training.fit_micro_batch and not is_sharded:
        batch_size *= training.accumulation_steps
    tokens = batch_size * longest_tokens
    columns = batch_size * min(longest_tokens, ANSWER_COLUMNS)
    if config.model.backend is Backend.unsloth:
        columns = tokens
    width = 4 if is_wide else 2
    quantized = shapes.num_linear if config.model.load_in_4bit else 0
    per_layer = kept_bytes(shapes, engine, dropout=config.lora.dropout) * width // 2
    layers = shapes.num_layers * per_layer
    if training.gradient_checkpointing:  # each layer's input, and one layer at a time anew
        layers = shapes.num_layers * width * shapes.hidden + per_layer
    moments = 2 if training.optimizer is Optimizer.adamw_8bit and on_gpu else 8
    # Weights and gradients in 32 bits; the fused engine computes with a copy in 16 bits of both.
    copies = 8 + (4 if engine == "fused" else 0)
    num_parts = training.gpus if is_sharded else 1
    bytes_of_4_bits = BYTES_OF_4_BITS + (PLAIN_SCALE_BYTES if engine == "fused" else 0)
    return MemoryEstimate(
        weights=int((shapes.num_parameters - quantized) * width / num_parts)
        + int(quantized * bytes_of_4_bits),
        adapter=shapes.num_adapter * (copies + moments),
        activations=tokens * layers,
        logits=columns * shapes.vocabulary * LOGIT_BYTES if engine == "plain" else 0,
        micro_batch_size=batch_size,
        tokens=tokens,
        engine=engine,
    )


def compute_path(config: Config, family: str, *, on_gpu: bool) -> ComputePath:
    """Return how the run would compute a model of the family."""
    if config.training.sharding is not Sharding.none:
        family += SHARDED
    engine, decoding = config.training.engine, config.evaluation.decoding
    return path_of(family, config.model.backend, engine, decoding, on_gpu=on_gpu)


def is_on_gpu(config: Config) -> bool:
    """Return whether the run is checked as on a GPU; only the tiny model suits a CPU, too."""
    if config.model.device is Device.auto and config.model.name == "medvqa/tiny":
        return num_cuda_devices(os.environ) > 0
    return config.model.device is not Device.cpu
