from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from importlib.resources import files
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from peft import get_peft_model
from transformers import PreTrainedModel

import selfadapt
from experts.svf import SVFConfig


def test_import_is_light() -> None:
    script = "import sys, selfadapt; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0


def test_bitsandbytes_is_quiet_before_peft_imports_it() -> None:
    script = (
        "import logging, selfadapt; "
        "names = ['bitsandbytes.backends.cpu.ops', 'bitsandbytes.autograd._functions']; "
        "assert all(logging.getLogger(name).level == logging.ERROR for name in names)"
    )
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0


@pytest.mark.long
def test_experts_brings_no_training() -> None:
    script = "import sys, experts; sys.exit(bool({'trl', 'datasets', 'sentence_transformers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0


@pytest.mark.parametrize("imported", ["from selfadapt import load_base", "from experts import Mixture"])
@pytest.mark.long
def test_whatever_is_taken_svf_is_known_to_peft(imported: str) -> None:
    script = f"{imported}; from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING as known; assert 'SVF' in [*known]"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0


@pytest.mark.long
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


ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PACKAGES = ("selfadapt", "dispatch", "experts")


def imports(tree: ast.AST) -> Iterator[str]:
    """The packages that a program's statements import, those inside its functions included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield str(node.module).split(".")[0]


def test_what_is_imported_is_declared() -> None:
    names = ("embedding", "eval", "quantised", "page", "ray", "reasoning-gym", "serve")
    extras = [PROJECT["optional-dependencies"][name] for name in names]
    # What vLLM and the tests need is there for them alone.
    lines = [line for own in (PROJECT["dependencies"], *extras) for line in own]
    declared = {canonicalize_name(Requirement(line).name) for line in lines}
    distributions = packages_distributions()
    imported = {
        (package, str(file.relative_to(ROOT)))
        for folder in PACKAGES
        for file in (ROOT / folder).rglob("*.py")
        for package in imports(ast.parse(file.read_text(encoding="utf-8")))
        if package not in sys.stdlib_module_names and package not in (*PACKAGES, "vllm")  # vLLM: docs/serving.md
    }
    undeclared = {
        (package, file)
        for package, file in imported
        if declared.isdisjoint(map(canonicalize_name, distributions.get(package, [package])))
    }
    assert imported
    assert undeclared == set()


def test_the_extras_that_texts_and_errors_name_exist() -> None:
    files = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    files += [file for folder in PACKAGES for file in (ROOT / folder).rglob("*.py")]
    text = "\n".join(file.read_text(encoding="utf-8") for file in files)
    named = {extra for found in re.findall(r"selfadapt\[([a-z0-9,-]+)\]", text) for extra in found.split(",")}
    named |= set(re.findall(r'not_installed\([^\n]*"([a-z-]+)"\)', text))
    assert named >= {"eval", "embedding", "reasoning-gym"}
    assert named <= set(PROJECT["optional-dependencies"])
