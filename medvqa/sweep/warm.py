"""One loaded base for one job after another."""

import gc
import logging

from medvqa.config import LoraConfig, ModelConfig
from medvqa.model import LoadedModel, load_model, reset_adapter

log = logging.getLogger(__name__)

LEAK_BYTES = 256 * 2**20


class WarmModels:
    """Keeps the last model; a job with the same model and LoRA settings starts from it.

    The adapter is initialised from the job's seed exactly as in a process of its own.
    """

    def __init__(self) -> None:
        self._key = ""
        self._loaded: LoadedModel | None = None
        self._resting_bytes = 0

    def load(
        self, config: ModelConfig, lora: LoraConfig, *, gradient_checkpointing: bool, seed: int
    ) -> LoadedModel:
        """Return the model with a fresh adapter; see `medvqa.model.load_model`."""
        key = repr((config, lora, gradient_checkpointing))
        if self._loaded is None or key != self._key:
            self._loaded = None
            gc.collect()
            self._loaded = load_model(
                config, lora, gradient_checkpointing=gradient_checkpointing, seed=seed
            )
            self._key, self._resting_bytes = key, _allocated(self._loaded)
        else:
            log.info("the base model is loaded already")
            reset_adapter(self._loaded.model, seed=seed)
            self._loaded.reset_peak()
        return self._loaded

    def release(self) -> bool:
        """Give a finished job's memory back; return whether nothing stayed behind."""
        if self._loaded is None:
            return True
        for _, parameter in self._loaded.trainable:
            parameter.grad = None
        gc.collect()
        left = _allocated(self._loaded) - self._resting_bytes
        if left > LEAK_BYTES:
            log.warning("%.0f MiB of GPU memory are still held: a new worker", left / 2**20)
        return left <= LEAK_BYTES


def _allocated(loaded: LoadedModel) -> int:
    """Return bytes of live tensors on the GPU; 0 on a CPU."""
    if loaded.device.type != "cuda":
        return 0
    import torch

    torch.cuda.empty_cache()
    return torch.cuda.memory_allocated(loaded.device)
