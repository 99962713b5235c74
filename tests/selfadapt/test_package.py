from __future__ import annotations

import subprocess
import sys

import pytest

import selfadapt


def test_import_is_light() -> None:
    script = "import sys, selfadapt; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0


def test_names() -> None:
    assert callable(selfadapt.load_base)
    assert set(selfadapt.__all__) == set(dir(selfadapt))
    with pytest.raises(AttributeError, match="no attribute 'load_bse'"):
        _ = selfadapt.load_bse
