"""The options of every verb that loads a base to answer with it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

if TYPE_CHECKING:
    from selfadapt.base_models import BaseOptions


@dataclass(frozen=True)
class Loading:
    """How the base is loaded."""

    dtype: str | None = None
    """What it computes in; by default float32 on a CPU and the checkpoint's own on an accelerator."""
    device: str | None = None
    """Where it computes, such as cuda:1 or cpu; by default the accelerator, if there is one."""
    quantization: Literal["nf4", "nf4-svd", "int8"] | None = None
    """Load it in four or eight bits, by bitsandbytes; nf4-svd keeps the largest singular triplets exact."""

    def options(self) -> BaseOptions:
        """Those that are given."""
        given: Any = {name: value for name, value in asdict(self).items() if value is not None}
        return given


FromOptions = Annotated[Loading, tyro.conf.OmitArgPrefixes]
"""`--dtype`, `--device` and `--quantization` beside a verb's own."""
