"""Bases of few bits: quantised by bitsandbytes while they are loaded, or so on disk already, by it or by others.

What others have quantised is dequantised where that needs no accelerator: by transformers while it loads
(`dequantising`), or once before (`selfadapt.bases.packed`).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial
from importlib.util import find_spec
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, cast

from experts.outside.errors import UserError, not_installed, unknown
from selfadapt.bases.packed import PACKED

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import BitsAndBytesConfig, PreTrainedConfig, PreTrainedModel
    from transformers.utils.quantization_config import QuantizationConfigMixin

    from experts.svf.quantised import DenseWeight

logger = logging.getLogger(__name__)

FARTHEST = 0.7  # ‖W_q − W‖ / ‖W_q‖; four bits have 0.1, and strangers 1.4
READ = ("bitsandbytes", *PACKED, "fp8", "mxfp4", "compressed-tensors")
"""What checkpoints may be quantised by."""
NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
"""As QLoRA has it (arXiv 2305.14314): 4.13 bits a weight."""
KINDS = ("nf4", "fp4")
"""What four bits may stand for."""
NAMED: dict[str, dict[str, Any]] = {
    "nf4": NF4,
    "nf4-svd": {**NF4, "svd_rank": 128},
    "int8": {"load_in_8bit": True},
}
"""`svd_rank` is ours: the number of singular triplets to keep beside four bits. The rest is `BitsAndBytesConfig`'s."""


def bitsandbytes_config(
    quantization: str | Mapping[str, Any], dtype: torch.dtype | str, config: PreTrainedConfig
) -> tuple[BitsAndBytesConfig, int]:
    """What transformers needs to load a base of this configuration in few bits, and the number of triplets to keep.

    Args:
        quantization: a name in `NAMED`, or a mapping of arguments like those it stands for.
        dtype: of all that is not quantised, and of the products of 4-bit weights unless they say another.

    Raises:
        UserError: if it means nothing, bitsandbytes is not installed, or the checkpoint is quantised already.
    """
    import torch
    from transformers import BitsAndBytesConfig

    if isinstance(quantization, str) and quantization not in NAMED:
        raise unknown("quantization", quantization, NAMED)
    if not isinstance(quantization, str | Mapping):
        raise UserError(f"quantization must be one of {', '.join(NAMED)}, or a mapping, not {quantization!r}")
    if quantised_by(config) is not None:
        raise UserError("the checkpoint is quantised already: leave 'quantization' out")
    if find_spec("bitsandbytes") is None:
        raise not_installed("a base in 4 or 8 bits", "bitsandbytes", "quantised")
    arguments = dict(NAMED[quantization] if isinstance(quantization, str) else quantization)
    kept = arguments.pop("svd_rank", 0)
    if isinstance(kept, bool) or not isinstance(kept, int) or kept < 0:
        raise UserError(f"svd_rank must be the number of singular triplets to keep, not {kept!r}")
    if kept:
        if arguments.get("load_in_8bit"):
            raise UserError("svd_rank keeps singular triplets beside four bits; leave it or load_in_8bit out")
        arguments = NF4 | arguments
    if arguments.get("load_in_4bit"):
        own = getattr(config, "dtype", None) if dtype == "auto" else dtype
        arguments.setdefault("bnb_4bit_compute_dtype", own or torch.float32)
        if arguments.get("bnb_4bit_quant_type", "fp4") not in KINDS:
            raise unknown("bnb_4bit_quant_type", str(arguments["bnb_4bit_quant_type"]), KINDS)
    known = signature(BitsAndBytesConfig).parameters
    for name in arguments:
        if name not in known:
            raise unknown("argument of quantization", name, known)
    try:
        made = BitsAndBytesConfig(**arguments)
    except (TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"bitsandbytes does not take quantization {arguments!r}: {' '.join(str(error).split())}"
        ) from error
    if not (made.load_in_4bit or made.load_in_8bit):
        raise UserError(
            f"quantization must be one of {', '.join(NAMED)}, or have load_in_4bit or load_in_8bit among its arguments"
        )
    return made, kept


