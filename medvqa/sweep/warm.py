"""One loaded base for one job after another."""

import gc
import logging
import os
from pathlib import Path
from typing import Any

from medvqa.config import LoraConfig, ModelConfig
from medvqa.engine import kept_features
from medvqa.model import LoadedModel, load_model, reset_adapter

log = logging.getLogger(__name__)

GPU_LEAK_BYTES = 256 * 2**20
HOST_LEAK_BYTES = 2 * 2**30  # allocators keep some of what was freed


class WarmModels:
    """Keeps the last model; a job with the same model and LoRA settings starts from it.

    The adapter is initialised from the job's seed exactly as in a process of its own.
    """

    def __init__(self) -> None:
        self._key = ""
        self._data: Any = None
        self._loaded: LoadedModel | None = None
        self._resting_gpu_bytes = 0
        self._resting_host_bytes: int | None = None

    def expect(self, data: Any) -> None:
        """Say which data the next job reads: of other data, pictures may have the same names."""
        if self._loaded is not None and data != self._data:
            features = kept_features(self._loaded)
            if features is not None:
                features.clear()
        self._data = data

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
            self._key, self._resting_gpu_bytes = key, _gpu_bytes(self._loaded)
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
        gpu = _gpu_bytes(self._loaded) - self._resting_gpu_bytes
        host_now = _host_bytes()
        # What the first job leaves are libraries and pools that every job uses.
        self._resting_host_bytes = self._resting_host_bytes or host_now
        host = host_now - self._resting_host_bytes
        if gpu <= GPU_LEAK_BYTES and host <= HOST_LEAK_BYTES:
            return True
        log.warning(
            "%.0f MiB on the GPU and %.0f MiB of host memory are still held: a new worker",
            *(gpu / 2**20, host / 2**20),
        )
        return False


def _gpu_bytes(loaded: LoadedModel) -> int:
    """Return bytes of live tensors on the GPU but for features kept on purpose; 0 on a CPU."""
    if loaded.device.type != "cuda":
        return 0
    import torch

    torch.cuda.empty_cache()
    features = kept_features(loaded)
    kept = 0 if features is None else features.num_bytes
    return torch.cuda.memory_allocated(loaded.device) - kept


def _host_bytes() -> int:
    """Return the memory that the process has resident; 0 where the system does not say."""
    statm = Path("/proc/self/statm")
    if not statm.is_file():
        return 0
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
