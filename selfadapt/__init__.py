"""Language models that adapt themselves to the prompt in front of them."""

from __future__ import annotations

import logging
import os
from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

# TRL and the hub client report usage unless told otherwise; a library should not decide that for its users.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
# bitsandbytes warns of a package that it could use when PEFT imports it, which may be before `experts` is imported.
for _name in ("bitsandbytes.backends.cpu.ops", "bitsandbytes.autograd._functions"):
    logging.getLogger(_name).setLevel(logging.ERROR)

if TYPE_CHECKING:
    from experts.engine import Sampling
    from selfadapt.base_models import load_base
    from selfadapt.two_pass import SelfAdaptiveModel

    __version__: str

__all__ = ["Sampling", "SelfAdaptiveModel", "__version__", "load_base"]

# Where each name is defined: importing selfadapt must not import torch.
_HOMES = {
    "Sampling": "experts.engine",
    "SelfAdaptiveModel": "selfadapt.two_pass",
    "load_base": "selfadapt.base_models",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return version("selfadapt")
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__


def _announce_to_lm_eval() -> None:
    """Makes `lm_eval.simple_evaluate(model="selfadapt")` work without importing lm-eval's machinery or ours."""
    try:
        import lm_eval.models  # noqa: F401 (lm-eval announces its own models only where it finds none)
        from lm_eval.api.registry import model_registry
    except ImportError:  # the extra selfadapt[eval] is not installed
        return
    if "selfadapt" not in model_registry:  # a later lm-eval has found our entry point
        model_registry.register("selfadapt", target="selfadapt.harness:SelfAdaptiveLM")


_announce_to_lm_eval()
