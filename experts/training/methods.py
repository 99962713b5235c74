"""The ways to adapt a base that share one training loop, as PEFT configurations: SVF and its rivals.

SVF        W' = U diag(s·z) Vᵀ             z [r] trained
LoRA       W' = W + (α/r) B A              A [r, n], B [m, r] trained
DoRA       LoRA on the direction of each row of W, with its length [m] trained beside it
IA3        W' = diag(l) W or W diag(l)     l [m] or [n] trained
TinyLoRA   W' = W + B (Σ_i v_i P_i) A      v [u] trained; A, B from W's own factors, P [u, r, r] random
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, cast

from peft import IA3Config, LoraConfig, PeftConfig, PeftType, TinyLoraConfig
from peft.tuners.tuners_utils import check_target_module_exists
from torch import nn
from transformers.pytorch_utils import Conv1D

from experts.outside.errors import UserError, check_numbers, check_whole
from experts.outside.fields import added
from experts.svf import SVFConfig
from experts.svf.names import check_expression
from experts.svf.targets import check_each, module_names


@dataclass(frozen=True)
class SVF:
    """Which matrices an expert adapts."""

    also_called: ClassVar[Mapping[str, str]] = {"r": "rank"}
    """PEFT's names for our fields, which recipes may use as well."""

    target_modules: str | list[str] = "all-linear"
    """A regular expression over module names, a list of names, or "all-linear" (every layer but the head)."""
    target_parameters: list[str] | None = added(None)
    """Beside those, parameters that hold the matrices of a mixture of experts, such as mlp.experts.gate_up_proj."""
    rank: int | None = None
    """Adapt only this many of the largest singular values of each matrix; None adapts all of them."""
    layers_to_transform: list[int] | None = None
    """Adapt only these layers."""

    def config(self) -> PeftConfig:
        return SVFConfig(**asdict(self), task_type="CAUSAL_LM")


@dataclass(frozen=True)
class LoRA:
    """Which matrices get a low-rank difference, and how low its rank is."""

    also_called: ClassVar[Mapping[str, str]] = {"r": "rank", "lora_alpha": "alpha", "lora_dropout": "dropout"}

    target_modules: str | list[str] = "all-linear"
    """A regular expression over module names, a list of names, or "all-linear" (every layer but the head)."""
    rank: int = 16
    alpha: float = 32
    """The difference is scaled by alpha / rank."""
    dropout: float = 0.0
    """Under REINFORCE, anything above 0 trains on likelihoods other than those that were sampled from."""

    def __post_init__(self) -> None:
        _check(self.target_modules, rank=self.rank)
        check_numbers(self, least=[("dropout", 0)], positive=["alpha"])
        if self.dropout >= 1:
            raise UserError(f"dropout must be less than 1, not {self.dropout}")

    def config(self) -> PeftConfig:
        return LoraConfig(
            target_modules=self.target_modules,
            r=self.rank,
            lora_alpha=self.alpha,  # type: ignore[arg-type]
            lora_dropout=self.dropout,
            task_type="CAUSAL_LM",
        )


@dataclass(frozen=True)
class DoRA(LoRA):
    """LoRA of the direction of each row, with the row's length trained beside it."""

    def config(self) -> PeftConfig:
        config = super().config()
        config.use_dora = True  # type: ignore[attr-defined]
        return config


@dataclass(frozen=True)
class IA3:
    """Which layers get their outputs or inputs rescaled."""

    target_modules: str | list[str] = field(default_factory=lambda: ["k_proj", "v_proj", "down_proj"])
    """A regular expression over module names, a list of names, or "all-linear" (every layer but the head)."""
    feedforward_modules: str | list[str] = field(default_factory=lambda: ["down_proj"])
    """Those of them whose inputs are rescaled instead of their outputs."""

    def __post_init__(self) -> None:
        _check(self.target_modules)
        _check(self.feedforward_modules)

    def config(self) -> PeftConfig:
        return IA3Config(**asdict(self), task_type="CAUSAL_LM")


@dataclass(frozen=True)
class TinyLoRA:
    """Which matrices get a low-rank difference that a few numbers steer (arXiv 2602.04118)."""

    also_called: ClassVar[Mapping[str, str]] = {"r": "rank"}

    target_modules: str | list[str] = "all-linear"
    """A regular expression over module names, a list of names, or "all-linear" (every layer but the head)."""
    rank: int = 2
    u: int = 64
    """Trained numbers per matrix."""
    weight_tying: float = 0.0
    """The share of matrices that use the numbers of another."""

    def __post_init__(self) -> None:
        _check(self.target_modules, rank=self.rank, u=self.u)

    def config(self) -> PeftConfig:
        return TinyLoraConfig(
            target_modules=self.target_modules,
            r=self.rank,
            u=self.u,
            weight_tying=self.weight_tying,
            task_type="CAUSAL_LM",
        )


Adapt = SVF | LoRA | DoRA | IA3 | TinyLoRA
METHODS: dict[str, type[Adapt]] = {"svf": SVF, "lora": LoRA, "dora": DoRA, "ia3": IA3, "tinylora": TinyLoRA}


def _check(modules: str | list[str], **counts: int) -> None:
    if isinstance(modules, str):
        check_expression(modules)
    for name, count in counts.items():
        check_whole(name, count)


def check_targets(config: PeftConfig, base: nn.Module) -> None:
    """Checks the names in a rival's configuration against the modules of a base; SVF does so itself.

    Raises:
        UserError: for a name that refers to nothing (PEFT would silently adapt only the others), or for a module that
            the method cannot adapt.
    """
    wanted = cast(Any, config).target_modules
    if isinstance(config, SVFConfig) or wanted == "all-linear":
        return
    check_each("target module", wanted, list(module_names(base)))
    named = {name: module for name, module in base.named_modules() if check_target_module_exists(config, name)}
    if not named:
        raise UserError(f"target_modules names nothing in the base: {wanted!r}")
    kinds = (nn.Linear, Conv1D) if isinstance(config, IA3Config) else (nn.Linear, Conv1D, nn.Embedding)
    for name, module in named.items():
        if not isinstance(module, kinds):
            method, kind = PeftType(config.peft_type).value, type(module).__name__
            raise UserError(f"{name} is a {kind}, which {method} cannot adapt: leave it out of target_modules")
