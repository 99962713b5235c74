"""`selfadapt serve`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

from selfadapt.verbs.loading import FromOptions, Loading

KEY = "SELFADAPT_API_KEY"


def serve(
    model: str | None = None,
    library: Path | None = None,
    dispatch: str | None = None,
    engine: Literal["native", "vllm"] = "native",
    host: str = "127.0.0.1",
    port: int = 8000,
    api_key: str | None = None,
    rows: int | None = None,
    queue: int | None = None,
    max_body_mib: int | None = None,
    base: FromOptions = Loading(),
    vllm_options: dict[str, str] | None = None,
    page: bool = False,
    runs: Path = Path("runs"),
) -> None:
    """Serve a base and its experts to OpenAI's clients: every request under a mixture of its own.

    Args:
        model: a built-in name, a hub id or a folder; by default the library's base.
        library: a folder of experts, or a repository on the hub; by default those that come with the base. Experts may
            be added and removed while the server runs.
        dispatch: who chooses the experts where a client asks for the model "auto"; by default "embedding".
        engine: what runs the base: this library itself, or vLLM, where it is installed (docs/serving.md).
        host: the address to listen on; 0.0.0.0 lets other machines in.
        port: the port to listen on.
        api_key: what clients must send; $SELFADAPT_API_KEY does the same without a trace in the list of processes.
        rows: answers that are written at once, 32 by default; more need more memory.
        queue: answers that may wait for a place, 256 by default; beyond it clients are told to try again (429).
        max_body_mib: the largest request in MiB, 8 by default.
        base: how the base is loaded.
        vllm_options: vLLM's own, which override those chosen here, such as "tensor-parallel-size 2 max-model-len 4096".
        page: serve a page to play with at /page, the one of `selfadapt play`.
        runs: the folder whose trainings the page shows.
    """
    from experts.outside.errors import UserError, check_whole, not_installed

    check_whole("--port", port, least=0, most=65535)
    natives = {"--queue": queue, "--max-body-mib": max_body_mib}
    for name, number in {"--rows": rows, **natives}.items():
        if number is not None:
            check_whole(name, number)
    key = api_key if api_key is not None else os.environ.get(KEY)
    if key is not None and (not key or not key.isascii() or not key.isprintable()):
        raise UserError(f"--api-key and ${KEY} must be printable ASCII and not empty; leave them out for no key")
    where: Any = {"host": host, "port": port, "api_key": key}
    if page and key is not None:
        raise UserError("a browser sends no API key: leave out --page, or the key")
    if engine == "vllm":
        if page:
            raise UserError("--page is only for the native engine; leave it out")
        if given := [
            name
            for name, value in {**natives, "--device": base.device, "--quantization": base.quantization}.items()
            if value is not None
        ]:
            raise UserError(f"{given[0]} is only for the native engine; leave it out")
        from selfadapt.serving.vllm_command import run_vllm

        run_vllm(model, library, dispatch, **where, rows=rows, dtype=base.dtype, options=vllm_options or {})
    if vllm_options:
        raise UserError("--vllm-options are for vLLM; leave them out for the native engine")
    try:
        from selfadapt.serving.running import run_native
    except ImportError as error:
        raise not_installed("the server", str(error.name), "serve") from error
    beside: Any = {}
    if page:
        from selfadapt.verbs.play import page_with

        beside = {"around": page_with(runs)}
    run_native(
        model,
        library,
        dispatch,
        **where,
        rows=rows or 32,
        queue=queue or 256,
        most_bytes=(max_body_mib or 8) << 20,
        **base.options(),
        **beside,
    )
