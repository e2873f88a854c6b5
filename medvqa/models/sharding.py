"""A frozen base spread over the ranks of a run by PyTorch's FSDP2; the adapter is whole on each.

A layer's weights are gathered before it computes and freed afterwards. So all ranks must compute
the same number of passes. Source: Zhao et al., PyTorch FSDP, 2023.
"""

from typing import TYPE_CHECKING, Any

from medvqa.config.model import ModelConfig
from medvqa.models.source import from_pretrained

if TYPE_CHECKING:
    import torch


def sharded_base(
    config: ModelConfig, dtype: "torch.dtype", device: "torch.device", group: Any
) -> Any:
    """Return the base, of which this rank holds its part on its device.

    The first rank alone reads the files, into the host's memory. All build the model without
    memory for weights, and receive their parts.

    Args:
        config: Of the base.
        dtype: Of the weights.
        device: Of this rank.
        group: torch's group of all ranks, for tensors on their devices.
    """
    import torch
    import torch.distributed as dist
    from transformers import AutoConfig, AutoModelForImageTextToText

    whole = None
    if dist.get_rank() == 0:
        options: dict[str, Any] = {"dtype": dtype, "device_map": {"": "cpu"}}
        whole = from_pretrained(
            AutoModelForImageTextToText, config, use_safetensors=True, **options
        )
    shapes = from_pretrained(AutoConfig, config)
    with torch.device("meta"):
        base = AutoModelForImageTextToText.from_config(shapes, dtype=dtype)
    base.requires_grad_(False)
    _divide(base, device, group)
    # In the default group: reading the files may take longer than a step, the limit of `group`.
    settings = [None if whole is None else whole.generation_config]
    dist.broadcast_object_list(settings, src=0)
    base.generation_config = settings[0]
    _fill(base, whole, device, group)
    return base


def _divide(base: Any, device: "torch.device", group: Any) -> None:
    """Divide each layer's weights, and the others together; give the parts memory."""
    import torch
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    mesh = DeviceMesh.from_group(group, device.type)
    for layers in [m for m in base.modules() if isinstance(m, torch.nn.ModuleList)]:
        for layer in layers:
            fully_shard(layer, mesh=mesh)
    fully_shard(base, mesh=mesh)
    # Newer releases of transformers call the vision tower before the first `forward`.
    register_fsdp_forward_method(base, "generate")
    base.to_empty(device=device)
    base.tie_weights()


def _fill(base: Any, whole: Any, device: "torch.device", group: Any) -> None:
    """Send the first rank's weights and buffers, of which each rank keeps its part."""
    import torch
    import torch.distributed as dist
    from torch.distributed.tensor import DTensor, distribute_tensor

    # Buffers that no file holds, such as rotary frequencies, are empty as well.
    sources = {} if whole is None else {**dict(whole.named_buffers()), **whole.state_dict()}
    with torch.no_grad():
        for name, target in (*base.named_parameters(), *base.named_buffers()):
            full = torch.empty(target.shape, dtype=target.dtype, device=device)
            if whole is not None:
                full.copy_(sources[name])
            dist.broadcast(full, src=0, group=group)
            if isinstance(target, DTensor):
                part = distribute_tensor(
                    full, target.device_mesh, target.placements, src_data_rank=None
                )
                target.to_local().copy_(part.to_local())
            else:
                target.copy_(full)
