"""Tensors of the host brought to the device without waiting for them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return the tensor on the device; a copy to a GPU is queued, not waited for."""
    if device.type != "cuda":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)


def integers_to_device(arrays: Sequence[Any], device: torch.device) -> list[torch.Tensor]:
    """Return arrays of integers on the device, brought there in one transfer."""
    joined = np.concatenate(arrays).astype(np.int64, copy=False)
    tensor = to_device(torch.from_numpy(joined), device)
    return list(tensor.split_with_sizes([len(array) for array in arrays]))


def patches_to_device(patches: Sequence[torch.Tensor], device: torch.device) -> torch.Tensor:
    """Return the patches of several pictures on the device as one tensor (P, D)."""
    if device.type != "cuda":
        return torch.cat(list(patches))
    shape = (sum(map(len, patches)), *patches[0].shape[1:])
    joined = torch.empty(shape, dtype=patches[0].dtype, pin_memory=True)
    # Bytes, copied by one thread: PyTorch's threads would wait 10 ms for one that lacks a core.
    source = [own.contiguous().view(torch.uint8).numpy() for own in patches]
    np.concatenate(source, out=joined.view(torch.uint8).numpy())
    return joined.to(device, non_blocking=True)
