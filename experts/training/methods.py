"""The ways to adapt a base that share one training loop, as PEFT configurations: SVF and its rivals.

SVF        W' = U diag(s·z) Vᵀ             z [r] trained
LoRA       W' = W + (α/r) B A              A [r, n], B [m, r] trained
DoRA       LoRA on the direction of each row of W, with its length [m] trained beside it
IA3        W' = diag(l) W or W diag(l)     l [m] or [n] trained
TinyLoRA   W' = W + B (Σ_i v_i P_i) A      v [u] trained; A, B from W's own factors, P [u, r, r] random
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

from peft import IA3Config, LoraConfig, PeftConfig, TinyLoraConfig

from experts.svf import SVFConfig


@dataclass(frozen=True)
class SVF:
    """Which matrices an expert adapts."""

    target_modules: str | list[str] = "all-linear"
    """A regular expression over module names, a list of names, or "all-linear" (every layer but the head)."""
    rank: int | None = None
    """Adapt only this many of the largest singular values of each matrix; None adapts all of them."""
    layers_to_transform: list[int] | None = None
    """Adapt only these layers."""

    def config(self) -> PeftConfig:
        return SVFConfig(**asdict(self), task_type="CAUSAL_LM")


@dataclass(frozen=True)
class LoRA:
    """Which matrices get a low-rank difference, and how low its rank is."""

    target_modules: str | list[str] = "all-linear"
    """A regular expression over module names, a list of names, or "all-linear" (every layer but the head)."""
    rank: int = 16
    alpha: float = 32
    """The difference is scaled by alpha / rank."""
    dropout: float = 0.0
    """Under REINFORCE anything above 0 trains on other likelihoods than the ones that were sampled from."""

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
    """Which layers get their outputs, or inputs, rescaled."""

    target_modules: str | list[str] = field(default_factory=lambda: ["k_proj", "v_proj", "down_proj"])
    """A regular expression over module names, a list of names, or "all-linear" (every layer but the head)."""
    feedforward_modules: str | list[str] = field(default_factory=lambda: ["down_proj"])
    """Those of them whose inputs are rescaled instead of the outputs."""

    def config(self) -> PeftConfig:
        return IA3Config(**asdict(self), task_type="CAUSAL_LM")


@dataclass(frozen=True)
class TinyLoRA:
    """Which matrices get a low-rank difference that a few numbers steer (arXiv 2602.04118)."""

    target_modules: str | list[str] = "all-linear"
    """A regular expression over module names, a list of names, or "all-linear" (every layer but the head)."""
    rank: int = 2
    u: int = 64
    """Trained numbers a matrix."""
    weight_tying: float = 0.0
    """The share of matrices that use the numbers of another."""

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
