"""The lm-eval model `selfadapt`: lm-eval's own `HFLM`, with every request answered in two passes.

Importing `selfadapt` announces it to lm-eval, and this module is imported when it is asked for.
"""

from __future__ import annotations

import functools
import json
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from dataclasses import fields
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.utils import gather_object
from lm_eval import evaluator
from lm_eval.api.instance import Instance
from lm_eval.api.model import CacheHook, CachingLM
from lm_eval.models.huggingface import HFLM
from peft import PeftModel
from torch import Tensor
from transformers import GenerationConfig, ProcessorMixin

from experts.engine import NativeEngine, mixed
from experts.library import ExpertLibrary
from experts.mixture import Mixture
from experts.outside.chats import check_system_is_shown, refused
from experts.outside.errors import UserError, unknown
from experts.outside.template_arguments import check_arguments
from experts.training.processes import processes
from selfadapt.harness.model_options import OPTIONS, check_options
from selfadapt.harness.response_cache import ResponseCache
from selfadapt.recipes.base import BaseBlock
from selfadapt.two_pass import SelfAdaptiveModel

LOADING = tuple(field.name for field in fields(BaseBlock))  # of `load_base`
BATCHING = ("batch_size", "logits_cache", "max_batch_size")  # those that change no answer
PATIENCE = timedelta(weeks=1)
"""How long processes wait for each other's answers."""


