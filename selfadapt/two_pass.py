"""Two-pass inference: dispatch the prompts, then answer each under its own mixture of experts."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Unpack, cast, overload

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

from dispatch import Dispatcher, Fixed, check_dispatcher, find_dispatcher
from experts.engine import GREEDY, Engine, NativeEngine, Sampling
from experts.engine.vllm import VLLMEngine, check_installed
from experts.expert import Expert
from experts.library import ExpertLibrary
from experts.mixture import Mixture
from experts.outside.base_names import HUB_ID
from experts.outside.chats import Chat, read_prompt, read_prompts
from experts.outside.errors import UserError, unknown
from experts.shipped import shipped_for, shipped_library
from selfadapt.base_models import BUILT_IN, BaseOptions, load_base, load_shapes

ENGINES = ("native", "vllm")


@dataclass(frozen=True)
class Seconds:
    """Wall-clock seconds of the whole call that an answer came from."""

    dispatch: float
    answer: float


@dataclass(frozen=True)
class Answer:
    """One answer, and how it came about: `mixture` has one row, that of its prompt."""

    text: str
    mixture: Mixture
    seconds: Seconds

    def __str__(self) -> str:
        passes = f"pass one {self.seconds.dispatch:.2f} s, pass two {self.seconds.answer:.2f} s"
        return f"{self.text}\n[{self.mixture}; {passes}]"


class SelfAdaptiveModel:
    """An engine, whose base carries the experts of a library, and a dispatcher that decides who of them answers.

    Calls and streams may overlap as they like, in one thread or in many: a mixture belongs to its call.
    `SelfAdaptiveModel(model, tokenizer, dispatcher)` is one on the native engine.
    """

    @overload
    def __init__(self, engine: Engine, dispatcher: Dispatcher, /) -> None: ...

    @overload
    def __init__(
        self, model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase, dispatcher: Dispatcher, /
    ) -> None: ...

    def __init__(self, engine: Any, *rest: Any) -> None:
        *tokenizer, dispatcher = rest
        if isinstance(dispatcher, PreTrainedTokenizerBase | ProcessorMixin):
            raise UserError("a dispatcher comes last: SelfAdaptiveModel(model, tokenizer, dispatcher)")
        self.engine: Engine = NativeEngine(engine, *tokenizer) if tokenizer else engine
        self.dispatcher: Dispatcher = dispatcher

    @property
    def model(self) -> Any:
        """The base with its experts, where the engine has it at hand, as the native one does."""
        return cast(NativeEngine, self.engine).model

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase | ProcessorMixin:
        return self.engine.tokenizer

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path | None = None,
        library: str | Path | ExpertLibrary | None = None,
        dispatch: str = "none",
        *,
        dtype: torch.dtype | str | None = None,
        device: torch.device | str | None = None,
        engine: str = "native",
        engine_options: Mapping[str, Any] | None = None,
        **base_options: Unpack[BaseOptions],
    ) -> SelfAdaptiveModel:
        """Loads a base with all experts of a library.

        Args:
            model: a built-in name, a hub id or a folder; by default the library's base.
            library: a folder of experts, or a repository of the hub (owner/name); by default those that come with the
                base.
            dispatch: "none" for the plain base, a dispatcher's name (`dispatch.DISPATCHERS`), an expert's name, or a
                `MIX.json`.
            engine: "native", or "vllm" where that is installed: experts of limited rank, each mixture as a LoRA.
            engine_options: for `vllm.LLM`, such as `{"gpu_memory_utilization": 0.5}`.
            base_options: as `load_base` takes them, such as `chat_template_kwargs={"enable_thinking": False}`.

        Raises:
            UserError: if the library belongs to another base, `dispatch` means nothing, or the engine cannot do it.
        """
        if engine not in ENGINES:
            raise unknown("engine", engine, ENGINES)
        if engine == "vllm":
            return cls._on_vllm(model, library, dispatch, dtype, device, engine_options, **base_options)
        if engine_options:
            raise UserError("engine_options are vLLM's; the native engine has none")
        if dispatch == "none" and library is None:  # the plain base need not have any experts
            base, tokenizer = load_base(model or BUILT_IN, dtype=dtype, device=device, **base_options)
            return cls(NativeEngine(base, tokenizer), Fixed(Mixture.of({})))
        experts = find_library(model, library)
        check_dispatcher(dispatch, experts)
        base, tokenizer = load_base(model or experts.base, dtype=dtype, device=device, **base_options)
        running = NativeEngine(experts.load(base), tokenizer)
        return cls(running, find_dispatcher(dispatch, experts, running))

    @classmethod
    def _on_vllm(
        cls,
        model: str | Path | None,
        library: str | Path | ExpertLibrary | None,
        dispatch: str,
        dtype: torch.dtype | str | None,
        device: torch.device | str | None,
        options: Mapping[str, Any] | None,
        **base_options: Unpack[BaseOptions],
    ) -> SelfAdaptiveModel:
        check_installed()
        if device is not None:
            raise UserError("vLLM has its device by how it was built; leave out device")
        if dtype is None and torch.accelerator.is_available():
            dtype = "auto"  # the checkpoint's, as load_base has it there
        plain = dispatch == "none" and library is None
        experts = None if plain else find_library(model, library)
        if experts is not None:
            check_dispatcher(dispatch, experts, "any")
        name = str(model or (BUILT_IN if experts is None else experts.base))
        if name.endswith(".gguf"):
            raise UserError(f"vLLM reads no {name} here; load_base it, save_pretrained it, and name that folder")
        # All the accelerator's memory is vLLM's.
        base, tokenizer = load_base(name, dtype=dtype, device="cpu", **base_options)
        shared = {name: value for name, value in base_options.items() if name in ("revision", "trust_remote_code")}
        running = VLLMEngine(base, tokenizer, experts, shared | dict(options or {}))
        return cls(running, Fixed(Mixture.of({})) if experts is None else find_dispatcher(dispatch, experts, running))

    def dispatch(self, prompts: Iterable[str | Chat]) -> Mixture:
        """Pass one alone: the mixture of each prompt.

        Raises:
            UserError: if there are no prompts, or the dispatcher gives something else than a row for each.
        """
        return self._dispatched(_read(prompts))

    def generate(
        self,
        prompts: Iterable[str | Chat],
        *,
        max_new_tokens: int = 64,
        batch_size: int = 32,
        sampling: Sampling = GREEDY,
    ) -> list[Answer]:
        """Both passes: the answer to each prompt (a string is one user turn, a list of messages a chat).

        Args:
            prompts: anything that can be gone through in order; a chat alone is one prompt (`experts.outside.chats`).
            sampling: temperature, top_p, seed, and texts that end an answer; greedy if not given.

        Raises:
            UserError: if there are no prompts, one is neither string nor chat, the base's chat template refuses it, or
                it does not fit the model's context.
        """
        prompts = _read(prompts)
        start = time.perf_counter()
        mixture = self._dispatched(prompts)
        dispatched = time.perf_counter()
        texts = self.engine.generate(
            prompts, max_new_tokens=max_new_tokens, mixture=mixture, batch_size=batch_size, sampling=sampling
        )
        seconds = Seconds(dispatched - start, time.perf_counter() - dispatched)
        return [Answer(text, mixture.rows([row]), seconds) for row, text in enumerate(texts)]

    def stream(self, prompt: str | Chat, *, max_new_tokens: int = 64, sampling: Sampling = GREEDY) -> Iterator[str]:
        """Both passes for one prompt: the pieces of its answer as they are written. Any thread may ask for the next."""
        prompt = read_prompt(prompt)
        mixture = self._dispatched([prompt])
        yield from self.engine.stream(prompt, max_new_tokens=max_new_tokens, mixture=mixture, sampling=sampling)

    def loglikelihood(
        self, prompts: Iterable[str | Chat], continuations: Iterable[str], *, batch_size: int = 32
    ) -> Tensor:
        """Both passes: log p(continuation | prompt) of each pair in nats [B], under the mixture of its prompt.

        Raises:
            UserError: if there are no prompts, or not as many continuations, or a pair does not fit the context.
        """
        prompts = _read(prompts)
        mixture = self._dispatched(prompts)
        return self.engine.loglikelihood(prompts, continuations, mixture=mixture, batch_size=batch_size)  # type: ignore[arg-type]

    def _dispatched(self, prompts: list[str | Chat]) -> Mixture:
        mixture = self.dispatcher(prompts)
        if not isinstance(mixture, Mixture) or len(mixture) != len(prompts):
            given = f"one of {len(mixture)}" if isinstance(mixture, Mixture) else type(mixture).__name__
            raise UserError(f"a dispatcher must give a Mixture of {len(prompts)} rows, one a prompt; it gave {given}")
        return mixture


def find_library(model: str | Path | None, library: str | Path | ExpertLibrary | None) -> ExpertLibrary:
    """The library that is meant: the one given, or the experts that come with the base, whatever it is called here.

    Raises:
        UserError: if there is none.
    """
    if isinstance(library, ExpertLibrary):
        return library
    if library is not None:
        return ExpertLibrary.from_pretrained(library)
    name = str(model or BUILT_IN)
    if named := shipped_library(name):
        return ExpertLibrary.open(named)
    candidates = []
    with suppress(UserError):  # there is no such base
        candidates = shipped_for(load_shapes(name))
    for candidate in candidates:
        with suppress(UserError):  # it is another base
            candidate.check_base(load_base(name)[0])
            return candidate
    raise UserError(f"no experts come with the base {name!r}; name a library")


def find_expert(name: str, library: str | Path | None, model: str | Path | None) -> Expert:
    """An expert's own folder or repository of the hub, an expert of a library, or what a `MIX.json` amounts to.

    Raises:
        UserError: if there is none.
    """
    if (Path(name) / "adapter_config.json").is_file():
        return Expert.read(name)
    if HUB_ID.fullmatch(name) and not name.endswith(".json"):
        return Expert.from_pretrained(name)
    if not name.endswith(".json"):
        experts = find_library(model, library)
        return replace(experts.expert(name), base=experts.base)
    if not Path(name).is_file():
        raise UserError(f"no such file: {name}")
    return find_library(model, library).mixed(Mixture.read(Path(name)))


def _read(prompts: Iterable[str | Chat]) -> list[str | Chat]:
    read = read_prompts(prompts)
    if not read:
        raise UserError("there is no prompt to answer; give one or more")
    return read