def remember_dense(model: PreTrainedModel, folder: Path, dtype: torch.dtype, kept: int) -> None:
    """Tells each layer of a base that was quantised while it was loaded where its checkpoint has the dense weight.

    Where a checkpoint has other names, or no safetensors files, nothing is told, which is said: what the few bits stand
    for is decomposed then.

    Args:
        kept: the number of singular triplets to keep beside each layer's four bits.

    Raises:
        UserError: if there are triplets to keep of weights that the checkpoint does not have, or the head is quantised.
    """
    from bitsandbytes.nn import Linear4bit, Linear8bitLt
    from safetensors import safe_open
    from torch import nn

    from experts.svf.decomposition import each_matrix
    from experts.svf.quantised import DenseWeight, is_quantised, is_transposed, keep_triplets

    files: dict[str, Path] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            files |= dict.fromkeys(file.keys(), path)
    # A head that is tied to the embeddings has their weight, which is dense.
    if isinstance(head := model.get_output_embeddings(), Linear4bit | Linear8bitLt):
        name = next(name for name, module in model.named_modules() if module is head)
        raise UserError(f"quantization leaves the head as it is: add {name!r} to llm_int8_skip_modules")
    layers = {f"{name}.weight": m for name, m in model.named_modules() if isinstance(m, nn.Linear) and is_quantised(m)}
    sources = {key: DenseWeight(files[key], key, dtype, is_transposed(layers[key])) for key in layers if key in files}
    near = (_is_near(layers[key], source) for key, source in sources.items())
    if sources.keys() != layers.keys() or not all(near):
        if kept:
            raise UserError(
                f"the checkpoint in {folder} does not have the dense weights under the layers' names in safetensors "
                "files, so their singular triplets cannot be kept; use quantization='nf4'"
            )
        logger.warning(
            "the checkpoint in %s has no dense weights under the layers' names: the quantised weights are decomposed "
            "instead, and experts of the dense base have a different effect on them",
            folder,
        )
        return
    for key, layer in layers.items():
        layer.dense_source = sources[key]  # type: ignore[assignment]
    if kept:
        each_matrix(partial(keep_triplets, rank=kept), [*layers.values()], model.device)
        # transformers would save and dequantise the bits without the triplets.
        quantizer = cast(Any, model).hf_quantizer
        quantizer.is_serializable = quantizer.dequantize = _refuse_bits_alone


def _refuse_bits_alone(*_: Any, **__: Any) -> NoReturn:
    raise UserError(
        "this base keeps singular triplets beside its four bits, which transformers would drop: save or dequantise one "
        "loaded with quantization='nf4', or use the dense base"
    )


def _is_near(layer: nn.Module, source: DenseWeight) -> bool:
    """Whether a layer is a rounding of a dense weight; one whose rows stand in another order is as far as strangers."""
    from experts.svf.quantised import dequantised

    wanted, found = source.read().float(), dequantised(layer).cpu().float()
    return wanted.shape == found.shape and bool((wanted - found).norm() < FARTHEST * found.norm())


def quantised_by(config: PreTrainedConfig) -> str | None:
    """The method that a checkpoint is quantised by; None where its weights are dense."""
    for part in (config, config.get_text_config()):
        quantization = getattr(part, "quantization_config", None)
        if quantization:
            own = quantization if isinstance(quantization, Mapping) else quantization.to_dict()
            return str(getattr(own.get("quant_method"), "value", own.get("quant_method", "an unknown kind")))
    return None


def dequantising(config: PreTrainedConfig, source: str) -> QuantizationConfigMixin | None:
    """What has transformers dequantise a checkpoint while it loads it; None for bitsandbytes and for dense weights.

    Raises:
        UserError: for a checkpoint that is quantised in another way, or whose package is not installed.
    """
    from transformers.utils.quantization_config import CompressedTensorsConfig, FineGrainedFP8Config, Mxfp4Config

    method = quantised_by(config)
    if method is None:
        return None
    if method == "bitsandbytes":
        if find_spec("bitsandbytes") is None:
            raise not_installed(f"the base {source!r}, in 4 or 8 bits,", "bitsandbytes", "quantised")
        return None
    if method == "fp8":
        return FineGrainedFP8Config(dequantize=True)
    if method == "mxfp4":
        return Mxfp4Config(dequantize=True)
    if method == "compressed-tensors":
        if find_spec("compressed_tensors") is None:
            raise UserError(
                f"{source!r} is quantised ({method}), and reading it needs compressed-tensors, which is not installed: "
                "pip install compressed-tensors"
            )
        return CompressedTensorsConfig(dequantize=True)
    raise UserError(
        f"{source!r} is quantised ({method}), which is not supported ({', '.join(READ)} are); load the checkpoint that "
        "it was made from, with quantization='nf4' if memory is short, or save a dequantised copy of it"
    )
