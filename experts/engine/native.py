"""The engine that needs nothing but transformers and PEFT."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from copy import copy
from dataclasses import dataclass
from threading import Event, RLock
from typing import Any, cast

import torch
from peft import PeftModel
from torch import Tensor
from transformers import (
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
    TextIteratorStreamer,
)

from experts.attaching import BASE, attach_lora, with_identity
from experts.engine.batches import check_mixture, pad_batch, plan_batches, plan_queues
from experts.engine.constrained import Constraint
from experts.engine.context import check_context
from experts.engine.decoding import Writing, can_decode, constrained, decode, end_tokens, most_likely, penalized
from experts.engine.forward import evaluating, last_positions, mixed, position_ids
from experts.engine.likelihoods import log_p_of_tails, tokenize_pairs
from experts.engine.sampling import GREEDY, DrawnTokens, Draws, Sampling, Stops, check_sampling, cut, cut_stream
from experts.engine.streaming import stream_from_thread
from experts.exchange.lora import Lora
from experts.expert import Expert
from experts.mixture import Mixture
from experts.outside.chats import Chat, read_prompts, tokenize, tokenize_seen
from experts.outside.errors import UserError, check_whole, unknown
from experts.outside.pictures import text_tokenizer
from experts.svf import SVFModel
from experts.svf.fingerprint import fingerprint
from experts.svf.names import plain_modules
from experts.svf.scaled import SVFLayer

_carrying = RLock()


@dataclass(frozen=True)
class _Asked:
    """What a call wants of its answers."""

    max_new_tokens: int
    constraint: Constraint | None
    draws: Draws | None
    """None means the most likely token."""
    stopped: Stops
    penalty: float
    """The penalty on repetition, in place of the checkpoint's; 1 leaves the checkpoint's."""


@dataclass(eq=False)
class NativeEngine:
    """A transformers model, or one that carries experts in PEFT's way, and its tokenizer.

    A batch has either one mixture, on merged weights, or any mixtures, in factor space: whichever costs less
    (`experts.engine.batches`). A mixture of None leaves the model as it is, under whatever adapters are active.

    Args:
        tokenizer: for a vision-language model its processor; a part {"type": "image", "image": …} is then a picture.
    """

    model: PreTrainedModel | PeftModel
    tokenizer: PreTrainedTokenizerBase | ProcessorMixin

    @property
    def experts(self) -> Collection[str]:
        if not isinstance(self.model, PeftModel):
            return ()
        loras = self.model.base_model.loras if isinstance(self.model.base_model, SVFModel) else set()
        return (self.model.peft_config.keys() | loras) - {BASE}

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.model)

    @torch.inference_mode()
    def generate(
        self,
        prompts: Sequence[str | Chat],
        *,
        max_new_tokens: int,
        mixture: Mixture | None = None,
        batch_size: int = 32,
        sampling: Sampling = GREEDY,
        on_batch: Callable[[int], None] = lambda answered: None,
        constraint: Constraint | None = None,
    ) -> list[str]:
        """As `Engine.generate`.

        Args:
            sampling: how tokens are chosen and what ends an answer; greedy by default.
            on_batch: called with the number of prompts answered since the last call.
            constraint: the answers that are allowed; None allows any.
        """
        check_whole("max_new_tokens", max_new_tokens)
        check_whole("batch_size", batch_size)
        prompts = read_prompts(prompts)
        ids = tokenize(self.tokenizer, prompts)
        lengths = [len(row) for row in ids]
        check_context(self.model.config, max(lengths, default=0), max_new_tokens)
        check_mixture(mixture, len(ids))
        asked = self._asked(max_new_tokens, sampling, ids, mixture, constraint)
        decoder = cast(Any, text_tokenizer(self.tokenizer))
        answers = [""] * len(ids)

        def written(queue: Sequence[int]) -> Iterator[tuple[int, list[int]]]:
            """Yields places in a queue and the tokens of their answers, as they come."""
            own = [ids[row] for row in queue]
            under = None if mixture is None else mixture.rows(queue)
            if (writing := self._writing(asked, queue)) is not None:
                yield from decode(self.model, own, writing, rows_at_once=batch_size, mixture=under)
                return
            for start in range(0, len(queue), batch_size):
                places = range(start, min(start + batch_size, len(queue)))
                batch = self._batch([prompts[queue[place]] for place in places], [own[place] for place in places])
                length = batch["input_ids"].shape[1]
                options = self._options(asked, length, [queue[place] for place in places])
                with self._mixed(under, places):
                    output = self._base.generate(**batch, **options)
                yield from zip(places, output[:, length:].tolist(), strict=True)

        with evaluating(self.model):
            for queue in plan_queues(self.model, lengths, max_new_tokens, mixture, batch_size):
                for place, tokens in written(queue):
                    answers[queue[place]] = cut(decoder.decode(tokens, skip_special_tokens=True), sampling.stop)
                    on_batch(1)
        return answers

    def stream(
        self, prompt: str | Chat, *, max_new_tokens: int, mixture: Mixture, sampling: Sampling = GREEDY
    ) -> Iterator[str]:
        """As `Engine.stream`. A separate thread writes; any thread may ask for the next piece."""
        check_whole("max_new_tokens", max_new_tokens)
        ids = tokenize(self.tokenizer, [prompt])
        check_context(self.model.config, len(ids[0]), max_new_tokens)
        check_mixture(mixture, 1)
        batch = self._batch([prompt], ids)
        asked = self._asked(max_new_tokens, sampling, ids, mixture, None)
        options = self._options(asked, batch["input_ids"].shape[1], [0])
        decoder = cast(Any, text_tokenizer(self.tokenizer))
        pieces = TextIteratorStreamer(decoder, skip_prompt=True, skip_special_tokens=True)

        def write(abandoned: Event) -> None:
            def left(ids: Tensor, scores: Any) -> Tensor:
                return torch.full((len(ids),), abandoned.is_set(), device=ids.device)

            options["stopping_criteria"].append(left)
            with torch.inference_mode(), evaluating(self.model), mixed(self.model, mixture):
                self._base.generate(**batch, **options, streamer=pieces)

        with closing(stream_from_thread(write, pieces)) as written:
            yield from cut_stream(written, sampling.stop)

    @torch.inference_mode()
    def loglikelihood(
        self,
        prompts: Sequence[str | Chat],
        continuations: Sequence[str],
        *,
        mixture: Mixture | None = None,
        batch_size: int = 32,
    ) -> Tensor:
        """As `Engine.loglikelihood`."""
        check_whole("batch_size", batch_size)
        heads, tails = tokenize_pairs(self.tokenizer, prompts, continuations)
        ids = [head + tail for head, tail in zip(heads, tails, strict=True)]
        check_context(self.model.config, max(map(len, ids), default=0), 0)
        scores = torch.zeros(len(ids))
        with evaluating(self.model):
            for rows in plan_batches(self.model, [len(row) for row in ids], 0, mixture, batch_size):
                batch = pad_batch(self.model, self.tokenizer, [ids[row] for row in rows])
                own = [tails[row] for row in rows]
                with self._mixed(mixture, rows):
                    output = cast(Any, self.model)(
                        **batch,
                        position_ids=position_ids(batch["attention_mask"]),
                        logits_to_keep=last_positions(max(map(len, own)) + 1),
                    )
                scores[rows] = log_p_of_tails(output.logits, batch["input_ids"], own)
        return scores

    @property
    def decodes(self) -> bool:
        """Whether answers can be written row by row (`experts.engine.decoding`), not only by `generate`."""
        text = not isinstance(self.tokenizer, ProcessorMixin)
        return text and can_decode(self.model) and penalized(self.generation_config, most_likely) is not None

    def generate_with(
        self,
        prompt: Chat | None,
        ids: list[int],
        choose: Callable[[Tensor, Tensor], Tensor],
        *,
        max_new_tokens: int,
        mixture: Mixture,
    ) -> None:
        """Writes one answer with transformers' `generate`, for bases that cannot be decoded row by row.

        Args:
            prompt: the chat, if its pictures are to be seen.
            ids: the prompt's tokens.
            choose: takes all tokens so far [1, T] and the logits [1, V] of the next; returns that token [1], or a
                number below 0 to end.
        """
        batch = self._batch([[] if prompt is None else prompt], [ids])
        ended = False

        def chosen(so_far: Tensor, logits: Tensor) -> Tensor:
            nonlocal ended
            token = choose(so_far, logits.float())
            ended = bool(token < 0)
            return torch.full_like(logits, -torch.inf).scatter(1, token.clamp(min=0)[:, None], 0)

        with torch.inference_mode(), evaluating(self.model), mixed(self.model, mixture):
            self._base.generate(
                **batch,
                max_new_tokens=max_new_tokens,
                do_sample=False,
                num_beams=1,
                repetition_penalty=1.0,
                return_dict_in_generate=False,
                logits_processor=[chosen],
                stopping_criteria=[lambda so_far, scores: torch.tensor([ended], device=so_far.device)],
            )

    def carry(self, name: str, adapter: Expert | Lora) -> None:
        """As `Engine.carry`. An expert is frozen and does not become active."""
        with _carrying:
            if name == BASE or name in self.experts:
                raise UserError(f"the engine carries an expert {name!r} already; drop it first, or choose another name")
            model = self.model
            if isinstance(adapter, Lora):
                self.model = attach_lora(model, adapter, name)
                return
            if not isinstance(model, PeftModel):
                model = with_identity(model, {matrix: z.shape for matrix, z in adapter.z.items()})
            if not isinstance(model.base_model, SVFModel):
                raise UserError(
                    "the model already carries adapters of another kind, so it cannot carry experts; load the base "
                    "anew for them"
                )
            model.add_adapter(name, adapter.config)
            layers = plain_modules(model.get_base_model())
            with torch.no_grad():
                for matrix, z in adapter.z.items():
                    cast(SVFLayer, layers[matrix]).svf_z[name].copy_(z)
            self.model = model

    def drop(self, name: str) -> None:
        """As `Engine.drop`."""
        with _carrying:
            if name not in self.experts:
                raise unknown("expert", name, self.experts)
            model = cast(PeftModel, self.model)
            if name in model.peft_config:
                model.delete_adapter(name)
            else:
                cast(SVFModel, model.base_model).drop_lora(name)

    @property
    def generation_config(self) -> GenerationConfig:
        """The checkpoint's own settings for decoding."""
        return cast(GenerationConfig, self._base.generation_config)

    @property
    def _base(self) -> Any:
        """The model that generates. PEFT's own `generate` changes the model while it runs, which other threads see."""
        return self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model

    def _asked(
        self,
        max_new_tokens: int,
        sampling: Sampling,
        ids: Sequence[Sequence[int]],
        mixture: Mixture | None,
        constraint: Constraint | None,
    ) -> _Asked:
        check_sampling(sampling)
        draws = None if sampling.greedy else Draws(sampling, sampling.row_seeds(ids, mixture))
        stops = Stops(text_tokenizer(self.tokenizer), sampling.stop)
        return _Asked(max_new_tokens, constraint, draws, stops, sampling.repetition_penalty)

    def _writing(self, asked: _Asked, queue: Sequence[int]) -> Writing | None:
        """How `decode` writes the rows of a queue; None if it cannot for this model, so that `generate` must."""
        if not self.decodes:
            return None

        def drawn(logits: Tensor, answers: Any, ids: Tensor, rows: Sequence[int]) -> Tensor:
            return cast(Draws, asked.draws)(logits, [queue[place] for place in rows])

        config = copy(self.generation_config)
        if asked.penalty != 1:
            config.repetition_penalty = asked.penalty
        chosen = penalized(config, most_likely if asked.draws is None else drawn)
        if chosen is None:
            return None
        if asked.constraint is not None:
            chosen = constrained(chosen, asked.constraint)
        return Writing(asked.max_new_tokens, end_tokens(self.generation_config), chosen, asked.stopped)

    def _options(self, asked: _Asked, start: int, rows: Sequence[int]) -> dict[str, Any]:
        """Options of transformers' `generate` for one answer to each of some rows, whose prompts take `start` tokens.

        The checkpoint's penalties and end tokens count; its settings for sampling and beams do not.
        """
        processors: list[Any] = [] if asked.constraint is None else [asked.constraint.processor(start)]
        if asked.draws is not None:
            processors.append(DrawnTokens(asked.draws, rows))

        def stopped(ids: Tensor, scores: Any) -> Tensor:
            return torch.tensor([asked.stopped(row) for row in ids[:, start:].tolist()], device=ids.device)

        return {
            "max_new_tokens": asked.max_new_tokens,
            "tokenizer": text_tokenizer(self.tokenizer),
            "do_sample": False,  # sampling leaves only the token that it draws
            "num_beams": 1,
            **({} if asked.penalty == 1 else {"repetition_penalty": asked.penalty}),
            "return_dict_in_generate": False,
            "logits_processor": processors,
            "stopping_criteria": [stopped] if asked.stopped.texts else [],
        }

    def _mixed(self, mixture: Mixture | None, rows: Sequence[int]) -> AbstractContextManager[None]:
        return nullcontext() if mixture is None else mixed(self.model, mixture.rows(rows))

    def _batch(self, prompts: Sequence[str | Chat], ids: list[list[int]]) -> Any:
        """`pad_batch`, with the prompts' pictures for a vision-language model."""
        if not isinstance(self.tokenizer, ProcessorMixin):
            return pad_batch(self.model, self.tokenizer, ids)
        padding = {"padding": True, "padding_side": "left"}
        batch = tokenize_seen(self.tokenizer, prompts, return_tensors="pt", processor_kwargs=padding)
        return batch.to(self.model.device, self.model.dtype)  # the dtype is for the pictures
