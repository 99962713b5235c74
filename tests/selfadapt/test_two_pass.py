"""Two passes on a tiny base with two experts: who answers, and that the answers are theirs."""

from __future__ import annotations

import copy
import gc
import pickle
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from experts import ExpertLibrary, Mixture
from experts.engine import NativeEngine
from experts.outside.chats import Chat
from experts.outside.errors import UserError
from experts.text_to_lora.encoder import LastTokenEncoder
from experts.text_to_lora.network import SvfOutput
from experts.text_to_lora.shapes import read_matrices
from experts.text_to_lora.writer import TextToAdapter
from selfadapt import SelfAdaptiveModel

PROMPTS = ["one", "two and a bit", "three", "four!"]


def answers(library: ExpertLibrary, dispatch: str) -> list[str]:
    model = SelfAdaptiveModel.from_pretrained(library=library, dispatch=dispatch)
    return [answer.text for answer in model.generate(PROMPTS, max_new_tokens=8)]


class ByLength:
    """A dispatcher for the test: "a", "b", half of each, or the base, by the number of words."""

    def __call__(self, prompts: Sequence[str | Chat]) -> Mixture:
        rows = {"one": [1.0, 0.0], "two and a bit": [0.0, 1.0], "three": [0.5, 0.5], "four!": [0.0, 0.0]}
        return Mixture(("a", "b"), torch.tensor([rows[str(prompt)] for prompt in prompts]))


def test_each_prompt_is_answered_by_its_own_mixture(library: ExpertLibrary, tmp_path: Path) -> None:
    model = SelfAdaptiveModel.from_pretrained(library=library)
    model.dispatcher = ByLength()
    got = model.generate(PROMPTS, max_new_tokens=8)
    assert [answer.mixture[0] for answer in got] == [{"a": 1.0}, {"b": 1.0}, {"a": 0.5, "b": 0.5}, {}]
    Mixture.of({"a": 0.5, "b": 0.5}).write(tmp_path / "MIX.json")
    wanted = [answers(library, dispatch) for dispatch in ("a", "b", str(tmp_path / "MIX.json"), "none")]
    assert [answer.text for answer in got] == [wanted[row][row] for row in range(4)]
    assert len({texts[0] for texts in wanted}) > 1  # the experts do differ
    assert all(answer.seconds.answer > 0 for answer in got)


def test_none_and_an_empty_library_are_the_base(library: ExpertLibrary, tiny_tokenizer: Any) -> None:
    base = AutoModelForCausalLM.from_pretrained(library.base, dtype=torch.float32)
    wanted = NativeEngine(base, tiny_tokenizer).generate(PROMPTS, max_new_tokens=8)
    assert answers(library, "none") == wanted
    empty = ExpertLibrary.create(library.folder.with_name("empty"), library.base, library.fingerprint)
    assert answers(empty, "none") == wanted


def test_a_stream_and_a_likelihood_are_under_the_prompts_mixture(library: ExpertLibrary) -> None:
    model = SelfAdaptiveModel.from_pretrained(library=library)
    model.dispatcher = ByLength()
    texts = [answer.text for answer in model.generate(PROMPTS, max_new_tokens=8)]
    assert ["".join(model.stream(prompt, max_new_tokens=8)) for prompt in PROMPTS] == texts
    half_read = model.stream(PROMPTS[0], max_new_tokens=200)
    next(half_read)
    half_read.close()
    assert [answer.text for answer in model.generate(PROMPTS, max_new_tokens=8)] == texts  # nothing is left behind
    together = model.loglikelihood(PROMPTS, ["yes"] * 4)
    alone = [
        SelfAdaptiveModel.from_pretrained(library=library, dispatch=name).loglikelihood([PROMPTS[row]], ["yes"])
        for row, name in ((0, "a"), (1, "b"), (3, "none"))
    ]
    torch.testing.assert_close(together[[0, 1, 3]], torch.cat(alone), atol=1e-4, rtol=1e-4)


def test_concurrent_calls_do_not_disturb_each_other(library: ExpertLibrary) -> None:
    model = SelfAdaptiveModel.from_pretrained(library=library)
    model.dispatcher = ByLength()
    wanted = [answer.text for answer in model.generate(PROMPTS, max_new_tokens=8)]

    def call(number: int) -> str:
        prompt = PROMPTS[number % 4]
        if number % 3:
            return model.generate([prompt], max_new_tokens=8)[0].text
        return "".join(model.stream(prompt, max_new_tokens=8))

    with ThreadPoolExecutor(4) as pool:
        assert [*pool.map(call, range(48))] == wanted * 12


