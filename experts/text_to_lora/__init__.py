"""Text-to-LoRA (arXiv 2506.06105): a network that reads the description of a task and writes an adapter for it."""

from experts.text_to_lora.writer import TextToAdapter

__all__ = ["TextToAdapter"]