class SelfAdaptiveLM(HFLM):
    """Dispatches the context of every request, then answers it under its mixture.

    The dispatcher sees the context as lm-eval gives it, few-shot examples included. If lm-eval applied a chat
    template, it sees the last user turn alone; for a rolling log-likelihood, which has no context, the text itself. It
    sees only the end of what exceeds the model's context. Log-likelihoods are compared within a question, so all of
    its requests share the mixture of the first.

    Requests that share a mixture are answered together, on merged weights, if they fill a batch; the rest in batches
    whose rows have mixtures of their own.

    Each of several processes (`torchrun`) has a base of its own and answers a share of the documents.

    Args:
        pretrained: a built-in name, a hub id, a folder, or a `SelfAdaptiveModel`; by default the library's base.
        library: a folder of experts, or a repository on the hub; by default those that come with the base.
        dispatch: as `SelfAdaptiveModel.from_pretrained` takes it.
        device: by default the accelerator, if there is one.
        dtype: by default the checkpoint's own, as for lm-eval's `hf`.
        options: arguments of `HFLM` that do not concern loading (`OPTIONS`), and those of `load_base` (`LOADING`).

    Raises:
        UserError: if there is another argument, or the model, the library or the dispatcher cannot be loaded.
    """

    def __init__(
        self,
        pretrained: str | SelfAdaptiveModel | None = None,
        library: str | Path | ExpertLibrary | None = None,
        dispatch: str | None = "none",
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | str | None = "auto",
        **options: Any,
    ) -> None:
        self._state = processes(PATIENCE)  # before a base looks for its device
        loading = {name: options.pop(name) for name in LOADING if name in options}
        for name in options:
            if name not in OPTIONS:
                known = {"pretrained", "library", "dispatch", "device", "dtype", *LOADING, *OPTIONS}
                raise unknown("argument of the lm-eval model selfadapt:", name, known)
        check_options(options)
        if isinstance(pretrained, SelfAdaptiveModel):
            if loading:
                raise UserError(f"the model is loaded already: leave {', '.join(loading)} out")
            self.two_pass = pretrained
        else:
            # lm-eval reads "dispatch=none" in a string of arguments as None.
            self.two_pass = _load(pretrained, library, dispatch or "none", dtype=dtype, device=device, **loading)
        engine = self.two_pass.engine
        if not isinstance(engine, NativeEngine):
            raise UserError("lm-eval looks into the base, which only the native engine allows; use that engine")
        if isinstance(engine.tokenizer, ProcessorMixin):
            raise UserError("lm-eval's tasks need a base that reads text alone, not a vision-language model")
        if engine.tokenizer.chat_template is not None:
            check_arguments(engine.tokenizer.chat_template, options.get("chat_template_args") or {})
        # HFLM warns that it ignores arguments if the model is loaded already; it gets none that it would ignore.
        logger = logging.getLogger(HFLM.__module__)
        level = logger.level
        logger.setLevel(logging.ERROR)
        try:
            super().__init__(pretrained=cast(Any, engine.model), tokenizer=cast(Any, engine.tokenizer), **options)
        finally:
            logger.setLevel(level)
        self._options = {name: value for name, value in options.items() if name not in BATCHING}
        self.mixtures: dict[str, dict[str, float]] = {}  # context → the experts that had a part
        self.seconds = {"dispatch": 0.0, "answer": 0.0}
        self._experts: dict[str, None] = {}  # every expert that a mixture has named, in order
        self._questions: dict[str, str] = {}  # context under a chat template → its last user turn
        self._answering = False
        # For the requests that are being answered:
        self._mixture = Mixture.of({})
        self._rows: list[int] = []  # request → its row of the mixture
        self._row_of: dict[Hashable, int] = {}  # context, or input tokens → row of the mixture
        self._batch: Sequence[str] = ()  # the contexts about to be answered

    @property
    def rank(self) -> int:
        return self._state.process_index

    @property
    def world_size(self) -> int:
        # Each process has its own groups of requests that share a mixture, and so answers at its own pace.
        return 1 if self._answering else self._state.num_processes

    def all_gather(self, tensor: Tensor) -> Tensor:
        # lm-eval gathers the numbers of requests, to give all processes equally many: no base here needs that.
        return tensor.repeat(self.world_size)

    def _batch_scheduler(self, pos: int, n_reordered_requests: Any) -> Any:
        # For "auto:4" HFLM divides the requests by four, and then by the result: with fewer requests, by zero.
        times: Any = self.batch_schedule  # type: ignore[has-type]
        self.batch_schedule = min(times, len(n_reordered_requests))
        try:
            return super()._batch_scheduler(pos, n_reordered_requests)
        finally:
            self.batch_schedule = times

    def barrier(self) -> None:
        pass  # they meet when answers are gathered

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        if self.tokenizer.chat_template is None:
            raise UserError("the base's tokenizer has no chat template; leave --apply-chat-template out")
        try:
            show = functools.partial(super().apply_chat_template, add_generation_prompt=add_generation_prompt)
            context = show(chat_history)
            # If a template refuses the system message, HFLM shows it the chat without that message.
            check_system_is_shown(chat_history, context, show, "a question")
        except UserError:
            raise
        except Exception as error:  # a template is a program of the checkpoint's, and may fail in any way
            raise refused("the chat of a question", error) from error
        turns = [message["content"] for message in chat_history if message["role"] == "user"]
        if turns:
            self._questions[context] = turns[-1]
        return context

    def set_cache_hook(self, cache_hook: CacheHook) -> None:
        """Takes a cache of responses (`use_cache`), which any bases, libraries and dispatchers may share."""
        if cache_hook.dbdict is not None:
            cache_hook = ResponseCache(cache_hook.dbdict, self.model, self._decoding())
        super().set_cache_hook(cache_hook)

    def _decoding(self) -> Any:
        """What decides an answer besides its request, the weights and the mixture."""
        base: Any = self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model
        config = {key: value for key, value in base.config.to_dict().items() if key != "_name_or_path"}
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        tokenizer = json.loads(backend.to_str()) if backend else self.tokenizer.get_vocab()
        for state in ("padding", "truncation"):  # of the last batch
            tokenizer.pop(state, None)
        return [config, base.generation_config.to_dict(), tokenizer, self._options]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        answer = functools.partial(super().generate_until, disable_tqdm=disable_tqdm)
        contexts = [request.args[0] for request in requests]
        try:
            return self._two_passes("generate_until", answer, requests, contexts)
        except UserError:
            raise
        # This is how transformers and lm-eval refuse arguments of `generate`, such as `num_beams=0`.
        except (ValueError, AssertionError, ArithmeticError) as error:
            said = " ".join(str(error).split())
            raise UserError(f"cannot generate with {dict(requests[0].args[1])}: {said}") from error

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        first: dict[Hashable, str] = {}
        contexts = [
            request.args[0]
            if request.doc_id is None
            else first.setdefault((request.task_name, request.doc_id), request.args[0])
            for request in requests
        ]
        answer = functools.partial(super().loglikelihood, disable_tqdm=disable_tqdm)
        return self._two_passes("loglikelihood", answer, requests, contexts)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        # A text is many windows, and HFLM does not say whose a window is: one mixture at a time.
        answer = functools.partial(super().loglikelihood_rolling, disable_tqdm=disable_tqdm)
        contexts = [request.args[0] for request in requests]
        return self._two_passes("loglikelihood_rolling", answer, requests, contexts, apart=True)

    def _two_passes(
        self,
        kind: str,
        answer: Callable[[list[Instance]], list[Any]],
        requests: list[Instance],
        contexts: list[str],
        apart: bool = False,
    ) -> list[Any]:
        """The answers to `requests`, in their order, each under the mixture of its context.

        Args:
            apart: whether to answer under one mixture at a time, however few requests share it.
        """
        self._mixture, rows = self._dispatch(contexts)
        start = time.perf_counter()
        cache = self.cache_hook if isinstance(self.cache_hook, ResponseCache) else None
        keys = cache.keys(kind, requests, self._mixture, rows) if cache else []
        answers = {index: known for index, key in enumerate(keys) if (known := cast(Any, cache).get(key)) is not None}
        sharing: dict[int, list[int]] = defaultdict(list)  # row → the requests that share it
        for index, row in enumerate(rows):
            if index not in answers:
                sharing[row].append(index)
        batch = self.max_batch_size if self.batch_size == "auto" else self.batch_size
        runs = [group for group in sharing.values() if apart or len(group) >= max(2, batch)]
        alone = {index for group in runs for index in group}
        runs.append(sorted(index for group in sharing.values() for index in group if index not in alone))
        self._answering = True
        try:
            for run in filter(None, runs):
                self._rows = [rows[index] for index in run]
                self._row_of = {contexts[index]: rows[index] for index in run}
                for index, response in zip(run, answer([requests[index] for index in run]), strict=True):
                    answers[index] = response
                    if cache:
                        cache.put(keys[index], response)
        finally:
            self._answering = False
        self.seconds["answer"] += time.perf_counter() - start
        return [answers[index] for index in range(len(requests))]

    def _dispatch(self, contexts: list[str]) -> tuple[Mixture, list[int]]:
        """Pass one, once for each distinct context: the mixture, and the number of each context's row.

        Contexts with equal weights have the same row.
        """
        start = time.perf_counter()
        distinct = list(dict.fromkeys(contexts))
        mixture = self.two_pass.dispatch([self._prompt(context) for context in distinct])
        self.seconds["dispatch"] += time.perf_counter() - start
        self._experts |= dict.fromkeys(mixture.names)
        first: dict[int, int] = {}
        row_of = {}
        for row, (context, group) in enumerate(zip(distinct, mixture.groups(), strict=True)):
            self.mixtures[context] = mixture[row]
            row_of[context] = first.setdefault(group, row)
        return mixture, [row_of[context] for context in contexts]

    def _prompt(self, context: str) -> str:
        """What the dispatcher sees of a context."""
        prompt = self._questions.get(context, context)
        if len(prompt.encode()) > self.max_length:  # a token has at least one byte
            tokens = self.tok_encode(prompt)
            if len(tokens) > self.max_length:
                return self.tok_decode(tokens[-self.max_length :])
        return prompt

    def _under(self, keys: Sequence[Hashable]) -> Any:
        # The rows with which HFLM looks for a batch size that fits belong to no request.
        return mixed(self.model, self._mixture.rows([self._row_of.get(key, self._rows[0]) for key in keys]))

    def tok_batch_encode(self, strings: list[str], *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        # HFLM's last step before it generates: here the rows of the batch still have their contexts.
        self._batch = strings
        return super().tok_batch_encode(strings, *args, **kwargs)

    def _model_generate(self, context: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        with self._under(self._batch):
            return super()._model_generate(context, *args, **kwargs)

    def _loglikelihood_tokens(self, requests: Any, *args: Any, **kwargs: Any) -> list[tuple[float, bool]]:
        """Notes which input has which mixture, for `_model_call`.

        HFLM computes an input that several requests share only once, and reads the likelihoods of the longest
        continuation. Requests with another mixture or a continuation of another length ("a b" + " c" and "a" + " b c";
        the windows of a text that repeats itself) wait for another round.
        """
        # Rolling log-likelihoods have more windows than texts, but all under one mixture.
        rows = self._rows if len(self._rows) == len(requests) else self._rows[:1] * len(requests)
        self._row_of = {}
        shared: dict[Hashable, tuple[int, int]] = {}
        now: list[int] = []
        later: list[int] = []
        for index, (_, context, continuation) in enumerate(requests):
            tokens = _unpadded((context + continuation)[-(self.max_length + 1) :][:-1])
            how = (rows[index], len(continuation))
            (now if shared.setdefault(tokens, how) == how else later).append(index)
            self._row_of.setdefault(tokens, rows[index])
        first = super()._loglikelihood_tokens([requests[i] for i in now], *args, **kwargs)
        answers = dict(zip(now, first, strict=True))
        if later:
            before = self._rows
            self._rows = [rows[index] for index in later]
            again = self._loglikelihood_tokens([requests[i] for i in later], *args, **kwargs)
            answers.update(zip(later, again, strict=True))
            self._rows = before
        return [answers[index] for index in range(len(requests))]

    def _model_call(self, inps: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        with self._under([_unpadded(row) for row in inps.tolist()]):
            return super()._model_call(inps, *args, **kwargs)

    def exchange(self) -> None:
        """Tells every process which mixtures the others have seen, and how long the slowest has taken."""
        for mixtures, experts, seconds in gather_object([(self.mixtures, self._experts, self.seconds)]):
            self.mixtures |= mixtures
            self._experts |= experts
            self.seconds = {each: max(taken, seconds[each]) for each, taken in self.seconds.items()}

    def explain(self, samples: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
        """Writes the `mixture` of every sample into lm-eval's log, and sums up.

        Returns:
            `mixture`: the mean weight of every expert and the share of documents that the base alone answered;
            `seconds`: how long each pass took.
        """
        logs = [(task, sample) for task, of_task in samples.items() for sample in of_task]
        contexts = [sample["arguments"][0][0] for _, sample in logs]
        documents = {}
        for (task, sample), context in zip(logs, contexts, strict=True):
            sample["mixture"] = documents[task, sample["doc_id"]] = self.mixtures[context]
        mixtures = documents.values()
        weights = {name: sum(m.get(name, 0.0) for m in mixtures) / len(mixtures) for name in self._experts}
        abstained = sum(not m for m in mixtures) / len(mixtures)
        return {"mixture": {"weights": weights, "abstained": abstained}, "seconds": dict(self.seconds)}


def _unpadded(tokens: list[int]) -> tuple[int, ...]:
    """An input without the zeros with which HFLM pads a batch on the right."""
    end = len(tokens)
    while end and tokens[end - 1] == 0:
        end -= 1
    return tuple(tokens[:end])


def _load(pretrained: Any, library: Any, dispatch: str, **loading: Any) -> SelfAdaptiveModel:
    two_pass = SelfAdaptiveModel.from_pretrained(pretrained, library, dispatch, **loading)
    model = two_pass.model
    base = cast(Any, model.get_base_model() if isinstance(model, PeftModel) else model)
    of_revision = {"revision": loading["revision"]} if "revision" in loading else {}
    # lm-eval's `hf` decodes as the checkpoint asks (with a repetition penalty, say); `load_base` does not.
    with suppress(OSError):  # the checkpoint asks for nothing
        base.generation_config = GenerationConfig.from_pretrained(
            base.config.name_or_path, local_files_only=True, **of_revision
        )
    return two_pass


_evaluate = evaluator.evaluate


@functools.wraps(_evaluate)
def _evaluate_and_explain(lm: Any, task_dict: Any, *args: Any, log_samples: bool = True, **options: Any) -> Any:
    model = lm.lm if isinstance(lm, CachingLM) else lm
    if not isinstance(model, SelfAdaptiveLM):
        return _evaluate(lm, task_dict, *args, log_samples=log_samples, **options)
    if not isinstance(lm, CachingLM):
        model.set_cache_hook(CacheHook(None))  # that of an earlier evaluation
    if options.get("apply_chat_template"):
        # The contexts that lm-eval has kept (`cache_requests`) do not say what the last user turn was.
        options["rewrite_requests_cache"] = True
    model.mixtures.clear()
    model.seconds = dict.fromkeys(model.seconds, 0.0)
    results = _evaluate(lm, task_dict, *args, log_samples=True, **options)
    model.exchange()
    if results is None:  # as lm-eval gives to all processes but the first
        return None
    samples = results["samples"] if log_samples else results.pop("samples")
    if model.world_size > 1:
        for of_task in samples.values():
            of_task.sort(key=lambda sample: (sample["filter"], sample["doc_id"]))
    return {**results, **model.explain(samples)}


# lm-eval writes its log of samples without asking the model, and there is no other place to add to it.
evaluator.evaluate = _evaluate_and_explain
