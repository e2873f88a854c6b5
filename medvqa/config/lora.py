"""The config group `lora`: the adapter."""

from dataclasses import dataclass, field

from medvqa.config.bounds import bounded, check


@dataclass(kw_only=True)
class LoraConfig:
    """Adapter.

    Attributes:
        target_modules: Names of linear layers; each must match at least one.
        vision_layers: Also adapt the vision tower (vLLM then needs a flag to serve it).
    """

    r: int = bounded("[1, 4096]", 16)
    alpha: float = bounded("(0, 65536]", 32.0)
    dropout: float = bounded("[0, 1)", 0.0)
    target_modules: list[str] = field(
        default_factory=lambda: [
            "q_proj",
            "k_proj",
            "v_proj",
            "o_proj",
            "gate_proj",
            "up_proj",
            "down_proj",
        ]
    )
    vision_layers: bool = False

    def __post_init__(self) -> None:
        """Check that something trains."""
        check(len(self.target_modules) > 0, "lora.target_modules is empty; nothing would train")
