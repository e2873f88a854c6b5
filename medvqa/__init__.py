"""Fine-tune medical vision-language models with LoRA; find out which data in which order helps."""

__version__ = "0.2.0"
