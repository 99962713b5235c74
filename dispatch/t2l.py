"""`dispatch.text_to_lora` under its old name and interface, from before engines carried experts."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dispatch import text_to_lora
from dispatch.text_to_lora import Describe, by_domain, by_prompt
from dispatch.text_to_lora import by_description as told
from experts.engine import NativeEngine

__all__ = ["T2LDispatcher", "by_domain", "by_prompt", "told"]


class T2LDispatcher(text_to_lora.T2LDispatcher):
    """Takes a model and its tokenizer, and says which model to answer with."""

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        network: Path,
        model: PreTrainedModel | PeftModel,
        tokenizer: PreTrainedTokenizerBase,
        describe: Describe = by_prompt,
        **options: Any,
    ) -> T2LDispatcher:
        dispatcher = super().from_pretrained(network, NativeEngine(model, tokenizer), describe, **options)
        return cast(T2LDispatcher, dispatcher)

    @property
    def model(self) -> PeftModel:
        engine = cast(NativeEngine, self.engine)
        if not isinstance(engine.model, PeftModel):  # it becomes one with the first expert
            self._release(self._carry(["Anything."]))
        return cast(PeftModel, engine.model)
