"""The plugin that tells vLLM which LoRA a model's name stands for; every vLLM in the environment loads it."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack

from vllm.lora.request import LoRARequest
from vllm.lora.resolver import LoRAResolver, LoRAResolverRegistry

from experts.engine.vllm import mend_base_rows
from experts.outside.errors import UserError


def register() -> None:
    """The entry point `selfadapt` of the group `vllm.general_plugins`."""
    mend_base_rows()
    LoRAResolverRegistry.register_resolver("selfadapt", MixtureResolver())


class MixtureResolver(LoRAResolver):
    """Resolves `mix:code=0.3,math=0.7`, or an expert's name, to a LoRA that is made when it is first asked for."""

    def __init__(self) -> None:
        self._for_good = ExitStack()
        self._kept = 0

    async def resolve_lora(self, base_model_name: str, lora_name: str) -> LoRARequest | None:
        """The LoRA of a mixture; None for names that other resolvers may know.

        Raises:
            UserError: if the name has a mistake in it or means the base, vLLM's base is not the library's, or room is
                short.
        """
        return await asyncio.to_thread(self._resolve, base_model_name, lora_name)

    def _resolve(self, base_model_name: str, lora_name: str) -> LoRARequest | None:
        # vLLM loads this plugin in all its processes; only the one that answers requests needs the rest.
        from experts.engine.lora_cache import read_mixture_name
        from selfadapt.serving.names import is_ours
        from selfadapt.serving.two_passes import check_base, serving

        loras = serving().loras
        if not is_ours(lora_name, loras.library):
            return None
        check_base(base_model_name)
        mixture = read_mixture_name(lora_name, loras.library)
        if mixture.is_base:
            raise UserError(f"{lora_name!r} is the base itself; name the base, or no model")
        if not loras.holds(mixture):  # vLLM may come back for the file at any time, and will not ask again
            if self._kept == loras.keep:
                raise UserError(
                    f"{loras.keep} mixtures are on disk, and only the middleware knows which are no longer needed; "
                    "start the server with --middleware selfadapt.serving.TwoPasses"
                )
            self._for_good.enter_context(loras.hold(mixture))
            self._kept += 1
        with loras.hold(mixture) as (adapter,):
            assert adapter is not None
            return LoRARequest(lora_name, adapter.number, str(adapter.path))
