"""The engine that runs a base inside vLLM, with a LoRA for every mixture."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, get_args

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

from experts.engine.context import check_context
from experts.engine.likelihoods import tokenize_pairs
from experts.engine.lora_cache import LoraCache
from experts.engine.sampling import GREEDY, Sampling, check_sampling, cut
from experts.engine.vllm_requests import Requests
from experts.exchange.lora import Lora
from experts.expert import Expert
from experts.library import ExpertLibrary
from experts.mixture import Mixture
from experts.outside.chats import Chat, tokenize
from experts.outside.errors import UserError, check_whole, unknown
from experts.svf.fingerprint import fingerprint

LORAS_AT_ONCE = 8  # mixtures in one step of vLLM; requests under others wait for a place
CPU_CACHE = 2 << 30  # bytes of keys and values on a CPU, where vLLM would take nearly all memory


def check_installed() -> None:
    """Raises UserError, saying how to install it, if vLLM is not here."""
    if find_spec("vllm") is None:
        raise UserError(
            "vLLM is not installed here: run pip install 'selfadapt[vllm]' on a machine with a GPU; on a CPU, run "
            "`make setup-vllm` in a checkout, which creates a separate environment"
        )


class VLLMEngine:
    """Runs a base inside vLLM, with a LoRA for every mixture of its library's experts and LoRAs.

    It also carries others if they adapt no matrices or singular values beyond the library's: vLLM's room for LoRAs is
    fixed when it starts. There is room for each expert and LoRA of the library and for mixtures of experts; a mixture
    in which LoRAs add their ranks may need more, `options={"max_lora_rank": …}`.

    Args:
        base: vLLM loads it from the same place, with its dtype and end tokens; these weights are not kept.
        library: experts of limited rank, and LoRAs; None for the plain base.
        options: for `vllm.LLM`; they override those chosen here.

    Raises:
        UserError: if vLLM is not installed, the library is another base's, or vLLM cannot run base or experts.
    """

    def __init__(
        self,
        base: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | ProcessorMixin,
        library: ExpertLibrary | None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        check_installed()
        if isinstance(tokenizer, ProcessorMixin):
            raise UserError("a vision-language model answers on the native engine only; leave out engine='vllm'")
        self.tokenizer: PreTrainedTokenizerBase | ProcessorMixin = tokenizer
        self.loras: LoraCache | None = None
        self.fingerprint = fingerprint(base) if library is None else library.fingerprint
        self._config = base.config
        self._ends = base.generation_config.eos_token_id
        chosen: dict[str, Any] = {}
        if library is not None:
            # Before the decompositions, which may take a while.
            rank = (options or {}).get("max_lora_rank") or served_rank(library)
            self.loras = LoraCache(library, base, room=rank)
            chosen |= {
                "enable_lora": bool(library.names),
                "max_lora_rank": rank,
                "lora_target_modules": sorted({matrix.rpartition(".")[2] for matrix in self.loras.matrices}),
                "max_loras": LORAS_AT_ONCE,
                "max_cpu_loras": self.loras.keep,
            }
        self._requests = Requests(start_vllm(base, chosen | dict(options or {})))

    @property
    def experts(self) -> Collection[str]:
        return () if self.loras is None else self.loras.experts

    def generate(
        self,
        prompts: Sequence[str | Chat],
        *,
        max_new_tokens: int,
        mixture: Mixture,
        batch_size: int = 32,
        sampling: Sampling = GREEDY,
    ) -> list[str]:
        """As `Engine.generate`; at most `batch_size` prompts are in vLLM at once."""
        check_whole("max_new_tokens", max_new_tokens)
        check_sampling(sampling)
        ids = tokenize(self.tokenizer, prompts)
        check_context(self._config, max(map(len, ids), default=0), max_new_tokens)
        parameters = [
            self._parameters(max_new_tokens, sampling, seed, detokenize=bool(sampling.stop))
            for seed in sampling.row_seeds(ids, mixture)
        ]
        outputs = self._run(ids, parameters, mixture, batch_size)
        tokens = [each.outputs[0].token_ids for each in outputs]
        return [cut(text, sampling.stop) for text in self.tokenizer.batch_decode(tokens, skip_special_tokens=True)]

    def stream(
        self, prompt: str | Chat, *, max_new_tokens: int, mixture: Mixture, sampling: Sampling = GREEDY
    ) -> Iterator[str]:
        """As `Engine.stream`."""
        from vllm.sampling_params import RequestOutputKind

        check_whole("max_new_tokens", max_new_tokens)
        check_sampling(sampling)
        (ids,) = tokenize(self.tokenizer, [prompt])
        check_context(self._config, len(ids), max_new_tokens)
        (seed,) = sampling.row_seeds([ids], mixture)
        parameters = self._parameters(max_new_tokens, sampling, seed, output_kind=RequestOutputKind.DELTA)
        with self._lora_requests(mixture) as loras:
            for _, output in self._requests.run([ids], loras, [parameters]):
                if output.outputs[0].text:
                    yield output.outputs[0].text

    def loglikelihood(
        self, prompts: Sequence[str | Chat], continuations: Sequence[str], *, mixture: Mixture, batch_size: int = 32
    ) -> Tensor:
        """As `Engine.loglikelihood`."""
        heads, tails = tokenize_pairs(self.tokenizer, prompts, continuations)
        ids = [head + tail for head, tail in zip(heads, tails, strict=True)]
        check_context(self._config, max(map(len, ids), default=0), 1)  # vLLM always writes a token
        parameters = self._parameters(1, GREEDY, 0, prompt_logprobs=0, detokenize=False)
        outputs = self._run(ids, [parameters] * len(ids), mixture, batch_size)
        scores = [
            sum(logps[token].logprob for logps, token in zip(output.prompt_logprobs[-len(tail) :], tail, strict=True))
            for output, tail in zip(outputs, tails, strict=True)
        ]
        return torch.tensor(scores)

    def carry(self, name: str, adapter: Expert | Lora) -> None:
        """As `Engine.carry`. The adapter may adapt only what the library's experts and LoRAs do."""
        if self.loras is None:
            raise UserError("vLLM was started without a library, so there is no room for experts; start it with one")
        self.loras.add(name, adapter)

    def drop(self, name: str) -> None:
        """As `Engine.drop`."""
        if self.loras is None:
            raise unknown("expert", name, ())
        self.loras.remove(name)

    def _run(self, ids: list[list[int]], parameters: list[Any], mixture: Mixture, batch_size: int) -> list[Any]:
        """vLLM's output for each row of token ids; rows of one mixture run together."""
        check_whole("batch_size", batch_size)
        if self.loras is not None:
            batch_size = min(batch_size, self.loras.keep)
        group_of = mixture.groups()
        order = sorted(range(len(ids)), key=lambda row: group_of[row])
        outputs: dict[int, Any] = {}
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            with self._lora_requests(mixture.rows(rows)) as loras:
                own = [parameters[row] for row in rows]
                for index, output in self._requests.run([ids[row] for row in rows], loras, own):
                    outputs[rows[index]] = output
        return [outputs[row] for row in range(len(ids))]

    @contextmanager
    def _lora_requests(self, mixture: Mixture) -> Iterator[list[Any]]:
        """The `LoRARequest` of each row, None for the base; their files stay for as long as the block lasts."""
        from vllm.lora.request import LoRARequest

        if self.loras is None:
            if not mixture.is_base:
                raise UserError("vLLM was started without a library, so only the base can answer; start it with one")
            yield [None] * len(mixture)
            return
        with self.loras.hold(mixture) as adapters:
            yield [adapter and LoRARequest(adapter.name, adapter.number, str(adapter.path)) for adapter in adapters]

    def _parameters(self, max_new_tokens: int, sampling: Sampling, seed: int, **more: Any) -> Any:
        """One row's `vllm.SamplingParams`, ending where the base ends; for whole answers unless told otherwise."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        more = {"output_kind": RequestOutputKind.FINAL_ONLY} | more
        if not sampling.greedy:
            more |= {"top_p": sampling.top_p, "top_k": sampling.top_k, "min_p": sampling.min_p, "seed": seed}
        if sampling.stop:
            more["stop"] = list(sampling.stop)
        more |= {"temperature": sampling.temperature, "repetition_penalty": sampling.repetition_penalty}
        try:
            return SamplingParams(max_tokens=max_new_tokens, stop_token_ids=self._ends, **more)
        except Exception as error:  # vLLM's bounds are narrower than ours, and it raises errors of its own kind
            raise UserError(f"vLLM cannot sample like this: {' '.join(str(error).split())}") from error


def start_vllm(base: PreTrainedModel, options: Mapping[str, Any]) -> Any:
    """A `vllm.LLM` of a base, loaded from the same place and in the same dtype.

    Args:
        options: for `vllm.LLM`; they override those chosen here.

    Raises:
        UserError: if vLLM is not installed, or cannot run the base.
    """
    check_installed()
    # In this process: nothing has to be guarded by `if __name__ == "__main__"` or sent to another process.
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    from vllm import LLM
    from vllm.platforms import current_platform

    chosen: dict[str, Any] = {"model": base.name_or_path, "dtype": str(base.dtype).removeprefix("torch.")}
    chosen["disable_log_stats"] = True
    if current_platform.is_cpu():
        chosen["enforce_eager"] = True  # compiling takes minutes
        if "VLLM_CPU_KVCACHE_SPACE" not in os.environ:
            chosen["kv_cache_memory_bytes"] = CPU_CACHE
    if options.get("enable_lora"):
        mend_base_rows()
    try:
        return LLM(**chosen | dict(options))
    except (ValueError, TypeError) as error:
        said = " ".join(str(error).split())
        raise UserError(f"vLLM cannot run {base.name_or_path}: {said}; try the native engine") from error


def mend_base_rows() -> None:
    """Gives rows without a LoRA the plain base; call it in the process that holds the model, before any request.

    On a CPU, vLLM 0.32 looks up such a row's LoRA at index −1 of its slots, which is the last one, so whatever LoRA is
    in it answers the row. On a GPU its kernels leave these rows out.
    """
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    from vllm.lora.ops.torch_ops import lora_ops
    from vllm.lora.punica_wrapper import punica_cpu

    shrink = lora_ops.bgmv_shrink
    if getattr(shrink, "spares_base_rows", False):
        return

    def bgmv_shrink(inputs: Tensor, weights: Tensor, output: Tensor, indices: Tensor, scaling: float = 1.0) -> None:
        shrink(inputs, weights, output, indices, scaling)  # output [tokens, r] is A x
        output[indices < 0] = 0

    bgmv_shrink.spares_base_rows = True  # type: ignore[attr-defined]
    lora_ops.bgmv_shrink = punica_cpu.bgmv_shrink = bgmv_shrink


def served_rank(library: ExpertLibrary) -> int:
    """The smallest of vLLM's ranks that every expert and LoRA of a library fits into.

    Raises:
        UserError: if there is none.
    """
    served = ranks_of_vllm()
    ranks = {}
    for name in library.names:
        adapter = library.adapter(name)
        ranks[name] = max(adapter.ranks.values() if isinstance(adapter, Lora) else map(len, adapter.z.values()))
    for name, rank in ranks.items():
        if rank > served[-1]:
            has = f"LoRA {name!r} has rank {rank}" if library.is_lora(name) else ""
            has = has or f"expert {name!r} adapts {rank} singular values of a matrix"
            nearest = f"the largest ranks of a LoRA there are {served[-2]} and {served[-1]}"
            raise UserError(
                f"the {has}, which is too much for vLLM: {nearest}; remove it from the library, and serve what "
                "`selfadapt export` makes of it, merged or as a LoRA of one of these ranks"
            )
    return min(rank for rank in served if rank >= max(ranks.values(), default=0))


def ranks_of_vllm() -> list[int]:
    """The ranks of LoRAs that vLLM supports, smallest first."""
    from vllm.config.lora import MaxLoRARanks

    return sorted(get_args(MaxLoRARanks))
