"""The config group `lora`: the adapter."""

from dataclasses import dataclass, field

from medvqa.config.bounds import check, positive


@dataclass(kw_only=True)
class LoraConfig:
    """Adapter.

    Attributes:
        target_modules: Names of linear layers; each must match at least one.
        vision_layers: Also adapt the vision tower (vLLM then needs a flag to serve it).
    """

    r: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
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
        """Check bounds."""
        positive("lora", self, "r", "alpha")
        check(0 <= self.dropout < 1, f"lora.dropout must be in [0, 1), got {self.dropout}")
        check(len(self.target_modules) > 0, "lora.target_modules is empty; nothing would train")
