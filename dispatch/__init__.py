"""Pass one: prompts in, mixture out. One file per dispatcher; `dispatch.table` lists their names."""

from dispatch.base import Dispatcher, Fixed
from dispatch.embedding import EmbeddingDispatcher, check_described
from dispatch.prompt import Calibration, PromptDispatcher, calibration_path
from dispatch.table import DEFAULT, DISPATCHERS, FEW_SHOT, check_dispatcher, find_dispatcher
from dispatch.text_to_lora import T2LDispatcher

__all__ = [
    "DEFAULT",
    "DISPATCHERS",
    "FEW_SHOT",
    "Calibration",
    "Dispatcher",
    "EmbeddingDispatcher",
    "Fixed",
    "PromptDispatcher",
    "T2LDispatcher",
    "calibration_path",
    "check_described",
    "check_dispatcher",
    "find_dispatcher",
]
