"""Which layers of each model family an adapter covers."""

from dataclasses import dataclass
from typing import Any

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Family:
    """Names of modules, as transformers calls them.

    Attributes:
        language_model: Module that holds the text decoder.
        vision: Module that holds the vision tower.
        vision_blocks: Module below the tower that holds its blocks.
        targets: Linear layers of the language model that an adapter covers by default.
        exceptions: Linear layers of the language model that it leaves alone.
    """

    language_model: str = "language_model"
    vision: str = "vision_tower"
    vision_blocks: str = ""
    targets: tuple[str, ...] = PROJECTIONS
    exceptions: tuple[str, ...] = ()


QWEN = Family(vision="visual", vision_blocks="blocks")
# The two gates have as many rows as heads: a low rank would not be low.
QWEN3_5 = Family(
    vision="visual",
    vision_blocks="blocks",
    targets=(*PROJECTIONS, "in_proj_qkv", "in_proj_z", "out_proj"),
    exceptions=("in_proj_a", "in_proj_b"),
)
GLM = Family(
    vision="visual",
    vision_blocks="blocks",
    targets=("q_proj", "k_proj", "v_proj", "o_proj", "gate_up_proj", "down_proj"),
)
IDEFICS = Family(language_model="text_model", vision="vision_model")
FAMILIES = {
    "qwen2_vl": QWEN,
    "qwen2_5_vl": QWEN,
    "qwen3_vl": QWEN,
    "qwen3_5": QWEN3_5,
    "gemma3": Family(),
    "glm4v": GLM,
    "internvl": Family(),
    "llava": Family(),
    "llava_next": Family(),
    "llava_onevision": Family(),
    "idefics3": IDEFICS,
    "smolvlm": IDEFICS,
}


def family_of(base: Any) -> Family:
    """Return the family of a transformers model; of one without an entry, as its modules say."""
    model_type = base.config.model_type
    if model_type in FAMILIES:
        return FAMILIES[model_type]
    decoder = base.get_decoder()
    path = next(name for name, module in base.named_modules() if module is decoder)
    tower = next((n for n, _ in base.named_modules() if n.rsplit(".", 1)[-1] in TOWERS), "")
    return Family(language_model=path, vision=tower.rsplit(".", 1)[-1] or TOWERS[0])


TOWERS = ("vision_tower", "vision_model", "visual")
