"""The examples of docs/trl.md, as they stand there, on a tiny base in the place of the built-in one."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from experts import Expert, ExpertLibrary

PAGE = Path(__file__).parents[2] / "docs" / "trl.md"
EXAMPLES = {
    re.findall(r"\w+Trainer", code)[0]: code
    for code in re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
}


@pytest.mark.parametrize("trainer", ["SFTTrainer", "DPOTrainer", "GRPOTrainer", "RLOOTrainer"])
def test_an_example_trains_and_ends_in_a_library(
    trainer: str, run: Any, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SELFADAPT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache" / "bases").mkdir(parents=True)
    (tmp_path / "cache" / "bases" / "smollm2-135m").symlink_to(tiny_folder, target_is_directory=True)
    code = EXAMPLES[trainer]
    names: dict[str, Any] = {}
    exec(compile(code, str(PAGE), "exec"), names)
    assert names["trainer"].state.global_step == 4
    folder = re.findall(r'save_model\("(.*?)"\)', code)[0]
    z = torch.cat([*Expert.read(tmp_path / folder).z.values()])
    assert (z != 1).any()
    code, _, err = run("experts", "add", folder, "--name", "brief", "--library", "mine", "--model", "smollm2-135m")
    assert code == 0, err
    assert ExpertLibrary.open(tmp_path / "mine").names == ["brief"]
