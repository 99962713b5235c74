"""What vLLM is started with; tests/experts/engine/test_vllm.py runs it where it is installed."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import pytest

from experts import ExpertLibrary
from experts.outside.errors import UserError
from selfadapt.serving.vllm_command import vllm_arguments


def arguments(library: ExpertLibrary, **changes: Any) -> dict[str, str]:
    asked: dict[str, Any] = {"host": "127.0.0.1", "port": 8000, "rows": None, "dtype": None, "options": {}, "cpu": True}
    verb, base, *rest = vllm_arguments(library, "/base", 64, **asked | changes)
    assert (verb, base) == ("serve", "/base")
    return {part.split(" ")[0]: " ".join(part.split(" ")[1:]) for part in " ".join(rest).split("--")[1:]}


def test_what_the_user_need_not_type(library: ExpertLibrary) -> None:
    given = {name: value.strip() for name, value in arguments(library).items()}
    assert given["lora-target-modules"] == "down_proj gate_proj k_proj o_proj q_proj up_proj v_proj"
    assert given["middleware"] == "selfadapt.serving.TwoPasses"
    assert (given["max-lora-rank"], given["served-model-name"], given["dtype"]) == ("64", library.base, "float32")
    assert "dtype" not in arguments(library, cpu=False)
    own = arguments(library, options={"--max_loras": "2", "tensor-parallel-size": "4"}, rows=7)
    assert (own["max-loras"].strip(), own["tensor-parallel-size"].strip(), own["max-num-seqs"].strip()) == (
        "2",
        "4",
        "7",
    )
    library.names.clear()
    with pytest.raises(UserError, match="no experts"):
        arguments(library)


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed")
def test_without_vllm_one_line_says_so(run: Any) -> None:
    code, out, err = run("serve", "--engine", "vllm")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "vLLM is not installed here" in err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--port", "70000"], "--port"),
        (["--rows", "0"], "--rows"),
        (["--api-key", ""], "--api-key"),
        (["--vllm-options", "max-loras", "3"], "--vllm-options are for vLLM"),
        (["--engine", "vllm", "--queue", "3"], "--queue"),
        (["--library", "nowhere"], "nowhere"),
        (["--host", "256.1.1.1"], "256.1.1.1"),
    ],
)
def test_a_mistake_is_one_line(run: Any, options: list[str], said: str) -> None:
    code, out, err = run("serve", "--port", "0", *options)
    assert (code, out) == (1, "")
    assert err.startswith("error: ")
    assert said in err
    assert err.count("\n") == 1
