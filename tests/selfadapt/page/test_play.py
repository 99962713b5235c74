"""The command `play`, and the page beside the API."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from experts import ExpertLibrary
from experts.outside.errors import UserError
from selfadapt.serving.application import make_application
from selfadapt.serving.served import Served
from selfadapt.verbs.play import play
from selfadapt.verbs.serve import serve
from tests.selfadapt.page.pages import open_page


@pytest.mark.slow
def test_the_command_opens_a_page_until_it_is_told_to_stop(library: ExpertLibrary, tmp_path: Path) -> None:
    pytest.importorskip("gradio", reason="Gradio is not installed")
    command = [sys.executable, "-m", "selfadapt.cli", "play", "--library", str(library.folder), "--port", "0"]
    with subprocess.Popen([*command, "--dispatch", "a"], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        url = next(line for line in process.stderr if line.startswith("play at ")).split()[-1]
        with httpx.stream("GET", f"{url}/gradio_api/heartbeat/me", timeout=60) as open_page:  # as every open page does
            assert next(open_page.iter_lines()) == "data: ALIVE"
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 0
        assert process.stderr.read() == ""


def test_the_page_stands_beside_the_api(served: Callable[[str], Served], tmp_path: Path) -> None:
    serving = served("b")
    with open_page(serving, tmp_path, make_application(serving)) as page, httpx.Client(base_url=page.url) as client:
        assert "A model that adapts itself" in client.get("/page/").text
        assert [model["id"] for model in client.get("/v1/models").json()["data"]] == ["auto", "tiny", "a", "b"]
        assert client.get("/nothing").json()["error"]["message"] == "there is nothing at /nothing"


def test_without_gradio_a_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("selfadapt.page")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "gradio", None)
    for call in (play, lambda: serve(page=True)):
        with pytest.raises(UserError, match=r"needs gradio, .*: pip install 'selfadapt\[page\]'"):
            call()


def test_a_page_has_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="a browser sends no API key"):
        serve(page=True, api_key="secret")
    monkeypatch.delenv("SELFADAPT_API_KEY", raising=False)
    with pytest.raises(UserError, match="--page is only for the native engine"):
        serve(page=True, engine="vllm")
