"""Makes ordinary checkpoints of GPTQ's and AWQ's, whose codes of a few bits are packed into int32.

For a linear layer, both keep codes q [n, m], and a scale and a zero point for each group of its n inputs, [groups, m]:
Wᵀ = scale · (q − zero). GPTQ (arXiv 2210.17323) packs codes along the inputs, whose groups are in `g_idx` [n], and
stores zeros minus one. AWQ (arXiv 2306.00978) packs along the outputs, every eight of them in its own order.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experts.outside.errors import UserError
from experts.outside.files import atomic_folder, cache_folder, write_json

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)

CONVERSION = 1
"""The version of this module's unpacking; files that another version unpacked are not used."""

PACKED = ("gptq", "awq")
AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)
"""The place of each of eight outputs in its int32."""
CONV1D = ("gpt2", "openai-gpt")
"""Model types whose matrices are kept [n, m]."""
SUFFIXES = (".json", ".jinja", ".model", ".py", ".tiktoken", ".txt")
"""Of a checkpoint's files that hold no weights."""


def unpacked_weight(parts: Mapping[str, Tensor], quantization: Mapping[str, Any]) -> Tensor:
    """Wᵀ [n, m], in the dtype of its scales: what a layer of few bits multiplies by.

    Args:
        parts: `qweight`, `qzeros` and `scales` of a layer, and GPTQ's `g_idx` where there is one.
        quantization: the checkpoint's `quantization_config`, which `check_packed` has accepted.
    """
    import torch

    bits, scales = int(quantization["bits"]), parts["scales"]
    if quantization["quant_method"] == "awq":
        codes, zeros = (_in_awq_order(_unpacked(parts[name], bits)) for name in ("qweight", "qzeros"))
    else:
        codes = _unpacked(parts["qweight"].T, bits).T
        stored_less = 0 if _format(quantization) == "gptq_v2" else 1
        zeros = (_unpacked(parts["qzeros"], bits) + stored_less) % 2**bits
    n = len(codes)
    in_order = torch.arange(n) // (n // len(scales))
    groups = parts["g_idx"].long() if parts.get("g_idx", in_order[:0]).numel() else in_order  # [n]
    return ((codes - zeros[groups]) * scales.float()[groups]).to(scales.dtype)


def _unpacked(words: Tensor, bits: int) -> Tensor:
    """Codes [rows, columns · 32 / bits] of int32 words [rows, columns], the lowest bits first."""
    import torch

    shifts = torch.arange(0, 32, bits, dtype=torch.int32)
    return ((words[..., None] >> shifts) & (2**bits - 1)).flatten(1)


def _in_awq_order(codes: Tensor) -> Tensor:
    return codes.unflatten(1, (-1, len(AWQ_ORDER)))[..., list(AWQ_ORDER)].flatten(1)


def _format(quantization: Mapping[str, Any]) -> str:
    """What a method's tools call their way of packing; not all say, and the key differs."""
    names = ("checkpoint_format", "format", "version")
    return next((str(quantization[name]).lower() for name in names if quantization.get(name)), "")


def check_packed(quantization: Mapping[str, Any], source: str) -> None:
    """Raises UserError for a way of packing that is not supported."""
    method, bits, kind = quantization["quant_method"], quantization.get("bits"), _format(quantization)
    known = {"gptq": ("", "gptq", "gptq_v2"), "awq": ("", "gemm")}[method]
    if bits not in {"gptq": (2, 4, 8), "awq": (4,)}[method] or kind not in known or quantization.get("dynamic"):
        what = f"{bits} bits" + (f", {kind}" if kind else "") + (", dynamic" if quantization.get("dynamic") else "")
        raise UserError(
            f"{source!r} is packed in a way that is not supported ({method}, {what}); load the checkpoint that it was "
            "made from, with quantization='nf4' if memory is short"
        )


def unpacked_folder(folder: Path, source: str) -> Path:
    """An ordinary checkpoint in the cache folder for one of GPTQ's or AWQ's, made if it is not there yet.

    It is made one file at a time, in the dtype of the scales: two bytes per weight.

    Raises:
        UserError: as `check_packed` does, or if the checkpoint has no safetensors files, or a layer lacks a part.
    """
    from filelock import FileLock

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    quantization = (config if "quantization_config" in config else config["text_config"]).pop("quantization_config")
    check_packed(quantization, source)
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise UserError(
            f"{source!r} has no safetensors files, and packed weights are read only from those; save it as safetensors"
        )
    kept = cache_folder() / "bases" / f"unpacked-{_identity(folder, files)}-{CONVERSION}"
    kept.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(kept.parent / f".{kept.name}.lock"):
        if not kept.exists():
            logger.warning("unpacking %s, once, and keeping the result in %s", source, kept)
            with atomic_folder(kept) as unfinished:
                _unpack(folder, files, config, quantization, unfinished)
    return kept


def _identity(folder: Path, files: list[Path]) -> str:
    """A hash that identifies a checkpoint: its configuration, and each file's header, size and modification time."""
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for file in files:
        stat = file.stat()
        digest.update(f"{file.name} {stat.st_size} {stat.st_mtime_ns}".encode())
        with file.open("rb") as stream:
            digest.update(stream.read(1 << 16))
    return digest.hexdigest()[:32]


def _unpack(
    folder: Path, files: list[Path], config: Mapping[str, Any], quantization: Mapping[str, Any], target: Path
) -> None:
    from safetensors import safe_open
    from safetensors.torch import save_file

    for path in folder.iterdir():
        if path.suffix in SUFFIXES and not path.name.endswith(".index.json"):
            shutil.copyfile(path, target / path.name)
    write_json(target / "config.json", config)
    places: dict[str, str] = {}
    with ExitStack() as stack:
        opened = [stack.enter_context(safe_open(file, "pt")) for file in files]
        names = [each.keys() for each in opened]
        found = {name: each for each, own in zip(opened, names, strict=True) for name in own}
        for file, own in zip(files, names, strict=True):
            tensors = dict(_dense(own, found, quantization, config["model_type"] in CONV1D))
            save_file(tensors, target / file.name, {"format": "pt"})
            places |= dict.fromkeys(tensors, file.name)
    if len(files) > 1:
        write_json(target / "model.safetensors.index.json", {"metadata": {}, "weight_map": places})


def _dense(
    names: list[str], found: Mapping[str, Any], quantization: Mapping[str, Any], transposed: bool
) -> Iterator[tuple[str, Tensor]]:
    """The dense tensors of a file by name: those of the layers whose codes it has, wherever their other parts are."""
    for name in names:
        layer, _, part = name.rpartition(".")
        if f"{layer}.qweight" not in found or part not in ("qweight", "qzeros", "scales", "g_idx"):
            yield name, found[name].get_tensor(name)
        elif part == "qweight":
            parts = [each for each in ("qweight", "qzeros", "scales", "g_idx") if f"{layer}.{each}" in found]
            if missing := {"qzeros", "scales"}.difference(parts):
                raise UserError(
                    f"the checkpoint has {name}, but no {layer}.{min(missing)}; it is incomplete: fetch it again"
                )
            read = {each: found[f"{layer}.{each}"].get_tensor(f"{layer}.{each}") for each in parts}
            weight = unpacked_weight(read, quantization)
            yield f"{layer}.weight", (weight if transposed else weight.T).contiguous()
