"""The config group `lora`: the adapter."""

from dataclasses import dataclass

from medvqa.config.bounds import bounded, check


@dataclass(kw_only=True)
class LoraConfig:
    """Adapter.

    Attributes:
        r: Rank of the adapter.
        alpha: The update of a layer is scaled by alpha / r.
        dropout: Share of the adapter's inputs that training sets to zero.
        target_modules: Names of linear layers of the language model; each must match at least one.
            Without them, those that `medvqa.models.families.layers` lists for the model's family.
        vision_layers: Also adapt the vision tower (vLLM then needs a flag to serve it).
    """

    r: int = bounded("[1, 4096]", 16)
    alpha: float = bounded("(0, 65536]", 32.0)
    dropout: float = bounded("[0, 1)", 0.0)
    target_modules: list[str] | None = None
    vision_layers: bool = False

    def __post_init__(self) -> None:
        """Check that something trains."""
        check(self.target_modules != [], "lora.target_modules is empty; nothing would train")
