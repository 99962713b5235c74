"""vLLM's own server, started with what two passes need of it."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

from experts.engine.vllm import CPU_CACHE, LORAS_AT_ONCE, check_installed, served_rank
from experts.exchange.lora import Lora
from experts.library import ExpertLibrary
from experts.outside.errors import UserError
from selfadapt.base_models import load_base
from selfadapt.two_pass import find_library

KEPT = 32
"""LoRAs in memory, as many as `LoraCache` keeps on disk."""


def run_vllm(
    model: str | None,
    library: str | Path | None,
    dispatch: str | None,
    *,
    host: str,
    port: int,
    api_key: str | None,
    rows: int | None,
    dtype: str | None,
    options: Mapping[str, str],
) -> NoReturn:
    """Replaces this process by vLLM's server.

    Raises:
        UserError: if vLLM is not installed, there are no experts, or one has the full rank.
    """
    check_installed()
    from vllm.platforms import current_platform

    experts = find_library(model, library)
    base = str(load_base(model or experts.base)[0].name_or_path)
    arguments = vllm_arguments(
        experts,
        base,
        served_rank(experts),
        host=host,
        port=port,
        rows=rows,
        dtype=dtype,
        options=options,
        cpu=current_platform.is_cpu(),
    )
    environment = {
        **os.environ,
        "SELFADAPT_LIBRARY": str(experts.folder.resolve()),
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
        **({} if dispatch is None else {"SELFADAPT_DISPATCH": dispatch}),
        **({} if api_key is None else {"VLLM_API_KEY": api_key}),  # not where the list of processes shows it
    }
    sys.stderr.flush()
    os.execve(sys.executable, [sys.executable, "-m", "vllm.entrypoints.cli.main", *arguments], environment)


def vllm_arguments(
    library: ExpertLibrary,
    base: str,
    rank: int,
    *,
    host: str,
    port: int,
    rows: int | None,
    dtype: str | None,
    options: Mapping[str, str],
    cpu: bool,
) -> list[str]:
    """`vllm serve` and its arguments.

    Args:
        base: where the base is.
        rank: the largest rank of a LoRA.
        options: vLLM's own, without leading dashes; they override those chosen here.
        cpu: whether vLLM's build is the one for CPUs.

    Raises:
        UserError: if there are no experts.
    """
    if not library.names:
        raise UserError(
            f"the library {library.folder} has no experts to serve; add some, or serve the base alone with `vllm serve`"
        )
    adapters = [library.adapter(name) for name in library.names]
    matrices = {matrix for one in adapters for matrix in (one.a if isinstance(one, Lora) else one.z)}
    chosen = {
        "served-model-name": library.base,
        "host": host,
        "port": str(port),
        "enable-lora": "",
        "max-lora-rank": str(rank),
        "max-loras": str(LORAS_AT_ONCE),
        "max-cpu-loras": str(KEPT),
        "lora-target-modules": " ".join(sorted({matrix.rpartition(".")[2] for matrix in matrices})),
        "middleware": "selfadapt.serving.TwoPasses",
    }
    if rows is not None:
        chosen["max-num-seqs"] = str(rows)
    if dtype is not None:
        chosen["dtype"] = dtype
    if cpu:
        chosen |= {"dtype": dtype or "float32", "enforce-eager": "", "kv-cache-memory-bytes": str(CPU_CACHE)}
    chosen |= {name.removeprefix("--").replace("_", "-"): value for name, value in options.items()}
    return ["serve", base, *(part for name, value in chosen.items() for part in (f"--{name}", *value.split()))]
