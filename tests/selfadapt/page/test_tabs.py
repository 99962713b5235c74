"""What the tabs do, asked as the browser asks it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlparse

import httpx
import pytest
import torch

from dispatch.embedding import EmbeddingDispatcher
from dispatch.text_to_lora import network_path
from experts import Mixture
from experts.engine.continuous import Stopped
from experts.text_to_lora.encoder import LastTokenEncoder
from experts.text_to_lora.network import LoraOutput
from experts.text_to_lora.shapes import read_matrices
from experts.text_to_lora.writer import TextToAdapter
from selfadapt.serving.served import Served
from tests.eyes import SEEN, nearest
from tests.selfadapt.page.pages import Page, open_page, texts, words

pytest.importorskip("gradio", reason="Gradio is not installed")

from gradio_client.exceptions import AppError

from selfadapt.page.looks import COLORS, CSS
from selfadapt.page.trainings import last_samples, runs_in

PROMPT = "Which animal barks?"


def test_an_answer_stands_beside_the_base_s(page: Page) -> None:
    status, pass_one, written = page.call("ask", PROMPT, 8)
    own, base = page.answer(PROMPT, {"b": 1.0}), page.answer(PROMPT, {})
    assert texts(written) == [own, base]
    assert own != base
    assert "b" in words(pass_one).split()
    assert words(status).startswith("Done")


def test_sliders_make_the_mixture(page: Page) -> None:
    _, written = page.call("mix", PROMPT, 8, 0.5, 0.25)
    assert texts(written) == [page.answer(PROMPT, {"a": 0.5, "b": 0.25}), page.answer(PROMPT, {})]
    _, written = page.call("mix", PROMPT, 8, 0, 0)
    assert texts(written) == [page.answer(PROMPT, {})]


def test_many_prompts_have_an_answer_each(page: Page) -> None:
    prompts = ["Which animal barks?", "What is two and two?"]
    status, written = page.call("several", "\n\n".join(prompts), 8)
    for prompt in prompts:
        assert " ".join(page.answer(prompt, {"b": 1.0}).split()) in words(written)
    assert "2 prompts in one batch, under 1 different" in words(status)


def test_pass_one_says_who_was_considered(start: Callable[..., Page]) -> None:
    pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    page = start("embedding")
    dispatcher: Any = page.served.dispatcher
    assert isinstance(dispatcher, EmbeddingDispatcher)
    for prompt, chosen in (("A question about animals", "b"), ("Good morning to all of you", "base")):
        considered = dispatcher.consider([prompt])
        said = words(page.call("ask", prompt, 8)[1])
        assert f"{chosen} answers" in said
        assert f"the threshold, {considered.threshold:.2f}" in said
        for score in considered.scores[0].tolist():
            assert f"{score:.2f}" in said


def test_what_was_considered_decides(start: Callable[..., Page]) -> None:
    pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    dispatcher: Any = start("embedding").served.dispatcher
    prompts = ["A question about animals", "Sums of two numbers", "Good morning"]
    mixture, again = dispatcher(prompts), dispatcher.consider(prompts).decide(dispatcher.soft)
    assert mixture.weights.tolist() == again.weights.tolist()


def test_a_mistake_is_a_line(page: Page) -> None:
    status, *_ = page.call("ask", "  ", 8)
    assert "sa-error" in status
    assert "there is no prompt yet" in words(status)
    status, *_ = page.call("several", "x\n" * 40, 8)
    assert "there are 40 prompts" in words(status)


@pytest.mark.parametrize(
    ("error", "line"),
    [(ZeroDivisionError("secret"), "the server failed: ZeroDivisionError"), (Stopped("over"), "over")],
)
def test_a_failure_of_the_server_is_a_line(page: Page, error: Exception, line: str) -> None:
    def fail(prompts: Any) -> Mixture:
        raise error

    page.served.dispatcher = fail
    status, *_ = page.call("ask", PROMPT, 8)
    assert line in words(status)
    assert "secret" not in status
    page.served.dispatcher = lambda prompts: Mixture.of({}, prompts=len(prompts))
    assert words(page.call("ask", PROMPT, 8)[0]).startswith("Done")


def test_what_is_typed_stays_text(page: Page) -> None:
    script = "<script>alert(1)</script>"
    _, written = page.call("several", script, 8)
    assert script not in written
    assert script in words(written.replace("&lt;", "‹").replace("&gt;", "›")).replace("‹", "<").replace("›", ">")


@pytest.mark.parametrize("seen", SEEN)
@pytest.mark.parametrize("scheme", [":root", ".dark"])
def test_experts_are_told_apart_by_all_eyes(scheme: str, seen: str) -> None:
    (style,) = re.findall(rf"{re.escape(scheme)} {{([^}}]*)}}", CSS)
    colors = re.findall(r"--sa-\d: (#\w+);", style)
    assert len(colors) == len(COLORS)
    assert nearest(colors, seen) > 14


def test_an_expert_is_drawn_and_compared(page: Page) -> None:
    _, alone = page.call("inside", "a", "(nobody)")
    _, both = page.call("inside", "a", "b")
    assert alone.count("<svg") == 1
    assert both.count("<svg") == 2
    assert "the cosine of their changes" in words(both)
    figures = page.served.library.figures("a")
    assert f"{figures.parameters:,} knobs" in words(alone)


def test_a_lora_has_nothing_to_draw(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(page.served.library), "is_lora", lambda library, name: True)
    status, _ = page.call("inside", "a", "(nobody)")
    assert "a is a LoRA" in words(status)


def test_a_page_opens_on_a_damaged_expert(served: Callable[[str], Served], tmp_path: Path) -> None:
    serving = served("b")
    (serving.library.folder / "a" / "adapter_model.safetensors").write_bytes(b"nothing")
    with open_page(serving, tmp_path) as page:
        assert "is damaged" in words(httpx.get(f"{page.url}/config").json()["components"].__repr__())
        assert words(page.call("ask", PROMPT, 8)[0]).startswith("Done")


def test_the_library_has_cards(page: Page) -> None:
    folder = page.served.library.folder / "a"
    (folder / "README.md").write_text("---\nlicense: x\n---\n# About a\n\n![training curve](curve.png)\n\nWell.\n")
    entries = [
        {"step": 0, "right": 1, "n": 4},
        {"step": 1, "accuracy": 0.5, "seconds": 1},
        {"step": 1, "right": 3, "n": 4},
    ]
    (folder / "training_log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    status, curve, card = page.call("card", "a")
    assert f"{page.served.library.figures('a').parameters:,} numbers" in words(status)
    assert "from 25% to 75%" in words(curve)
    assert "license" not in card
    assert "curve.png" not in card
    assert "# About a" in card


def test_the_map_shows_stored_prompts_and_one_s_own(start: Callable[..., Page]) -> None:
    pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    from dispatch.embedding import write_prompts

    page = start("b")
    status, _ = page.call("map", PROMPT)
    assert "too little for a map" in words(status)
    write_prompts(page.served.library.path("b"), ["Which cat is it?", "Which dog is it?", "A bird sings."])
    _, drawn = page.call("map", PROMPT)
    assert drawn.count("<circle") == 3
    corners = [path.count("L") + 1 for path in re.findall(r'<path d="([^"]*)"', drawn)]
    assert corners == [10, 10, 4]  # two centroids are stars, and the prompt is none
    assert PROMPT in words(drawn)


def test_a_training_is_shown_as_far_as_it_is(page: Page) -> None:
    def shown(name: str | None = None) -> tuple[str, str]:
        _, status, drawn = page.call("training", name)
        return words(status), words(drawn)

    assert "There are no runs" in shown()[0]
    run = page.runs / "first.unfinished"
    run.mkdir(parents=True)
    (run / "recipe.json").write_text(json.dumps({"training": {"steps": 12}}))
    step = json.dumps({"step": 1, "reward": -0.5, "accuracy": 0.25, "seconds": 2})
    (run / "training_log.jsonl").write_text(step + '\n{"step": 2, "rew')  # it is writing
    sample = {"step": 1, "reward": 1.0, "prompt": [{"role": "user", "content": "1 + 1?"}], "completion": "It's <2>"}
    (run / "completions.jsonl").write_text(json.dumps(sample) + '\n{"step": 1, "rewa')
    status, drawn = shown()
    assert status == "Not complete: step 1 of 12, reward -0.50."
    assert "1 + 1? It's <2> +1.00" in drawn
    run.rename(page.runs / "first")
    assert shown()[0].startswith("Complete: step 1")


def test_a_run_must_be_in_the_folder(page: Page, tmp_path: Path) -> None:
    for folder in (page.runs / "mine", tmp_path / "theirs"):
        folder.mkdir(parents=True)
        (folder / "training_log.jsonl").write_text('{"step": 0, "right": 1, "n": 4}\n')
    assert [*runs_in(page.runs)] == ["mine"]
    with pytest.raises(AppError):
        page.call("training", "../theirs")


def test_the_end_of_a_long_log_is_read(tmp_path: Path) -> None:
    log = tmp_path / "completions.jsonl"
    samples = [{"step": step, "completion": "é" * 1000} for step in range(200)]
    log.write_text("".join(json.dumps(sample, ensure_ascii=False) + "\n" for sample in samples))
    assert last_samples(log) == samples[-4:]
    assert last_samples(tmp_path / "none.jsonl") == []


def test_a_sentence_becomes_an_adapter(served: Callable[[str], Served], tmp_path: Path) -> None:
    serving = served("none")
    encoder = LastTokenEncoder(cast(Any, serving.engine.model), cast(Any, serving.engine.tokenizer))
    output = LoraOutput(rank=2)
    matrices = read_matrices(serving.engine.model.config, output.target_modules)
    network = TextToAdapter.untrained(output, matrices, encoder, fingerprint=serving.engine.fingerprint)
    for parameter in network.network.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(0))
    network.save_pretrained(network_path(serving.library))
    with open_page(serving, tmp_path) as page:
        status, written = page.call("sentence", "Name the capital.", PROMPT, 8)
        assert words(status) == "Done."
        assert "t2l-" in words(written)
        own, base = texts(written)
        assert own != base == page.answer(PROMPT, {})


def test_without_a_network_there_is_no_sentence(page: Page) -> None:
    assert "/sentence" not in page.client.view_api(return_format="dict")["named_endpoints"]


def test_the_page_fetches_nothing_from_elsewhere(page: Page) -> None:
    html = httpx.get(page.url).text
    assert {urlparse(found).hostname for found in re.findall(r'(?:src|href)="(https?://[^"]+)"', html)} <= {"127.0.0.1"}


def test_numbers_have_bounds(page: Page) -> None:
    with pytest.raises(AppError, match="maximum"):
        page.call("ask", PROMPT, 10**6)