def test_streams_and_calls_overlap_in_one_thread(library: ExpertLibrary) -> None:
    model = SelfAdaptiveModel.from_pretrained(library=library)
    model.dispatcher = ByLength()
    wanted = [answer.text for answer in model.generate(PROMPTS, max_new_tokens=40)]
    first, second = (model.stream(prompt, max_new_tokens=40) for prompt in PROMPTS[:2])
    pieces = [next(first)], [next(second)]
    assert [answer.text for answer in model.generate(PROMPTS, max_new_tokens=40)] == wanted
    for one, two in zip_longest(first, second, fillvalue=""):
        pieces[0].append(one)
        pieces[1].append(two)
    assert ["".join(of_one) for of_one in pieces] == wanted[:2]


def test_the_pieces_of_a_stream_may_be_asked_for_by_changing_threads(library: ExpertLibrary) -> None:
    model = SelfAdaptiveModel.from_pretrained(library=library)
    model.dispatcher = ByLength()
    wanted = model.generate(PROMPTS[:1], max_new_tokens=40)[0].text
    stream = model.stream(PROMPTS[0], max_new_tokens=40)
    pieces = []
    while (piece := in_a_new_thread(lambda: next(stream, None))) is not None:
        pieces.append(piece)
    assert "".join(pieces) == wanted
    half_read = model.stream(PROMPTS[1], max_new_tokens=200)
    in_a_new_thread(lambda: next(half_read))
    in_a_new_thread(half_read.close)
    assert in_a_new_thread(lambda: model.generate(PROMPTS[:1], max_new_tokens=40)[0].text) == wanted


def test_streams_that_the_garbage_collector_closes_disturb_nobody(library: ExpertLibrary, recwarn: Any) -> None:
    """It runs in any thread, also in the one that writes the stream."""
    model = SelfAdaptiveModel.from_pretrained(library=library)
    model.dispatcher = ByLength()
    wanted = [answer.text for answer in model.generate(PROMPTS, max_new_tokens=8)]
    for number in range(12):
        stream = model.stream(PROMPTS[number % 4], max_new_tokens=100)
        next(stream)
        itself = [stream]
        itself.append(itself)  # type: ignore[arg-type]
        del stream, itself
    gc.collect()
    assert [answer.text for answer in model.generate(PROMPTS, max_new_tokens=8)] == wanted
    assert not [warning for warning in recwarn if "cannot join" in str(warning.message)]


@pytest.mark.long
def test_a_program_may_end_while_streams_are_open(library: ExpertLibrary) -> None:
    program = (
        "import sys; from selfadapt import SelfAdaptiveModel\n"
        "model = SelfAdaptiveModel.from_pretrained(library=sys.argv[1], dispatch='a')\n"
        "streams = [model.stream('one', max_new_tokens=400) for _ in range(3)]\n"
        "print([next(stream) for stream in streams])"
    )
    done = subprocess.run([sys.executable, "-c", program, str(library.folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr


def test_a_model_can_be_copied_and_pickled_after_use(library: ExpertLibrary) -> None:
    model = SelfAdaptiveModel.from_pretrained(library=library)
    model.dispatcher = ByLength()
    size = len(pickle.dumps(model.model))
    wanted = [answer.text for answer in model.generate(PROMPTS, max_new_tokens=8)]
    model.generate(PROMPTS[:1], max_new_tokens=8)  # on merged weights, which are kept
    assert len(pickle.dumps(model.model)) < size + 1000
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert [answer.text for answer in other.generate(PROMPTS, max_new_tokens=8)] == wanted
        with torch.no_grad():
            for name, z in other.model.named_parameters():
                if "svf_z" in name:
                    z.fill_(1)
        assert [answer.text for answer in other.generate(PROMPTS, max_new_tokens=8)] != wanted
        assert [answer.text for answer in model.generate(PROMPTS, max_new_tokens=8)] == wanted


def test_a_model_may_be_loaded_and_used_in_inference_mode(library: ExpertLibrary) -> None:
    with torch.inference_mode():
        model = SelfAdaptiveModel.from_pretrained(library=library)
        model.dispatcher = ByLength()
        inside = [answer.text for answer in model.generate(PROMPTS, max_new_tokens=8)]
    assert inside == [answer.text for answer in model.generate(PROMPTS, max_new_tokens=8)]


@pytest.mark.parametrize("given", [Mixture.of({"a": 1.0}, 1), Mixture.of({"a": 1.0}, 9), None, {"a": 1.0}])
def test_a_dispatcher_without_a_row_for_each_prompt_is_one_line(library: ExpertLibrary, given: Any) -> None:
    model = SelfAdaptiveModel.from_pretrained(library=library)
    model.dispatcher = lambda prompts: given
    calls: list[Callable[[], Any]] = [
        lambda: model.generate(PROMPTS),
        lambda: model.dispatch(PROMPTS),
        lambda: model.loglikelihood(PROMPTS, ["a"] * 4),
    ]
    for call in calls:
        with pytest.raises(UserError, match="4 rows, one per prompt"):
            call()
    with pytest.raises(UserError, match="need a mixture of as many rows"):
        NativeEngine(model.model, model.tokenizer).generate(
            PROMPTS, max_new_tokens=8, mixture=Mixture.of({"a": 1.0}, 9)
        )


def in_a_new_thread(call: Callable[[], Any]) -> Any:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(call).result(timeout=60)


def test_prompts_come_in_any_form(library: ExpertLibrary) -> None:
    model = SelfAdaptiveModel.from_pretrained(library=library)
    model.dispatcher = ByLength()
    wanted = [answer.text for answer in model.generate(PROMPTS, max_new_tokens=8)]
    for prompts in (tuple(PROMPTS), np.array(PROMPTS), iter(PROMPTS), (prompt for prompt in PROMPTS)):
        assert [answer.text for answer in model.generate(prompts, max_new_tokens=8)] == wanted
    assert model.dispatch(iter(PROMPTS)).weights.tolist() == model.dispatch(PROMPTS).weights.tolist()
    assert model.loglikelihood(iter(PROMPTS), iter("abcd")).tolist() == model.loglikelihood(PROMPTS, [*"abcd"]).tolist()


def test_one_chat_is_one_prompt(library: ExpertLibrary) -> None:
    model = SelfAdaptiveModel.from_pretrained(library=library, dispatch="a")
    parts = [{"type": "text", "text": "one"}]
    calls: dict[str, Any] = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "add"}}]}
    chats: list[Any] = [
        [{"role": "user", "content": "one"}],
        [{"role": "user", "content": parts}, calls, {"role": "user", "content": "and?"}],
    ]
    for chat in chats:
        [answer] = model.generate(chat, max_new_tokens=8)
        assert answer.text == model.generate([chat], max_new_tokens=8)[0].text
        assert answer.text == "".join(model.stream(chat, max_new_tokens=8))
        assert len(model.dispatch(chat)) == 1
        assert model.loglikelihood(chat, ["a"]).tolist() == model.loglikelihood([chat], ["a"]).tolist()
    assert model.generate(chats[0], max_new_tokens=8)[0].text == model.generate(["one"], max_new_tokens=8)[0].text


