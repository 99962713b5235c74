"""The protocol of engines: what every engine can do, and the most that a dispatcher may ask of one."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Protocol

from torch import Tensor
from transformers import PreTrainedTokenizerBase, ProcessorMixin

from experts.engine.sampling import GREEDY, Sampling
from experts.exchange.lora import Lora
from experts.expert import Expert
from experts.mixture import Mixture
from experts.outside.chats import Chat


class Engine(Protocol):
    """Runs a base that carries experts, each row of a call under its own mixture of them.

    An engine keeps nothing from a call: calls and streams may overlap freely, in one thread or in many. Answers are
    greedy and end where the base ends them, unless a call asks for something else.
    """

    tokenizer: PreTrainedTokenizerBase | ProcessorMixin
    """The base's tokenizer; for a vision-language model its processor."""

    @property
    def experts(self) -> Collection[str]:
        """The names of the experts and LoRAs that mixtures may name."""

    @property
    def fingerprint(self) -> str:
        """The base's fingerprint (`experts.svf.fingerprint`): whoever brings experts checks that they are for it."""

    def generate(
        self,
        prompts: Sequence[str | Chat],
        *,
        max_new_tokens: int,
        mixture: Mixture,
        batch_size: int = 32,
        sampling: Sampling = GREEDY,
    ) -> list[str]:
        """The answer to each prompt, in the prompts' order; prompt b is answered under row b of the mixture.

        Answers do not depend on what else is in a batch, sampled ones no more than greedy ones.

        Raises:
            UserError: if a prompt and its answer do not fit the model's context, the mixture does not have one row per
                prompt or names an expert that the engine does not carry, or a number is below 1.
        """

    def stream(
        self, prompt: str | Chat, *, max_new_tokens: int, mixture: Mixture, sampling: Sampling = GREEDY
    ) -> Iterator[str]:
        """The answer to one prompt, piece by piece as it is written.

        Raises:
            UserError: as `generate` does, with the first piece.
        """

    def loglikelihood(
        self, prompts: Sequence[str | Chat], continuations: Sequence[str], *, mixture: Mixture, batch_size: int = 32
    ) -> Tensor:
        """log p(continuation | prompt) of each pair, in nats, summed over the continuation's tokens: [B], float32.

        Raises:
            UserError: if the lists differ in length, a continuation is empty, or a pair does not fit the context.
        """

    def carry(self, name: str, adapter: Expert | Lora, /) -> None:
        """Adds an expert or a LoRA, which mixtures may name from now on. Nothing changes for calls that do not.

        Nothing checks that it belongs to this base.

        Raises:
            UserError: if the name is taken, or the engine has no room for it.
        """

    def drop(self, name: str) -> None:
        """Lets an expert or a LoRA go; calls that run under it finish as they began.

        Raises:
            UserError: if there is none of that name.
        """
