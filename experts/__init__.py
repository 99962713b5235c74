"""Experts: what is mixed, and how it is made. Importing this package registers SVF with PEFT."""

import os

# TRL and the hub client report usage unless told otherwise; a library should not decide that for its users.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

from experts.expert import Expert
from experts.library import ExpertLibrary
from experts.mixture import Mixture
from experts.svf import SVFConfig

__all__ = ["Expert", "ExpertLibrary", "Mixture", "SVFConfig"]
