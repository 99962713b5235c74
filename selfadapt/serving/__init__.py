"""Two passes behind an OpenAI-compatible server, and what vLLM needs of us."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from selfadapt.serving.two_passes import TwoPasses

__all__ = ["TwoPasses"]


def __getattr__(name: str) -> Any:
    """Every process of vLLM loads the plugin; the middleware with all that it imports is for one of them."""
    if name == "TwoPasses":
        from selfadapt.serving.two_passes import TwoPasses

        return TwoPasses
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
