"""The `base` block of a recipe: what else `load_base` is told of the base that `model` names."""

from __future__ import annotations

from dataclasses import dataclass

from experts.outside.fields import added, as_document
from selfadapt.base_models import BaseOptions


@dataclass(frozen=True)
class BaseBlock:
    """As `load_base` takes them. One that is not given is in no document."""

    revision: str | None = added(None)
    """A branch, tag or commit of a hub id."""
    attn_implementation: str | None = added(None)
    """transformers' name of one: eager, sdpa, flash_attention_2."""
    device_map: str | dict[str, int | str] | None = added(None)
    """accelerate's, such as auto: shares the base out over devices."""
    trust_remote_code: bool = added(False)
    """Run the code that comes with the checkpoint."""

    quantization: str | dict[str, bool | int | float | str] | None = added(None)
    """nf4, nf4-svd or int8, by bitsandbytes while it is loaded; or arguments of transformers' BitsAndBytesConfig."""

    def options(self) -> BaseOptions:
        """Those that are given."""
        return as_document(self)
