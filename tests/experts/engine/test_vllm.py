"""vLLM answers as the native engine does: the built-in base, its shipped experts, and whatever mixtures of them."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.error import URLError
from urllib.request import Request, urlopen

import pytest
import torch

from dispatch import Fixed, find_dispatcher
from experts import Expert, ExpertLibrary, Mixture
from experts.engine import NativeEngine, Sampling
from experts.exchange.lora import Lora
from experts.outside.chats import tokenize
from experts.outside.errors import UserError
from experts.shipped import shipped_library
from selfadapt import SelfAdaptiveModel, load_base
from selfadapt.serving.two_passes import serving

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed here; `make test-vllm` has it"),
]

THINGS = ["apples", "books", "coins", "stones"]
PROMPTS = [
    text
    for number, thing in enumerate(THINGS, 2)
    for text in (
        f"What is {number} + {number + 3}?",
        f"Tom has {number} {thing} and gets 4 more. How many {thing} has he now?",
        f"{number} boxes hold 6 {thing} each. How many {thing} are there in all the boxes together?",
        f"Ann has 3 {thing} more than Bob, who has {number}. How many has Ann?",
        f"Name a use for {thing}.",
        f"Where would you look for {thing}?",
        f"Is {number} larger than {9 - number}?",
        f"Write one sentence about {thing} and the sea.",
    )
]
MIXTURES = [
    {},
    {"stories": 1.0},
    {"groups": 1.0},
    {"relations": 1.0},
    {"sums": 1.0},
    {"stories": 0.5, "sums": 0.5},
    {"groups": 0.7, "relations": -0.3},
    {"stories": 0.25, "groups": 0.25, "relations": 0.25, "sums": 0.25},
]


@pytest.fixture(scope="module")
def library() -> ExpertLibrary:
    folder = shipped_library("smollm2-135m")
    assert folder is not None
    return ExpertLibrary.open(folder)


@pytest.fixture(scope="module")
def mixture(library: ExpertLibrary) -> Mixture:
    """Eight mixtures by turns for the 32 prompts."""
    rows = [[MIXTURES[row % 8].get(name, 0.0) for name in library.names] for row in range(len(PROMPTS))]
    return Mixture(tuple(library.names), torch.tensor(rows))


@pytest.fixture(scope="module")
def on_vllm(smollm2_folder: Path, library: ExpertLibrary, mixture: Mixture) -> SelfAdaptiveModel:
    model = SelfAdaptiveModel.from_pretrained(
        library=library, engine="vllm", engine_options={"max_model_len": 512, "kv_cache_memory_bytes": 1 << 30}
    )
    return model


@pytest.fixture(scope="module")
def native(smollm2_folder: Path, library: ExpertLibrary) -> SelfAdaptiveModel:
    return SelfAdaptiveModel.from_pretrained(library=library)


class Dealt:
    """A dispatcher that knows the prompts by heart."""

    def __init__(self, mixture: Mixture) -> None:
        self.mixture = mixture

    def __call__(self, prompts: Any) -> Mixture:
        return self.mixture.rows([PROMPTS.index(prompt) for prompt in prompts])


def test_32_requests_under_8_mixtures_get_the_native_answers(
    on_vllm: SelfAdaptiveModel, native: SelfAdaptiveModel, mixture: Mixture
) -> None:
    """Where two answers first differ, the next tokens were as likely as each other."""
    on_vllm.dispatcher = native.dispatcher = Dealt(mixture)
    theirs, ours = (model.generate(PROMPTS, max_new_tokens=12) for model in (on_vllm, native))
    assert [answer.mixture[0] for answer in theirs] == [answer.mixture[0] for answer in ours]
    tokenizer = native.tokenizer
    same = 0
    for row, (answer, wanted) in enumerate(zip(theirs, ours, strict=True)):
        if answer.text == wanted.text:
            same += 1
            continue
        tokens = [tokenizer.encode(text, add_special_tokens=False) for text in (answer.text, wanted.text)]
        first = next(i for i, (a, b) in enumerate(zip(*tokens, strict=False)) if a != b)
        heads = [tokenizer.decode(of_one[: first + 1]) for of_one in tokens]
        both = NativeEngine(native.model, tokenizer).loglikelihood(
            [PROMPTS[row]] * 2, heads, mixture=mixture.rows([row, row]), batch_size=2
        )
        assert (both[0] - both[1]).abs() < 1e-3, (answer.text, wanted.text)
    assert same >= 30
    assert len({answer.text for answer in ours[1::8]}) > 1


def test_likelihoods_and_streams_are_the_native_ones(
    on_vllm: SelfAdaptiveModel, native: SelfAdaptiveModel, mixture: Mixture
) -> None:
    on_vllm.dispatcher = native.dispatcher = Dealt(mixture)
    some, tails = PROMPTS[:8], [" 7.", " No", "Ann has 5", " 2 + 2", "Eat", "In", " Yes.", "The sea"]
    torch.testing.assert_close(on_vllm.loglikelihood(some, tails), native.loglikelihood(some, tails), atol=1e-3, rtol=0)
    whole = on_vllm.generate(some[4:5], max_new_tokens=8)[0].text
    assert "".join(on_vllm.stream(some[4], max_new_tokens=8)) == whole
    half_read = on_vllm.stream(some[4], max_new_tokens=200)
    next(half_read)
    half_read.close()
    assert on_vllm.generate(some[4:5], max_new_tokens=8)[0].text == whole  # nothing is left behind
    with pytest.raises(UserError, match="as many continuations"):
        on_vllm.loglikelihood(some, tails[:2])


def test_candidates_and_penalties_are_the_native_ones(on_vllm: SelfAdaptiveModel, native: SelfAdaptiveModel) -> None:
    on_vllm.dispatcher = native.dispatcher = Fixed(Mixture.of({"stories": 1.0}))

    def texts(model: SelfAdaptiveModel, **options: Any) -> list[str]:
        return [each.text for each in model.generate(PROMPTS[:8], max_new_tokens=8, sampling=Sampling(**options))]

    greedy = texts(on_vllm)
    hot = {"temperature": 2.0, "seed": 1}
    assert texts(on_vllm, **hot) != greedy
    assert texts(on_vllm, **hot, top_k=1) == greedy == texts(on_vllm, **hot, min_p=1.0)
    penalized = texts(on_vllm, repetition_penalty=1.5)
    assert penalized != greedy
    assert sum(a == b for a, b in zip(penalized, texts(native, repetition_penalty=1.5), strict=True)) >= 7
    three = Sampling(2.0, seed=0, top_k=3)
    on_both = [
        {each.text for each in model.generate(PROMPTS[:1] * 32, max_new_tokens=1, sampling=three)}
        for model in (on_vllm, native)
    ]
    assert 1 < len(on_both[0] | on_both[1]) <= 3
    with pytest.raises(UserError, match="temperature must be in"):
        texts(on_vllm, temperature=5.0)


def test_streams_and_calls_overlap(on_vllm: SelfAdaptiveModel, mixture: Mixture) -> None:
    on_vllm.dispatcher = Dealt(mixture)
    wanted = [answer.text for answer in on_vllm.generate(PROMPTS[:4], max_new_tokens=24)]
    streams = [on_vllm.stream(prompt, max_new_tokens=24) for prompt in PROMPTS[:4]]
    first = [next(stream) for stream in streams]
    assert [answer.text for answer in on_vllm.generate(PROMPTS[:4], max_new_tokens=24)] == wanted
    with ThreadPoolExecutor(6) as pool:
        calls = [pool.submit(on_vllm.generate, [prompt], max_new_tokens=24) for prompt in PROMPTS[:4]]
        rests = pool.map(lambda stream: "".join(stream), streams)
        assert [piece + rest for piece, rest in zip(first, rests, strict=True)] == wanted
        assert [call.result(timeout=120)[0].text for call in calls] == wanted


def test_the_base_stays_the_base_beside_as_many_loras_as_there_are_places(on_vllm: SelfAdaptiveModel) -> None:
    prompt = PROMPTS[1]
    on_vllm.dispatcher = Fixed(Mixture.of({}))
    wanted = on_vllm.generate([prompt], max_new_tokens=8)[0].text
    weights = torch.tensor([[1.0 + row / 8] for row in range(8)] + [[0.0]])
    on_vllm.dispatcher = lambda prompts: Mixture(("relations",), weights)
    texts = [answer.text for answer in on_vllm.generate([prompt] * 9, max_new_tokens=8)]
    assert texts[-1] == wanted
    assert wanted not in texts[:-1]


def test_a_mistake_is_one_line(
    on_vllm: SelfAdaptiveModel, library: ExpertLibrary, tiny_folder: Path, tmp_path: Path
) -> None:
    on_vllm.dispatcher = Fixed(Mixture.of({"sumz": 1.0}))
    with pytest.raises(UserError, match="did you mean 'sums'"):
        on_vllm.generate(PROMPTS[:1])
    on_vllm.dispatcher = Fixed(Mixture.of({}))
    with pytest.raises(UserError, match="exceed the model's context"):
        on_vllm.generate(PROMPTS[:1], max_new_tokens=100_000)
    with pytest.raises(UserError, match="leave out device"):
        SelfAdaptiveModel.from_pretrained(library=library, engine="vllm", device="cpu")
    with pytest.raises(UserError, match="save_pretrained, and name that folder"):
        SelfAdaptiveModel.from_pretrained("some.gguf", library=library, engine="vllm")
    with pytest.raises(UserError, match="looks into the base"):
        SelfAdaptiveModel.from_pretrained(library=library, dispatch="prompt", engine="vllm")
    large = ExpertLibrary.create(tmp_path / "large", library.base, library.fingerprint)
    z = {"model.layers.0.mlp.up_proj": torch.full((576,), 1.1)}
    Expert(z, library.base, library.fingerprint).write(tmp_path / "whole")
    large.add(tmp_path / "whole")
    with pytest.raises(UserError, match=r"'whole' adapts 576 singular values .* 320 and 512;.*selfadapt export"):
        SelfAdaptiveModel.from_pretrained(library=large, engine="vllm")
    with pytest.raises(UserError, match=f"vLLM cannot run {tiny_folder}") as caught:
        SelfAdaptiveModel.from_pretrained(str(tiny_folder), engine="vllm", engine_options={"max_model_len": 10**6})
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def with_loras(library: ExpertLibrary, smollm2_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> ExpertLibrary:
    """The shipped experts, and two random LoRAs of other ranks: on what the experts adapt, and on the attention."""
    folder = tmp_path_factory.mktemp("loras")
    shutil.copytree(library.folder, folder / "library")
    mixed = ExpertLibrary.open(folder / "library")
    base, _ = load_base()
    for seed, (name, parts, rank) in enumerate([("up", ("up_proj", "q_proj"), 4), ("down", ("down_proj",), 16)]):
        generator = torch.Generator().manual_seed(seed)
        shapes = {matrix: module.weight.shape for matrix, module in base.named_modules() if matrix.endswith(parts)}
        a = {matrix: torch.randn(rank, n, generator=generator) / n**0.5 for matrix, (_, n) in shapes.items()}
        b = {matrix: 0.02 * torch.randn(m, rank, generator=generator) for matrix, (m, _) in shapes.items()}
        Lora(a, b, alpha=8, rslora=True, base=mixed.base, description=f"About {name}.").write(folder / name)
        mixed.add(folder / name)
    return mixed


def test_loras_answer_beside_experts_as_on_the_native_engine(with_loras: ExpertLibrary) -> None:
    options = {"max_model_len": 512, "kv_cache_memory_bytes": 1 << 28}
    small = SelfAdaptiveModel.from_pretrained(library=with_loras, engine="vllm", engine_options=options)
    native = SelfAdaptiveModel.from_pretrained(library=with_loras)
    prompts, tails = PROMPTS[:6], [" 7.", " No", "Ann has 5", " 2 + 2", "Eat", "In"]
    names = ("sums", "stories", "up", "down")
    alone = Mixture(names, torch.cat([torch.eye(4), torch.zeros(1, 4), torch.tensor([[0.5, 0.5, 0, 0]])]))
    scores = [model.engine.loglikelihood(prompts, tails, mixture=alone) for model in (small, native)]
    torch.testing.assert_close(*scores, atol=1e-2, rtol=0)
    assert (
        len(
            {
                round(score, 3)
                for score in native.engine.loglikelihood(prompts[:1] * 6, tails[:1] * 6, mixture=alone).tolist()
            }
        )
        == 6
    )
    together = Mixture.of({"sums": 0.5, "up": 0.75, "down": -0.5})
    with pytest.raises(UserError, match="is a LoRA of rank 80, but there is room only for 64: start vLLM with"):
        small.engine.generate(prompts[:1], max_new_tokens=2, mixture=together)
    large = SelfAdaptiveModel.from_pretrained(
        library=with_loras, engine="vllm", engine_options=options | {"max_lora_rank": 128}
    )
    of_both = together.expand(6)
    scores = [model.engine.loglikelihood(prompts, tails, mixture=of_both) for model in (large, native)]
    torch.testing.assert_close(*scores, atol=1e-2, rtol=0)
    large.engine.carry("again", with_loras.lora("up"))
    again = large.engine.loglikelihood(prompts[:1], tails[:1], mixture=Mixture.of({"again": 1.0}))
    wanted = native.engine.loglikelihood(prompts[:1], tails[:1], mixture=Mixture.of({"up": 1.0}))
    torch.testing.assert_close(again, wanted, atol=1e-2, rtol=0)
    with pytest.raises(UserError, match="there is no room for it here"):
        large.engine.carry("elsewhere", Lora({"lm_head": torch.zeros(1, 576)}, {"lm_head": torch.zeros(49152, 1)}))


def test_the_plugin_resolves_names_to_loras(
    library: ExpertLibrary, smollm2_folder: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm.lora.resolver import LoRAResolverRegistry
    from vllm.plugins import load_general_plugins

    load_general_plugins()
    resolve = LoRAResolverRegistry.get_resolver("selfadapt").resolve_lora
    request = asyncio.run(resolve(str(smollm2_folder), "mix:sums=0.7,groups=0.3"))
    assert request is not None
    config = json.loads(Path(request.lora_path, "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"]) == ("LORA", 64)
    assert asyncio.run(resolve(str(smollm2_folder), "another")) is None
    with pytest.raises(UserError, match="did you mean 'sums'"):
        asyncio.run(resolve(str(smollm2_folder), "mix:sumz=1"))
    with pytest.raises(UserError, match="fingerprint"):
        asyncio.run(resolve(str(tiny_folder), "sums"))
    monkeypatch.setattr(serving().loras, "keep", 1)
    with pytest.raises(UserError, match="--middleware"):  # which would know that the first is needed no more
        asyncio.run(resolve(str(smollm2_folder), "sums"))
    assert Path(request.lora_path).is_dir()


def test_trl_sends_vllm_the_names_and_weights_it_knows(
    library: ExpertLibrary, smollm2_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The path of weights in training, short of the GPUs: TRL's own `sync_weights` into an engine without LoRA."""
    from trl.generation.vllm_generation import VLLMGeneration
    from vllm import LLM, SamplingParams

    # On a CPU vLLM packs its matrices once it has them, and takes no others; on a GPU it keeps them as they are.
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    monkeypatch.setattr("vllm._custom_ops._supports_onednn", False)
    base, tokenizer = load_base()
    model = library.expert("groups").attach(base)
    wanted = NativeEngine(model, tokenizer).generate(PROMPTS[:8], max_new_tokens=8)
    llm = LLM(
        str(smollm2_folder), dtype="float32", enforce_eager=True, max_model_len=512, kv_cache_memory_bytes=1 << 28
    )

    def answers() -> list[str]:
        ids = [{"prompt_token_ids": row} for row in tokenize(tokenizer, PROMPTS[:8])]
        outputs = llm.generate(ids, SamplingParams(temperature=0, max_tokens=8), use_tqdm=False)
        return [output.outputs[0].text for output in outputs]

    assert answers() != wanted
    generation = VLLMGeneration.__new__(VLLMGeneration)  # its __init__ makes an engine for a GPU
    generation.model, generation.llm, generation.mode = model, llm, "colocate"
    generation.enable_sleep_mode = False
    generation.accelerator = SimpleNamespace(is_main_process=True)
    generation._dist = SimpleNamespace(is_fsdp=False, gather_params=nullcontext)
    sent = {name: weight.clone() for name, weight in generation._iter_named_params()}
    plain = load_base()[0].state_dict()
    assert set(sent) == {name for name, _ in load_base()[0].named_parameters()}
    assert {name for name, weight in sent.items() if not torch.equal(weight, plain[name])} == {
        f"{matrix}.weight" for matrix in library.z("groups")
    }
    generation.sync_weights()
    assert answers() == wanted
    assert all(torch.equal(weight, plain[name]) for name, weight in base_weights(model).items())  # unmerged again


