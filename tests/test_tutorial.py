"""docs/tutorial.md, from its first command to its last, on a tiny base without a chat template."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from experts import ExpertLibrary
from tests.hub_server import HubServer
from tests.running_pages import run_page


@pytest.mark.long
def test_the_page_works(
    tiny_model: Any,
    tiny_tokenizer: Any,
    hub: HubServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
    caplog: Any,
) -> None:
    tiny_model.save_pretrained(tmp_path / "my-base")
    tiny_tokenizer.save_pretrained(tmp_path / "my-base")
    (tmp_path / "my-base" / "chat_template.jinja").unlink()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    said = run_page("tutorial.md", monkeypatch, capsys)
    errors = "".join(each.err for each in said)
    assert "prices: held-out problems: base mean reward" in errors
    assert "my-base has no chat template" in caplog.text
    assert ExpertLibrary.open("my-library").names == ["prices"]
    assert json.loads(Path("my-library/library.json").read_text())["base"] == "my-base"
    assert ExpertLibrary.open("pulled").z("prices").keys() == ExpertLibrary.open("my-library").z("prices").keys()
    assert "[prices 1.00" in said[-3].out
    assert said[-1].out.count("exact_match") == 2
