"""OpenAI-compatible serving in two passes: our own server on the native engine, and what vLLM's needs of us.

`application.py` has the routes. A request is read (`schemas.py`), says who answers it (`names.py`, for both servers),
and is answered (`answering.py`) in OpenAI's form (`documents.py`); `served.py` follows the library on disk.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from selfadapt.serving.two_passes import TwoPasses

__all__ = ["TwoPasses"]


def __getattr__(name: str) -> Any:
    """Every process of vLLM loads the plugin; only one of them needs the middleware with all that it imports."""
    if name == "TwoPasses":
        from selfadapt.serving.two_passes import TwoPasses

        return TwoPasses
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
