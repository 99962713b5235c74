"""Two-pass inference: dispatch the prompts, then answer each under its own mixture of experts."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any, Unpack, cast, overload

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

from dispatch import DEFAULT, Dispatcher, Fixed, check_described, check_dispatcher, find_dispatcher
from dispatch.table import Access
from experts.engine import GREEDY, Engine, NativeEngine, Sampling, check_sampling
from experts.engine.vllm import VLLMEngine, check_installed
from experts.exchange.difference import Difference
from experts.exchange.hub import EXPERT, folder_of
from experts.exchange.lora_folder import peft_type, read_lora
from experts.expert import Expert
from experts.library import ExpertLibrary
from experts.mixture import Mixture
from experts.outside.base_names import HUB_ID
from experts.outside.chats import Chat, check_roles, read_prompt, read_prompts, with_system_prompt
from experts.outside.errors import UserError, short, unknown
from experts.shipped import shipped_for, shipped_library
from selfadapt.base_models import BUILT_IN, BaseOptions, load_base, load_shapes

ENGINES = ("native", "vllm")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Seconds:
    """Wall-clock seconds of the whole call that an answer came from."""

    dispatch: float
    answer: float


@dataclass(frozen=True)
class Answer:
    """One answer, and how it came about; `mixture` has one row, its prompt's."""

    text: str
    mixture: Mixture
    seconds: Seconds

    def __str__(self) -> str:
        passes = f"pass one {self.seconds.dispatch:.2f} s, pass two {self.seconds.answer:.2f} s"
        return f"{self.text}\n[{self.mixture}; {passes}]"


