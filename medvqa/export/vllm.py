"""The command line of a vLLM server that carries the adapter; vLLM itself is never imported."""

import json
from pathlib import Path

from medvqa.config.errors import UserError
from medvqa.config.lora import LoraConfig
from medvqa.models.trained import Trained

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM 0.33 allows for --max-lora-rank
MAX_IMAGES = 4


def max_lora_rank(lora: LoraConfig) -> int:
    """Return the rank rounded up to one that vLLM allows.

    Raises:
        UserError: If it is above all of them.
    """
    for allowed in RANKS:
        if lora.r <= allowed:
            return allowed
    raise UserError(f"lora.r={lora.r}, but vLLM serves ranks up to {RANKS[-1]}")


def vllm_command(trained: Trained, *, weights: Path | str, base: str | None = None) -> list[str]:
    """Return `vllm serve ...`, the same pixel budget and greedy answers as in the evaluation.

    Args:
        trained: What is served.
        weights: Directory of the adapter or of the merged model, or its repository on the hub.
        base: Local directory of the base; the hub's id if None.
    """
    model = trained.model
    size = {"shortest_edge": model.min_pixels, "longest_edge": model.max_pixels}
    options = {"size": size} if model.max_pixels else model.image_options
    common = [
        *("--limit-mm-per-prompt", json.dumps({"image": MAX_IMAGES})),
        *("--mm-processor-kwargs", json.dumps(options)),
        # Qwen2-VL's own generation config samples and penalises repetition.
        *("--generation-config", "vllm"),
        *("--max-model-len", str(model.max_length_tokens + trained.evaluation.max_new_tokens)),
    ]
    if trained.adapter is None:
        return ["vllm", "serve", str(weights), "--served-model-name", trained.name, *common]
    served = base or model.path or model.name
    is_hub = served == model.name
    return [
        *("vllm", "serve", served),
        *(["--revision", trained.revision] if trained.revision and is_hub else []),
        *("--enable-lora", "--max-lora-rank", str(max_lora_rank(trained.lora))),
        *("--lora-modules", f"{trained.name}={weights}"),
        # Without it vLLM drops the vision tower's part of the adapter with a mere warning.
        *(["--enable-tower-connector-lora"] if trained.lora.vision_layers else []),
        *common,
    ]
