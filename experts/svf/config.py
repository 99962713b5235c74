"""The configuration of an SVF adapter."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from peft import PeftConfig
from peft.utils import PeftType


@dataclass
class SVFConfig(PeftConfig):
    """Singular value fine-tuning (Transformer², arXiv 2501.06252, section 3.1) as a PEFT method.

    Every adapted matrix W [m, n] = U diag(s) Vᵀ gets one vector z [r], r = min(m, n, rank), that multiplies its
    singular values: W' = U diag(s·z) Vᵀ. z starts at 1, which is the base bit for bit.

    Args:
        target_modules: names or a regular expression as in other PEFT methods, or "all-linear": without the head, and
            of a vision-language model the language part (unless `exclude_modules` says otherwise).
        exclude_modules: names or a regular expression of modules to leave alone.
        rank: adapt only the `rank` largest singular values of each matrix; None adapts all of them.
        rank_pattern: the ranks of single matrices, by their full names, where they differ from `rank`.
        layers_to_transform: indices of the layers to adapt; None adapts all of them.
        layers_pattern: the name of the `nn.ModuleList` that the indices count, where it is unusual.
        base_fingerprint: of the base that the expert was trained on; libraries refuse another.
        transferred_from: the name and fingerprint of the base that the expert was trained on, where that is another.
        domain: the name of what the expert was trained for.
        description: the domain in one sentence, which dispatchers read.

    Raises:
        ValueError: if the rank is below 1, or layers are chosen beside a regular expression.
    """

    target_modules: list[str] | str | None = field(default="all-linear")
    exclude_modules: list[str] | str | None = field(default=None)
    rank: int | None = field(default=None)
    rank_pattern: dict[str, int] = field(default_factory=dict)
    layers_to_transform: list[int] | int | None = field(default=None)
    layers_pattern: list[str] | str | None = field(default=None)
    base_fingerprint: str | None = field(default=None)
    transferred_from: str | None = field(default=None)
    domain: str | None = field(default=None)
    description: str | None = field(default=None)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType("SVF")
        # PEFT matches a set of names much faster than a list.
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)  # type: ignore[assignment]
        if isinstance(self.exclude_modules, list):
            self.exclude_modules = set(self.exclude_modules)  # type: ignore[assignment]
        if self.rank is not None and self.rank < 1:
            raise ValueError(f"rank must be at least 1, or None for all singular values; got {self.rank}")
        is_pattern = isinstance(self.target_modules, str) and self.target_modules.lower() != "all-linear"
        if is_pattern and self.layers_to_transform is not None:
            raise ValueError(
                "layers_to_transform goes with a list of names or 'all-linear'; a regular expression in "
                "target_modules can choose the layers itself"
            )
        if self.layers_pattern and self.layers_to_transform is None:
            raise ValueError("layers_pattern needs layers_to_transform")

    def to_dict(self) -> dict[str, Any]:
        # Sets have no order of their own; a saved configuration should.
        return {key: sorted(v) if isinstance(v, set) else v for key, v in super().to_dict().items()}
