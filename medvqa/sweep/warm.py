"""One loaded base for one job after another."""

import gc
import logging
from typing import Any

from medvqa.config.lora import LoraConfig
from medvqa.config.model import ModelConfig
from medvqa.models.adapter import reset_adapter
from medvqa.models.load import CheckProcessor, accept, load_in_own_process
from medvqa.models.loaded import LoadedModel
from medvqa.models.patches import Patches

log = logging.getLogger(__name__)

GPU_LEAK_BYTES = 256 * 2**20
HOST_LEAK_BYTES = 2 * 2**30  # allocators keep some of what was freed
PATCHES_BYTES = 4 * 2**30  # some seven hundred pictures of 512 x 512


class WarmModels:
    """Keeps the last model; a job with the same model and LoRA settings starts from it.

    The adapter is initialised from the job's seed exactly as in a process of its own.

    Attributes:
        patches: Pictures as the model takes them, of the data that jobs have read so far.
        cache: Rows and overlaps of the same data.
    """

    def __init__(self) -> None:
        self.cache: dict[str, Any] = {}
        self.patches = Patches(max_bytes=PATCHES_BYTES)
        self._key = ""
        self._data: Any = None
        self._loaded: LoadedModel | None = None
        self._resting_gpu_bytes: int | None = None
        self._resting_host_bytes: int | None = None

    def expect(self, data: Any) -> None:
        """Say which data the next job reads: of other data, pictures may have the same names."""
        if data != self._data:
            self._forget_pictures()
            self.cache.clear()
        self._data = data

    def _forget_pictures(self) -> None:
        self.patches.clear()
        if self._loaded is not None:
            self._loaded.features.clear()

    def load(
        self,
        config: ModelConfig,
        lora: LoraConfig,
        *,
        gradient_checkpointing: bool,
        seed: int,
        check: CheckProcessor = accept,
    ) -> LoadedModel:
        """Return the model with a fresh adapter; see `medvqa.models.load.load_model`."""
        import torch

        key = repr((config, lora, gradient_checkpointing))
        if self._loaded is None or key != self._key:
            self._forget_pictures()
            if self._loaded is not None:  # makes room for another model
                self._loaded = None
                gc.unfreeze()
                gc.collect()
                torch.cuda.empty_cache()  # nothing on a CPU
            self._loaded = load_in_own_process(
                config,
                lora,
                gradient_checkpointing=gradient_checkpointing,
                seed=seed,
                check=check,
            )
            self._key, self._resting_gpu_bytes = key, None
        else:
            log.info("the base model is loaded already")
            check(self._loaded.processor)
            reset_adapter(self._loaded.model, seed=seed)
            self._loaded.reset_peak()
        return self._loaded

    def release(self) -> bool:
        """Give a finished job's memory back; return whether nothing stayed behind."""
        import psutil

        if self._loaded is None:
            return True
        for _, parameter in self._loaded.trainable:
            parameter.grad = None
        gc.collect()
        gpu_now = _gpu_bytes(self._loaded)
        if self._resting_gpu_bytes is None:  # unpacked scales of 4 bits stay, for example
            self._resting_gpu_bytes = gpu_now
        gpu = gpu_now - self._resting_gpu_bytes
        host_now = int(psutil.Process().memory_info().rss) - self.patches.num_bytes
        if self._resting_host_bytes is None:
            # What the first job leaves are libraries and pools that every job uses. Half a million
            # objects that stay: the collector need not walk through them in each job again.
            self._resting_host_bytes = host_now
            gc.freeze()
        host = host_now - self._resting_host_bytes
        if gpu <= GPU_LEAK_BYTES and host <= HOST_LEAK_BYTES:
            return True
        log.warning(
            "%.0f MiB on the GPU and %.0f MiB of host memory are still held: a new worker",
            *(gpu / 2**20, host / 2**20),
        )
        return False


def _gpu_bytes(loaded: LoadedModel) -> int:
    """Return bytes of live tensors on the GPU but for those kept on purpose; 0 on a CPU.

    Features of pictures and captured passes are kept for the next job. PyTorch's cache of freed
    tensors does not count: the next job of the same shapes reuses it without asking the driver.
    """
    if loaded.device.type != "cuda":
        return 0
    import torch

    kept = sum(int(engine.captured_bytes) for engine in loaded.engines.values())
    return torch.cuda.memory_allocated(loaded.device) - loaded.features.num_bytes - kept
