from __future__ import annotations

import subprocess
import sys

import pytest

import selfadapt


def test_import_is_light() -> None:
    script = "import sys, selfadapt; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0


def test_experts_brings_no_training() -> None:
    script = "import sys, experts; sys.exit(bool({'trl', 'datasets', 'sentence_transformers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0


@pytest.mark.parametrize("imported", ["from selfadapt import load_base", "from experts import Mixture"])
def test_whatever_is_taken_svf_is_known_to_peft(imported: str) -> None:
    script = f"{imported}; from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING as known; assert 'SVF' in [*known]"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0


def test_names() -> None:
    assert callable(selfadapt.load_base)
    assert set(selfadapt.__all__) == set(dir(selfadapt))
    with pytest.raises(AttributeError, match="no attribute 'load_bse'"):
        _ = selfadapt.load_bse
