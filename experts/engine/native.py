"""The engine that needs nothing but transformers and PEFT."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from threading import Event, RLock
from typing import Any, cast

import torch
from peft import PeftModel, get_peft_model
from torch import Tensor
from transformers import (
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
    TextIteratorStreamer,
)

from experts.engine.batches import pad_batch, plan_batches, plan_queues
from experts.engine.constrained import Constraint
from experts.engine.context import check_context
from experts.engine.decoding import Choose, Writing, can_decode, constrained, decode, end_tokens, greedy
from experts.engine.forward import evaluating, last_positions, mixed, position_ids
from experts.engine.likelihoods import log_p_of_tails, tokenize_pairs
from experts.engine.streaming import stream_from_thread
from experts.expert import Expert
from experts.mixture import Mixture
from experts.outside.chats import Chat, read_prompts, tokenize, tokenize_seen
from experts.outside.errors import UserError, check_whole, unknown
from experts.outside.pictures import text_tokenizer
from experts.svf import SVFLinear, SVFModel
from experts.svf.fingerprint import fingerprint
from experts.svf.names import plain_modules

BASE = "base"  # the name of the identity expert; no expert of a library may have it
_carrying = RLock()


@dataclass(eq=False)
class NativeEngine:
    """A transformers model, or one that carries experts in PEFT's way, and its tokenizer.

    Batches are either of one mixture each, on merged weights, or of any mixtures, in factor space: whichever costs less
    (`experts.engine.batches`). A mixture of None leaves the model as it is: under whatever adapters are active.

    Args:
        tokenizer: of a vision-language model its processor; a part {"type": "image", "image": …} is then a picture.
    """

    model: PreTrainedModel | PeftModel
    tokenizer: PreTrainedTokenizerBase | ProcessorMixin

    @property
    def experts(self) -> Collection[str]:
        return self.model.peft_config.keys() - {BASE} if isinstance(self.model, PeftModel) else ()

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
        on_batch: Callable[[int], None] = lambda answered: None,
        constraint: Constraint | None = None,
    ) -> list[str]:
        """As `Engine.generate`.

        Args:
            on_batch: hears how many more prompts are answered.
            constraint: the answers that may be given; None allows any.
        """
        check_whole("max_new_tokens", max_new_tokens)
        check_whole("batch_size", batch_size)
        prompts = read_prompts(prompts)
        ids = tokenize(self.tokenizer, prompts)
        lengths = [len(row) for row in ids]
        check_context(self.model.config, max(lengths, default=0), max_new_tokens)
        choose = self._choice(constraint)
        ends = end_tokens(self.generation_config)
        decoder = cast(Any, text_tokenizer(self.tokenizer))
        answers = [""] * len(ids)

        def written(queue: Sequence[int]) -> Iterator[tuple[int, list[int]]]:
            """The places in a queue, and the tokens of their answers, as they come."""
            own = [ids[row] for row in queue]
            under = None if mixture is None else mixture.rows(queue)
            if choose is not None:
                yield from decode(
                    self.model, own, Writing(max_new_tokens, ends, choose), rows_at_once=batch_size, mixture=under
                )
                return
            for start in range(0, len(queue), batch_size):
                places = range(start, min(start + batch_size, len(queue)))
                batch = self._batch([prompts[queue[place]] for place in places], [own[place] for place in places])
                with self._mixed(under, places):
                    yield from zip(places, self._generated(batch, max_new_tokens, constraint), strict=True)

        with evaluating(self.model):
            for queue in plan_queues(self.model, lengths, max_new_tokens, mixture, batch_size):
                for place, tokens in written(queue):
                    answers[queue[place]] = decoder.decode(tokens, skip_special_tokens=True)
                    on_batch(1)
        return answers

    def stream(self, prompt: str | Chat, *, max_new_tokens: int, mixture: Mixture) -> Iterator[str]:
        """As `Engine.stream`. A thread of its own writes; any thread may ask for the next piece."""
        check_whole("max_new_tokens", max_new_tokens)
        ids = tokenize(self.tokenizer, [prompt])
        check_context(self.model.config, len(ids[0]), max_new_tokens)
        batch = self._batch([prompt], ids)
        decoder = cast(Any, text_tokenizer(self.tokenizer))
        pieces = TextIteratorStreamer(decoder, skip_prompt=True, skip_special_tokens=True)

        def write(abandoned: Event) -> None:
            with torch.inference_mode(), evaluating(self.model), mixed(self.model, mixture):
                self._base.generate(
                    **batch,
                    **self._greedy(max_new_tokens),
                    streamer=pieces,
                    stopping_criteria=[lambda ids, scores: torch.full((len(ids),), abandoned.is_set())],
                )

        yield from stream_from_thread(write, pieces)

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

    def carry(self, name: str, expert: Expert) -> None:
        """As `Engine.carry`. The expert is frozen, and not among those that are active."""
        with _carrying:
            if name == BASE or name in self.experts:
                raise UserError(f"the engine carries an expert {name!r} already; drop it first, or choose another name")
            model = self.model
            if not isinstance(model, PeftModel):
                # The first expert of a base would be the active one, which calls that are running would see. They see
                # the identity, which is the base bit for bit.
                identity = Expert({matrix: torch.ones_like(z) for matrix, z in expert.z.items()})
                model = cast(PeftModel, get_peft_model(model, identity.config, BASE)).eval()
            if not isinstance(model.base_model, SVFModel):
                raise UserError("the model carries adapters of another kind, beside which there is no room for experts")
            model.add_adapter(name, expert.config)
            layers = plain_modules(model.get_base_model())
            with torch.no_grad():
                for matrix, z in expert.z.items():
                    cast(SVFLinear, layers[matrix]).svf_z[name].copy_(z)
            self.model = model

    def drop(self, name: str) -> None:
        """As `Engine.drop`."""
        with _carrying:
            if name not in self.experts:
                raise unknown("expert", name, self.experts)
            cast(PeftModel, self.model).delete_adapter(name)

    @property
    def generation_config(self) -> GenerationConfig:
        """What the checkpoint asks for in decoding."""
        return cast(GenerationConfig, self._base.generation_config)

    @property
    def _base(self) -> Any:
        """What generates. PEFT's own `generate` changes the model while it runs, under the eyes of other threads."""
        return self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model

    def _choice(self, constraint: Constraint | None) -> Choose | None:
        """How `decode` finds the next token; None if it cannot write this model's answers, and `generate` must."""
        if isinstance(self.tokenizer, ProcessorMixin) or not can_decode(self.model):
            return None
        choose = greedy(self.generation_config)
        return choose if choose is None or constraint is None else constrained(choose, constraint)

    def _generated(self, batch: Any, max_new_tokens: int, constraint: Constraint | None) -> list[list[int]]:
        """The new tokens of a batch, by transformers' `generate`."""
        length = batch["input_ids"].shape[1]
        processors = [] if constraint is None else [constraint.processor(length)]
        output = self._base.generate(**batch, **self._greedy(max_new_tokens), logits_processor=processors)
        return output[:, length:].tolist()

    def _mixed(self, mixture: Mixture | None, rows: Sequence[int]) -> AbstractContextManager[None]:
        return nullcontext() if mixture is None else mixed(self.model, mixture.rows(rows))

    def _batch(self, prompts: Sequence[str | Chat], ids: list[list[int]]) -> Any:
        """`pad_batch`, and of a vision-language model the prompts' pictures."""
        if not isinstance(self.tokenizer, ProcessorMixin):
            return pad_batch(self.model, self.tokenizer, ids)
        padding = {"padding": True, "padding_side": "left"}
        batch = tokenize_seen(self.tokenizer, prompts, return_tensors="pt", processor_kwargs=padding)
        return batch.to(self.model.device, self.model.dtype)  # the dtype is that of the pictures

    def _greedy(self, max_new_tokens: int) -> dict[str, Any]:
        """Options of `generate` for one greedy answer a row, whatever a checkpoint asks for of samples and beams.

        Its penalties and ends count.
        """
        one = {"do_sample": False, "num_beams": 1, "return_dict_in_generate": False}
        return {"max_new_tokens": max_new_tokens, "tokenizer": text_tokenizer(self.tokenizer), **one}
