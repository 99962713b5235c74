"""Experts: what they are, and how they are made and mixed. Importing this package registers SVF with PEFT."""

import logging
import os

# TRL and the hub client report usage unless told otherwise; a library should not decide that for its users.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
# bitsandbytes warns about a package it could use when PEFT imports it, and about a cast in every layer at every call.
for _name in ("bitsandbytes.backends.cpu.ops", "bitsandbytes.autograd._functions"):
    logging.getLogger(_name).setLevel(logging.ERROR)

from experts.expert import Expert  # noqa: E402 (the loggers' levels come first)
from experts.library import ExpertLibrary  # noqa: E402
from experts.mixture import Mixture  # noqa: E402
from experts.svf import SVFConfig  # noqa: E402

__all__ = ["Expert", "ExpertLibrary", "Mixture", "SVFConfig"]
