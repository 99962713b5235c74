"""The configuration of an SVF adapter."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from peft import PeftConfig
from peft.utils import PeftType
from peft.utils.other import get_pattern_key

from experts.outside.errors import UserError, short
from experts.svf.names import check_expression


@dataclass
class SVFConfig(PeftConfig):
    """Singular value fine-tuning (Transformer², arXiv 2501.06252, section 3.1) as a PEFT method.

    Every adapted matrix W [m, n] = U diag(s) Vᵀ gets one vector z [r], r = min(m, n, rank), that multiplies its
    singular values: W' = U diag(s·z) Vᵀ. z starts at 1, which is the base bit for bit.

    Args:
        target_modules: names or a regular expression as in other PEFT methods, or "all-linear", which leaves out the
            head and, unless `exclude_modules` is given, all but the language part of a vision-language model.
        target_parameters: names, or the ends of names, of parameters that hold the matrices of a mixture of experts,
            [E, m, n], as in PEFT's LoRA: "mlp.experts.gate_up_proj". They are adapted beside the target modules, which
            may be none ([]), and each matrix gets a z of its own.
        exclude_modules: names or a regular expression of modules to leave alone.
        rank: adapt only the `rank` largest singular values of each matrix; None adapts all of them, and so does a
            rank that is larger than the matrix.
        rank_pattern: ranks that differ from `rank`, by the ends of matrices' names or by regular expressions; the
            first that matches counts, as in PEFT's LoRA.
        layers_to_transform: indices of the layers to adapt; None adapts all of them.
        layers_pattern: the name of the `nn.ModuleList` that the indices refer to, if it is unusual.
        modules_to_save: names of modules beside the adapted matrices that are trained and saved whole, such as a
            classifier's head, which PEFT itself names here for `task_type="SEQ_CLS"` and the like. Only PEFT loads such
            an adapter: an expert of a library is z alone.
        trainable_token_indices: tokens whose embeddings are trained and saved, as in PEFT's LoRA.
        base_fingerprint: the fingerprint of the base that the expert was trained on; libraries refuse another.
        transferred_from: the name and fingerprint of the base that the expert was trained on, if that is another one.
        domain: the name of the domain that the expert was trained on.
        description: the domain in one sentence, which dispatchers read.

    Raises:
        UserError: if names are not strings, a rank is not a whole number of at least 1, a regular expression is
            invalid, or layers are chosen beside a regular expression.
    """

    target_modules: list[str] | str | None = field(default="all-linear")
    target_parameters: list[str] | None = field(default=None)
    exclude_modules: list[str] | str | None = field(default=None)
    rank: int | None = field(default=None)
    rank_pattern: dict[str, int] = field(default_factory=dict)
    layers_to_transform: list[int] | int | None = field(default=None)
    layers_pattern: list[str] | str | None = field(default=None)
    modules_to_save: list[str] | None = field(default=None)
    trainable_token_indices: list[int] | dict[str, list[int]] | None = field(default=None)
    base_fingerprint: str | None = field(default=None)
    transferred_from: str | None = field(default=None)
    domain: str | None = field(default=None)
    description: str | None = field(default=None)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType("SVF")
        if isinstance(self.target_modules, str) and self.target_modules.lower() == "all-linear":
            self.target_modules = "all-linear"
        self._check_names()
        # PEFT matches a set of names much faster than a list.
        if isinstance(self.target_modules, list | tuple):
            self.target_modules = set(self.target_modules)  # type: ignore[assignment]
        if isinstance(self.exclude_modules, list | tuple):
            self.exclude_modules = set(self.exclude_modules)  # type: ignore[assignment]
        self._check_ranks()
        self._check_expressions()
        self._check_layers()

    def rank_of(self, matrix: str) -> int | None:
        """The rank of a matrix, by its full name in the base; None for all of its singular values."""
        return self.rank_pattern.get(get_pattern_key(list(self.rank_pattern), matrix), self.rank)

    def _check_names(self) -> None:
        single, several = (
            ("target_modules", "exclude_modules", "layers_pattern"),
            ("modules_to_save", "target_parameters"),
        )
        for field_name in single + several:
            given, alone = getattr(self, field_name), field_name in single
            listed = isinstance(given, list | tuple | set) and all(isinstance(name, str) for name in given)
            if given is not None and not listed and not (alone and isinstance(given, str)):
                what = "a list of names, or a string" if alone else "a list of names"
                raise UserError(f"{field_name} must be {what}; got {short(given)}")
        if not isinstance(self.target_modules, str) and "all-linear" in (self.target_modules or ()):
            raise UserError("target_modules: all-linear stands alone, not in a list")
        tokens = self.trainable_token_indices
        for indices in tokens.values() if isinstance(tokens, dict) else [tokens or []]:
            if not isinstance(indices, list) or any(type(index) is not int or index < 0 for index in indices):
                raise UserError(f"trainable_token_indices must be lists of whole numbers from 0; got {short(indices)}")

    def _check_ranks(self) -> None:
        if self.rank_pattern is None:
            self.rank_pattern = {}
        if not isinstance(self.rank_pattern, dict) or not all(isinstance(name, str) for name in self.rank_pattern):
            raise UserError(f"rank_pattern must map names of matrices to ranks; got {self.rank_pattern!r}")
        ranks = {"rank": self.rank} | {f"rank_pattern {name!r}": rank for name, rank in self.rank_pattern.items()}
        for name, rank in ranks.items():
            if rank is not None and (type(rank) is not int or rank < 1):
                raise UserError(f"{name} must be at least 1, or None for all singular values; got {rank!r}")

    def _check_expressions(self) -> None:
        patterns = self.layers_pattern or []
        single = (self.target_modules, self.exclude_modules, *([patterns] if isinstance(patterns, str) else patterns))
        for expression in [*(text for text in single if isinstance(text, str)), *self.rank_pattern]:
            check_expression(expression)

    def _check_layers(self) -> None:
        layers = self.layers_to_transform
        if layers is None:
            if self.layers_pattern:
                raise UserError("layers_pattern needs layers_to_transform")
            return
        if isinstance(self.target_modules, str) and self.target_modules != "all-linear":
            raise UserError(
                "layers_to_transform goes with a list of names or 'all-linear'; a regular expression in "
                "target_modules can choose the layers itself"
            )
        indices = [layers] if isinstance(layers, int) else layers
        if not isinstance(indices, list) or any(type(index) is not int or index < 0 for index in indices):
            raise UserError(f"layers_to_transform must be an index from 0, or a list of them; got {layers!r}")

    def to_dict(self) -> dict[str, Any]:
        # Sets have no order; a saved configuration should.
        return {key: sorted(v) if isinstance(v, set) else v for key, v in super().to_dict().items()}