@pytest.mark.parametrize(
    "prompts", ["one", {"role": "user", "content": "one"}, [3], [[]], [], None, [["one"]], ["\ud800"]]
)
def test_what_is_no_prompt_is_one_line(library: ExpertLibrary, prompts: Any) -> None:
    model = SelfAdaptiveModel.from_pretrained(library=library, dispatch="a")
    for call in (model.generate, model.dispatch, lambda given: model.loglikelihood(given, ["a"])):
        with pytest.raises(UserError) as caught:
            call(prompts)
        assert "\n" not in str(caught.value)
    if prompts in ("one", []):
        return
    with pytest.raises(UserError):
        next(model.stream(prompts if not isinstance(prompts, list) else prompts[0]))


def test_an_answer_explains_itself(library: ExpertLibrary) -> None:
    model = SelfAdaptiveModel.from_pretrained(library=library)
    model.dispatcher = ByLength()
    text = str(model.generate([PROMPTS[2]], max_new_tokens=4)[0])
    assert re.search(r"\[a 0\.50, b 0\.50; pass one \d+\.\d\d s, pass two \d+\.\d\d s\]$", text)


def test_experts_can_be_written_from_the_prompts(library: ExpertLibrary, tiny_model: Any, tiny_tokenizer: Any) -> None:
    """By a network in the library's folder; also where the library is empty."""
    empty = ExpertLibrary.create(library.folder.with_name("empty"), library.base, library.fingerprint)
    output = SvfOutput(rank=8)
    matrices = read_matrices(tiny_model.config, output.target_modules)
    encoder = LastTokenEncoder(tiny_model, tiny_tokenizer)
    network = TextToAdapter.untrained(output, matrices, encoder, fingerprint=library.fingerprint)
    for each in (library, empty):
        with pytest.raises(UserError, match="has no network that writes experts: train one"):
            SelfAdaptiveModel.from_pretrained(library=each, dispatch="t2l")
        network.save_pretrained(each.folder / "t2l")
        model = SelfAdaptiveModel.from_pretrained(library=each, dispatch="t2l")
        got = model.generate(PROMPTS, max_new_tokens=8)
        # An untrained network writes the identity.
        assert [answer.text for answer in got] == answers(empty, "none")
        assert all(name.startswith("t2l-") for answer in got for name in answer.mixture[0])


