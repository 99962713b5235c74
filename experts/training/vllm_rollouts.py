"""Samples that vLLM writes. An expert of limited rank is a LoRA there: A = Vᵀ, B = U diag(s (z − 1)).

The base in vLLM does not change, and no weights are sent to it; at every step it gets another LoRA. vLLM computes the
distribution it draws from with its own kernels, so it also reports how likely it found each token
(`reinforce.importance`).
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, cast

import torch
from peft import PeftConfig, PeftModel
from transformers import PreTrainedModel

from experts.engine.vllm import check_installed, ranks_of_vllm, start_vllm
from experts.exchange.lora import Lora
from experts.outside.errors import UserError
from experts.svf import SVFConfig, SVFLinear
from experts.svf.names import plain_modules
from experts.training.processes import processes


class Sampled(NamedTuple):
    """A completion, and log μ of each of its tokens, in nats."""

    tokens: list[int]
    logps: list[float]


class VLLMRollouts:
    """vLLM beside a training, in the same process and on the same device.

    Args:
        base: the base, which vLLM loads from the same place.
        ends: the tokens that end a completion.
        temperature: the temperature at which tokens are drawn.
        options: for `vllm.LLM`.

    Raises:
        UserError: if vLLM is not installed, or cannot run the base.
    """

    def __init__(
        self,
        base: PreTrainedModel,
        adapter: SVFConfig,
        *,
        ends: Collection[int],
        max_new_tokens: int,
        temperature: float,
        **options: Any,
    ) -> None:
        from vllm import SamplingParams

        room = next(rank for rank in ranks_of_vllm() if rank >= cast(int, adapter.rank))
        targets = sorted({matrix.rpartition(".")[2] for matrix in adapted(base)})
        self._llm = start_vllm(
            base,
            {
                "enable_lora": True,
                "max_lora_rank": room,
                "max_loras": 1,
                "lora_target_modules": targets,
                "logprobs_mode": "processed_logprobs",  # at the temperature
                **options,
            },
        )
        self._parameters = SamplingParams(
            max_tokens=max_new_tokens,
            temperature=temperature,
            stop_token_ids=[*ends],
            logprobs=0,
            detokenize=False,
        )
        self._numbers = itertools.count(1)

    def sample(self, model: PeftModel, prompts: Sequence[Sequence[int]], samples: int) -> list[Sampled]:
        """`samples` completions of each prompt under the active expert, side by side."""
        from vllm.lora.request import LoRARequest

        parameters = []
        for seed in torch.randint(1 << 31, (len(prompts),)).tolist():
            own = self._parameters.clone()
            own.n, own.seed = samples, seed
            parameters.append(own)
        with TemporaryDirectory() as folder:
            path = Path(folder) / "expert"
            as_lora(model).write(path)
            number = next(self._numbers)
            outputs = self._llm.generate(
                [{"prompt_token_ids": [*prompt]} for prompt in prompts],
                parameters,
                lora_request=LoRARequest(f"step-{number}", number, str(path)),
                use_tqdm=False,
            )
        return [
            Sampled(
                [*one.token_ids], [said[token].logprob for token, said in zip(one.token_ids, one.logprobs, strict=True)]
            )
            for output in outputs
            for one in output.outputs
        ]


def _sampled(completion: Any) -> Sampled:
    tokens = [*completion.token_ids]
    return Sampled(tokens, [of[token].logprob for token, of in zip(tokens, completion.logprobs, strict=True)])


def as_lora(model: PeftModel) -> Lora:
    """The active expert, which must have limited rank, as a LoRA."""
    a, b = {}, {}
    for matrix, layer in adapted(model.get_base_model()).items():
        (active,) = layer.active_adapters
        z = layer.svf_z[active].detach()
        r = len(z)
        a[matrix] = layer.svf_vt[:r].float().cpu()
        b[matrix] = (layer.svf_u[:, :r].float() * (layer.svf_s[:r] * (z - 1))).cpu()
    return Lora(a, b)


def adapted(base: Any) -> dict[str, SVFLinear]:
    """The matrices that carry experts, by their names in the base."""
    return {name: module for name, module in plain_modules(base).items() if isinstance(module, SVFLinear)}


def check_rollouts(
    adapter: PeftConfig, *, sharded: bool, few_answers: bool, pictures: bool, drawing: Collection[str]
) -> None:
    """Raises UserError for a training whose samples vLLM cannot write."""
    check_installed()
    largest = ranks_of_vllm()[-1]
    why = None
    if not isinstance(adapter, SVFConfig) or adapter.rank is None or adapter.rank > largest:
        why = f"trains only SVF experts of rank {largest} or less: set adapt.rank"
    elif sharded or processes().num_processes > 1:
        why = "runs on one process that holds the whole base: start only one, without shard_base"
    elif few_answers or pictures:
        why = "supports neither pictures nor domains with a fixed set of answers"
    elif drawing:
        why = f"can only sample at a temperature: leave {sorted(drawing)[0]} out of trainer"
    if why:
        raise UserError(f"rollouts: vllm {why}; or use rollouts: native")
