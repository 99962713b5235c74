"""Singular value fine-tuning as a PEFT method, registered with PEFT when this package is imported."""

from peft.utils import PeftType, register_peft_method


def _add_to_peft_types(name: str) -> None:
    """Extends the `PeftType` enum; PEFT has no public way to do so.

    A plain string in PEFT's tables would do for PEFT but not for transformers, which asks for `peft_type.value`.
    """
    member = str.__new__(PeftType, name)
    member._name_ = name
    member._value_ = name
    member.__objclass__ = PeftType  # type: ignore[attr-defined]
    member._sort_order_ = len(PeftType._member_names_)  # type: ignore[attr-defined]
    PeftType._member_names_.append(name)
    PeftType._member_map_[name] = member
    PeftType._value2member_map_[name] = member
    type.__setattr__(PeftType, name, member)


_registered_here = "SVF" not in PeftType.__members__  # a PEFT that brings its own SVF keeps it
if _registered_here:
    _add_to_peft_types("SVF")

from experts.svf.config import SVFConfig  # noqa: E402 (PeftType.SVF must exist first)
from experts.svf.layer import SVFLinear  # noqa: E402
from experts.svf.model import SVFModel  # noqa: E402

if _registered_here:
    register_peft_method(name="svf", config_cls=SVFConfig, model_cls=SVFModel)

__all__ = ["SVFConfig", "SVFLinear", "SVFModel"]