def test_mistakes_are_one_line(library: ExpertLibrary, tiny_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown dispatcher or expert 'c'"):
        SelfAdaptiveModel.from_pretrained(library=library, dispatch="c")
    with pytest.raises(UserError, match="dispatch takes a name, not a ByLength"):
        SelfAdaptiveModel.from_pretrained(library=library, dispatch=ByLength())  # type: ignore[arg-type]
    with pytest.raises(UserError, match="no such file"):
        SelfAdaptiveModel.from_pretrained(library=library, dispatch="MIX.json")
    Mixture.of({"nobody": 1.0}).write(tmp_path / "MIX.json")
    with pytest.raises(UserError, match="unknown expert 'nobody'"):
        SelfAdaptiveModel.from_pretrained(library=library, dispatch=str(tmp_path / "MIX.json"))
    model = SelfAdaptiveModel.from_pretrained(library=library)
    with pytest.raises(UserError, match="no prompt"):
        model.generate([])
    with pytest.raises(UserError, match="must be a list"):
        model.generate("hello")
    library.fingerprint = "another"
    with pytest.raises(UserError, match="fingerprint another"):
        SelfAdaptiveModel.from_pretrained(library=library)


def test_an_engine_that_does_not_exist_or_is_not_installed_is_one_line(
    library: ExpertLibrary, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="unknown engine 'vlm'; did you mean 'vllm'"):
        SelfAdaptiveModel.from_pretrained(library=library, engine="vlm")
    with pytest.raises(UserError, match="engine_options are for vLLM"):
        SelfAdaptiveModel.from_pretrained(library=library, engine_options={"seed": 1})
    monkeypatch.setattr("experts.engine.vllm.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"not installed here: run pip install 'selfadapt\[vllm\]'"):
        SelfAdaptiveModel.from_pretrained(library=library, engine="vllm")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"sampling": {"temperature": 1.0}}, "sampling must be a Sampling"),
        ({"sampling": "greedy"}, "sampling must be a Sampling"),
        ({"sampling": None}, "sampling must be a Sampling"),
        ({"system_prompt": 3}, "system_prompt must be a string, not 3"),
    ],
)
def test_how_to_answer_is_looked_at_before_anything_is_dispatched(
    tiny_model: Any, tiny_tokenizer: Any, options: dict[str, Any], said: str
) -> None:
    adaptive = SelfAdaptiveModel(NativeEngine(tiny_model, tiny_tokenizer), lambda prompts: pytest.fail("dispatched"))
    with pytest.raises(UserError, match=said):
        adaptive.generate(["1 + 1?"], **options)
    with pytest.raises(UserError, match=said):
        next(adaptive.stream("1 + 1?", **options))


def test_a_library_is_a_folder_or_a_name() -> None:
    with pytest.raises(UserError, match="library must be a folder, a repository on the hub or a library, not 3"):
        SelfAdaptiveModel.from_pretrained(library=3)  # type: ignore[call-overload]


def test_a_model_without_a_dispatcher_is_refused(tiny_model: Any, tiny_tokenizer: Any) -> None:
    with pytest.raises(UserError, match="the dispatcher comes last"):
        SelfAdaptiveModel(tiny_model, tiny_tokenizer)  # type: ignore[call-overload]
    with pytest.raises(UserError, match="'a' cannot be called, as a dispatcher is"):
        SelfAdaptiveModel(tiny_model, tiny_tokenizer, "a")  # type: ignore[call-overload]


def test_a_mixtures_file_may_be_a_path(library: ExpertLibrary, tmp_path: Path) -> None:
    Mixture.of({"a": 1.0}).write(tmp_path / "MIX.json")
    model = SelfAdaptiveModel.from_pretrained(library=library, dispatch=tmp_path / "MIX.json")
    assert model.dispatch(["?"])[0] == {"a": 1.0}


def test_an_engines_mixture_is_one(library: ExpertLibrary) -> None:
    engine = SelfAdaptiveModel.from_pretrained(library=library, dispatch="none").engine
    for given in ("a", {"a": 1.0}):
        with pytest.raises(UserError, match="mixture must be a Mixture"):
            engine.generate(["?"], max_new_tokens=2, mixture=given)  # type: ignore[arg-type]
        with pytest.raises(UserError, match="mixture must be a Mixture"):
            next(iter(engine.stream("?", max_new_tokens=2, mixture=given)))  # type: ignore[arg-type]
        with pytest.raises(UserError, match="mixture must be a Mixture"):
            engine.loglikelihood(["?"], ["!"], mixture=given)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="1 prompts need a mixture of as many rows, not 2"):
        next(iter(engine.stream("?", max_new_tokens=2, mixture=Mixture.of({}, 2))))
