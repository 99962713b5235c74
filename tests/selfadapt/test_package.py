from __future__ import annotations

import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest
from peft import get_peft_model
from transformers import PreTrainedModel

import selfadapt
from experts.svf import SVFConfig


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


def test_a_saved_expert_loads_where_only_the_base_was_asked_for(tiny_model: PreTrainedModel, tmp_path: Path) -> None:
    # The parent has registered SVF long ago: only a process of its own can tell.
    tiny_model.save_pretrained(tmp_path / "base")
    get_peft_model(tiny_model, SVFConfig(target_modules=["q_proj"])).save_pretrained(str(tmp_path / "expert"))
    script = (
        "import sys; from selfadapt import load_base; from peft import PeftModel; "
        "from transformers import AutoModelForCausalLM; base = AutoModelForCausalLM.from_pretrained(sys.argv[1]); "
        "PeftModel.from_pretrained(base, sys.argv[2])"
    )
    folders = [str(tmp_path / "base"), str(tmp_path / "expert")]
    assert subprocess.run([sys.executable, "-c", script, *folders]).returncode == 0


def test_names() -> None:
    assert callable(selfadapt.load_base)
    assert set(selfadapt.__all__) == set(dir(selfadapt))
    with pytest.raises(AttributeError, match="no attribute 'load_bse'"):
        _ = selfadapt.load_bse


@pytest.mark.parametrize("package", ["selfadapt", "dispatch", "experts"])
def test_types_are_told_to_other_type_checkers(package: str) -> None:
    assert files(package).joinpath("py.typed").is_file()