class SelfAdaptiveModel:
    """An engine whose base carries a library's experts, and a dispatcher that decides which of them answer.

    Calls and streams may overlap freely, in one thread or in many: a mixture belongs to its call.
    `SelfAdaptiveModel(model, tokenizer, dispatcher)` uses the native engine.
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
            raise UserError("the dispatcher comes last: SelfAdaptiveModel(model, tokenizer, dispatcher)")
        if not callable(dispatcher):
            raise UserError(
                f"{short(dispatcher)} cannot be called, as a dispatcher is with prompts; give a dispatcher, "
                "or its name to SelfAdaptiveModel.from_pretrained"
            )
        self.engine: Engine = NativeEngine(engine, *tokenizer) if tokenizer else engine
        self.dispatcher: Dispatcher = dispatcher

    @property
    def model(self) -> Any:
        """The base with its experts, if the engine gives access to it, as the native one does."""
        return cast(NativeEngine, self.engine).model

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase | ProcessorMixin:
        return self.engine.tokenizer

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path | None = None,
        library: str | Path | ExpertLibrary | None = None,
        dispatch: str | Path | None = None,
        *,
        engine: str = "native",
        engine_options: Mapping[str, Any] | None = None,
        **base_options: Unpack[BaseOptions],
    ) -> SelfAdaptiveModel:
        """Loads a base with all experts of a library.

        Args:
            model: a built-in name, a hub id or a folder; by default the library's base.
            library: a folder of experts, or a repository on the hub (owner/name); by default those that come with the
                base.
            dispatch: "none" for the plain base, a dispatcher's name (`dispatch.DISPATCHERS`), an expert's name, or a
                `MIX.json`. By default "embedding" where there are experts, including those that come with the base;
                if that is impossible (no encoder is installed), the base, with a warning.
            engine: "native", or "vllm" if installed, for experts of limited rank, each mixture as a LoRA.
            engine_options: for `vllm.LLM`, such as `{"gpu_memory_utilization": 0.5}`.
            base_options: as `load_base` takes them, such as `dtype="bfloat16"`, `quantization="nf4"` or
                `chat_template_kwargs={"enable_thinking": False}`.

        Raises:
            UserError: if the library belongs to another base, `dispatch` means nothing, or the engine cannot do it.
        """
        if engine not in ENGINES:
            raise unknown("engine", engine, ENGINES)
        if engine == "vllm":
            return cls._on_vllm(model, library, dispatch, engine_options, **base_options)
        if engine_options:
            raise UserError("engine_options are for vLLM; leave them out for the native engine")
        base, tokenizer, experts, chosen = _load(model, library, dispatch, lambda name: load_base(name, **base_options))
        running = NativeEngine(base if experts is None else experts.load(base), tokenizer)
        return cls(running, _dispatcher(chosen, experts, running))

    @classmethod
    def _on_vllm(
        cls,
        model: str | Path | None,
        library: str | Path | ExpertLibrary | None,
        dispatch: str | Path | None,
        options: Mapping[str, Any] | None,
        **base_options: Unpack[BaseOptions],
    ) -> SelfAdaptiveModel:
        check_installed()
        if base_options.get("device") is not None:
            raise UserError("vLLM runs on the device it was built for; leave out device")
        if "quantization" in base_options:
            raise UserError("vLLM loads the base itself; leave out quantization, or use the native engine")
        on_cpu: BaseOptions = {**base_options, "device": "cpu"}  # all the accelerator's memory is vLLM's
        if on_cpu.get("dtype") is None and torch.accelerator.is_available():
            on_cpu["dtype"] = "auto"  # the checkpoint's, as `load_base` takes there

        def load(name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
            if name.endswith(".gguf"):
                raise UserError(
                    f"vLLM cannot read {name} here; load it with load_base, save model and tokenizer with "
                    "save_pretrained, and name that folder"
                )
            return load_base(name, **on_cpu)

        base, tokenizer, experts, chosen = _load(model, library, dispatch, load, "any")
        shared = {name: value for name, value in base_options.items() if name in ("revision", "trust_remote_code")}
        running = VLLMEngine(base, tokenizer, experts, shared | dict(options or {}))
        return cls(running, _dispatcher(chosen, experts, running))

    def dispatch(self, prompts: Iterable[str | Chat]) -> Mixture:
        """Pass one alone: the mixture of each prompt.

        Raises:
            UserError: if there are no prompts, one has an unknown role, or the dispatcher does not give one row for
                each.
        """
        prompts = _read(prompts)
        check_roles(self.engine.tokenizer, prompts)
        return self._dispatched(prompts)

    def generate(
        self,
        prompts: Iterable[str | Chat],
        *,
        max_new_tokens: int = 64,
        batch_size: int = 32,
        sampling: Sampling = GREEDY,
        system_prompt: str | None = None,
    ) -> list[Answer]:
        """Both passes: the answer to each prompt (a string is one user turn, a list of messages a chat).

        Args:
            prompts: any ordered iterable; a chat alone is one prompt (`experts.outside.chats`).
            sampling: temperature, top_p and others, a seed, and texts that end an answer; greedy if not given.
            system_prompt: a system message before every prompt, whoever answers it.

        Raises:
            UserError: if there are no prompts, one is neither string nor chat, the base's chat template refuses it, it
                does not fit the model's context, or it has a system message of its own beside `system_prompt`.
        """
        check_sampling(sampling)
        prompts = with_system_prompt(_read(prompts), system_prompt)
        start = time.perf_counter()
        mixture = self._dispatched(prompts)
        dispatched = time.perf_counter()
        texts = self.engine.generate(
            prompts, max_new_tokens=max_new_tokens, mixture=mixture, batch_size=batch_size, sampling=sampling
        )
        seconds = Seconds(dispatched - start, time.perf_counter() - dispatched)
        return [Answer(text, mixture.rows([row]), seconds) for row, text in enumerate(texts)]

    def stream(
        self,
        prompt: str | Chat,
        *,
        max_new_tokens: int = 64,
        sampling: Sampling = GREEDY,
        system_prompt: str | None = None,
    ) -> Iterator[str]:
        """Both passes for one prompt: yields its answer in pieces as it is written. Any thread may ask for the next."""
        check_sampling(sampling)
        (prompt,) = with_system_prompt([read_prompt(prompt)], system_prompt)
        mixture = self._dispatched([prompt])
        yield from self.engine.stream(prompt, max_new_tokens=max_new_tokens, mixture=mixture, sampling=sampling)

    def loglikelihood(
        self,
        prompts: Iterable[str | Chat],
        continuations: Iterable[str],
        *,
        batch_size: int = 32,
        system_prompt: str | None = None,
    ) -> Tensor:
        """Both passes: log p(continuation | prompt) of each pair in nats [B], under the mixture of its prompt.

        Raises:
            UserError: if there are no prompts, not as many continuations, or a pair does not fit the context.
        """
        prompts = with_system_prompt(_read(prompts), system_prompt)
        mixture = self._dispatched(prompts)
        return self.engine.loglikelihood(prompts, continuations, mixture=mixture, batch_size=batch_size)  # type: ignore[arg-type]

    def _dispatched(self, prompts: list[str | Chat]) -> Mixture:
        mixture = self.dispatcher(prompts)
        if not isinstance(mixture, Mixture) or len(mixture) != len(prompts):
            given = f"one of {len(mixture)}" if isinstance(mixture, Mixture) else type(mixture).__name__
            raise UserError(f"a dispatcher must give a Mixture of {len(prompts)} rows, one per prompt; it gave {given}")
        return mixture


def find_library(model: str | Path | None, library: str | Path | ExpertLibrary | None) -> ExpertLibrary:
    """The library given, or the experts that come with the base, whatever name the base has here.

    Raises:
        UserError: if there is none.
    """
    if isinstance(library, ExpertLibrary):
        return library
    if library is not None:
        if not isinstance(library, str | PathLike):
            raise UserError(f"library must be a folder, a repository on the hub or a library, not {library!r:.60}")
        return ExpertLibrary.from_pretrained(library)
    name = str(model or BUILT_IN)
    if named := shipped_library(name):
        return ExpertLibrary.open(named)
    with suppress(UserError):  # there is no such base
        if shipped_for(load_shapes(name)) and (found := shipped_with(load_base(name)[0])):
            return found
    raise UserError(f"no experts come with the base {name!r}; name a library")


def shipped_with(base: PreTrainedModel) -> ExpertLibrary | None:
    """The experts that come with a loaded base; None if there are none."""
    for candidate in shipped_for(base):
        with suppress(UserError):  # it belongs to another base
            candidate.check_base(base)
            return candidate
    return None


def _load(
    model: str | Path | None,
    library: str | Path | ExpertLibrary | None,
    dispatch: str | Path | None,
    load: Callable[[str], tuple[PreTrainedModel, PreTrainedTokenizerBase]],
    access: Access = "native",
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, ExpertLibrary | None, str]:
    """A base, its tokenizer, the experts that it is to carry, and who chooses among them.

    Mistakes in a given library or in `dispatch` are raised before the base is loaded.
    """
    dispatch = str(dispatch) if isinstance(dispatch, PathLike) else dispatch
    experts = None
    if library is not None or dispatch not in (None, "none"):  # the plain base need not have any experts
        experts = find_library(model, library)
        check_dispatcher(dispatch or "none", experts, access)
    base, tokenizer = load(str(model or (BUILT_IN if experts is None else experts.base)))
    if dispatch is not None:
        return base, tokenizer, experts, dispatch
    experts = shipped_with(base) if experts is None else experts
    chosen = "none" if experts is None else default_dispatch(experts)
    return base, tokenizer, None if library is None and chosen == "none" else experts, chosen


def default_dispatch(experts: ExpertLibrary) -> str:
    """By embedding; if that is impossible for the library, the base, with a warning of the other choices."""
    try:
        check_described(experts)
        find_dispatcher(DEFAULT, experts)  # the encoder is kept for the next call
    except UserError as error:
        choice = ", ".join([*experts.names, "prompt", "none"])
        logger.warning("the base answers, without experts: %s; set dispatch to choose who answers (%s)", error, choice)
        return "none"
    return DEFAULT


def _dispatcher(dispatch: str, experts: ExpertLibrary | None, engine: Engine) -> Dispatcher:
    return Fixed(Mixture.of({})) if experts is None else find_dispatcher(dispatch, experts, engine)


def find_expert(name: str, library: str | Path | None, model: str | Path | None) -> Expert:
    """The expert in a folder or a repository on the hub, an expert of a library, or what a `MIX.json` amounts to.

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


def find_difference(name: str, library: str | Path | None, model: str | Path | None) -> Difference:
    """As `find_expert`, for LoRAs too: a LoRA's folder or repository, one of a library, or those in a `MIX.json`."""
    on_the_hub = HUB_ID.fullmatch(name) and not name.endswith(".json")
    folder = folder_of(name, EXPERT) if on_the_hub else Path(name)
    if peft_type(folder) == "LORA":
        lora = read_lora(folder)
        return Difference(Expert({}, lora.base, description=lora.description or folder.name), [lora.factors])
    if not (folder / EXPERT).is_file() and not name.endswith(".json"):
        experts = find_library(model, library)
        if experts.is_lora(name):
            of_library = experts.difference(Mixture.of({name: 1.0}))
            return replace(of_library, expert=replace(of_library.expert, description=experts.descriptions()[name]))
    elif name.endswith(".json") and folder.is_file():
        return find_library(model, library).difference(Mixture.read(folder))
    return Difference(find_expert(str(folder), library, model))


def _read(prompts: Iterable[str | Chat]) -> list[str | Chat]:
    read = read_prompts(prompts)
    if not read:
        raise UserError("there is no prompt to answer; give one or more")
    return read