def base_weights(model: Any) -> dict[str, torch.Tensor]:
    return {
        name.removeprefix("base_model.model.").replace(".base_layer", ""): weight
        for name, weight in model.state_dict().items()
        if "svf_" not in name
    }


@pytest.fixture(scope="module")
def server(library: ExpertLibrary, smollm2_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of `vllm serve` with the middleware, as docs/serving.md starts it."""
    log = tmp_path_factory.mktemp("server") / "log"
    port = 8000 + os.getpid() % 1000
    command = [str(Path(sys.executable).with_name("vllm")), "serve", str(smollm2_folder)]
    command += f"--served-model-name smollm2-135m --host 127.0.0.1 --port {port}".split()
    command += ["--dtype", "float32", "--enforce-eager", "--max-model-len", "512"]
    command += ["--enable-lora", "--max-lora-rank", "64", "--max-loras", "4", "--max-cpu-loras", "8"]
    command += ["--lora-target-modules", "gate_proj", "up_proj", "down_proj"]
    command += ["--middleware", "selfadapt.serving.TwoPasses"]
    settings = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
    with log.open("w") as output:
        process = subprocess.Popen(command, env=os.environ | settings, stdout=output, stderr=output)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(300):
            assert process.poll() is None, log.read_text()[-3000:]
            try:
                urlopen(f"{address}/health", timeout=5)
                break
            except (URLError, OSError):
                time.sleep(1)
        yield address
    finally:
        process.terminate()
        process.wait(timeout=60)


def test_a_server_answers_with_the_right_expert_for_each_request(
    server: str, native: SelfAdaptiveModel, library: ExpertLibrary
) -> None:
    def ask(model: str, prompt: str) -> tuple[str, str]:
        body = {"model": model, "messages": [{"role": "user", "content": prompt}], "temperature": 0, "max_tokens": 8}
        request = Request(
            f"{server}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urlopen(request, timeout=120) as response:
            document = json.load(response)
        return document["model"], document["choices"][0]["message"]["content"].strip()

    def wanted(weights: dict[str, float], prompt: str) -> str:
        native.dispatcher = Fixed(Mixture.of(weights))
        return native.generate([prompt], max_new_tokens=8)[0].text.strip()

    story, plain = PROMPTS[1], PROMPTS[7]
    pass_one = find_dispatcher("embedding", library)([story, plain])
    assert (pass_one[0], pass_one[1]) == ({"stories": 1.0}, {})
    assert ask("auto", story) == ("mix:stories=1", wanted({"stories": 1.0}, story))
    assert ask("auto", plain) == ("smollm2-135m", wanted({}, plain))
    assert ask("smollm2-135m", story) == ("smollm2-135m", wanted({}, story))
    mixture = {"sums": 0.7, "groups": 0.3}
    assert ask("mix:sums=0.70,groups=.3", story) == ("mix:groups=0.3,sums=0.7", wanted(mixture, story))
