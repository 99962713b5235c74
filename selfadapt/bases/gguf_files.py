"""What a GGUF file needs to become an ordinary checkpoint: a place, its head tied again, its tokenizer mended."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import shutil
import time
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experts.outside.errors import UserError
from experts.outside.files import cache_folder, write_json

if TYPE_CHECKING:
    from gguf import GGUFReader
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

CONVERSION = 1
"""The version of this module's conversion; files that another version converted are not used."""

SLOW_HASH = 2.0
"""A hash that takes longer than this many seconds is remembered; smaller files are hashed each time."""

TIE_TOLERANCE = 4.0
"""Times √(4⁻ᵃ + 4⁻ᵇ), for a head of a bits per weight and embeddings of b: how far a row of one may be from the
other's, relative to its norm, if they are two roundings of one matrix.

The error of rounding to b bits per weight, scales included, is c · 2⁻ᵇ. On normal weights and on the head of
Qwen2.5-Coder-0.5B-Instruct c is 1.9 for Q8_0, 2.0 for Q5_0 and Q4_0, 2.4 for Q5_1 and 2.5 for Q4_1. In the Q4_K_M file
of that model (head Q8_0, embeddings Q5_0) the whole matrices differ by 0.044, which is c = 2.0, and the worst of
151,936 rows by 0.061, c = 2.7; 4 allows 0.089. Rows that have nothing to do with each other differ by 1.4.
"""


def converted_folder(file: Path) -> Path:
    """The folder of a file's conversion, named after the file's bytes and the versions that convert it.

    Raises:
        UserError: where no cache folder is known.
        OSError: if the file cannot be read.
    """
    by = "-".join(f"{package}{version(package)}" for package in ("transformers", "gguf"))
    return cache_folder() / "bases" / f"gguf-{_sha256(file)[:32]}-{by}-{CONVERSION}"


def is_conversion(folder: Path) -> bool:
    return folder.name.startswith("gguf-") and folder.parent == cache_folder() / "bases"


def file_state(file: Path) -> dict[str, Any]:
    """A file's path, size and modification time."""
    stat = file.stat()
    return {"path": str(file.resolve()), "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}


def _sha256(file: Path) -> str:
    """The hash of a file, remembered by path, size and modification time if it took long."""
    path, known = file.resolve(), file_state(file)
    kept = cache_folder() / "bases" / ".sha256" / f"{hashlib.sha256(str(path).encode()).hexdigest()[:32]}.json"
    with suppress(OSError, ValueError):
        found = json.loads(kept.read_text(encoding="utf-8"))
        if found == known | {"sha256": found.get("sha256")}:
            return str(found["sha256"])
    start = time.monotonic()
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if time.monotonic() - start > SLOW_HASH:
        with suppress(OSError):
            write_json(kept, known | {"sha256": digest})
    return digest


def float32_bytes(file: Path) -> int:
    """How many bytes a file's weights take in float32.

    Raises:
        UserError: if it is no GGUF file.
    """
    from gguf import GGUFReader

    try:
        return 4 * sum(int(tensor.n_elements) for tensor in GGUFReader(file).tensors)
    except (ValueError, IndexError) as error:
        raise UserError(f"cannot load '{file}': it is not a complete GGUF file ({error}); fetch it again") from error


def check_room(folder: Path, needed: int) -> None:
    """Raises OSError if `folder` has no room for that many bytes."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(errno.ENOSPC, f"{needed / 1e9:.1f} GB needed, {free / 1e9:.1f} GB free")


def tie_head(model: PreTrainedModel, reader: GGUFReader) -> None:
    """Ties the head to the embeddings if a file stores both, as two roundings of one matrix.

    llama.cpp gives a tied head more bits than the embeddings, and so stores it separately. The tensor with more bits is
    used for both, or the head if they have the same. A base's fingerprint covers neither.
    """
    types = {tensor.name: tensor.tensor_type for tensor in reader.tensors}
    if not {"output.weight", "token_embd.weight"} <= types.keys() or not model._tied_weights_keys:
        return
    head: Any = model.get_output_embeddings()
    embeddings: Any = model.get_input_embeddings()
    if head is None or head.weight.shape != embeddings.weight.shape:
        return
    of_head, of_embeddings = types["output.weight"], types["token_embd.weight"]
    bits = [_bits(each) for each in (of_head, of_embeddings)]
    tolerance = TIE_TOLERANCE * sum(4.0**-each for each in bits) ** 0.5
    difference = _largest_difference(head.weight, embeddings.weight)
    if difference > tolerance:
        return
    head_stays = bits[0] >= bits[1]
    if head_stays:
        embeddings.weight = head.weight
    model.config.tie_word_embeddings = model.config.get_text_config().tie_word_embeddings = True
    model.tie_weights()
    model.all_tied_weights_keys = model.get_expanded_tied_weights_keys(all_submodels=True)
    logger.warning(
        "the file's head (%s) and embeddings (%s) are one matrix up to quantisation (rows differ by %.2g at most, two "
        "roundings by up to %.2g); they are tied, and both are the file's %s",
        of_head.name,
        of_embeddings.name,
        difference,
        tolerance,
        "head" if head_stays else "embeddings",
    )


def _bits(tensor_type: Any) -> float:
    """Bits per weight, with its share of the block's scales."""
    from gguf import GGML_QUANT_SIZES

    weights, stored = GGML_QUANT_SIZES[tensor_type]
    return float(8 * stored / weights)


def _largest_difference(one: Tensor, other: Tensor) -> float:
    """max over rows of ‖a − b‖ / ‖b‖, where a row counts as no shorter than the root mean square of all rows: rows of
    untrained tokens may be too small for a block's scale."""
    import torch

    with torch.no_grad():
        parts = list(zip(one.split(8192), other.split(8192), strict=True))  # no third matrix
        distances = torch.cat([(a.float() - b.float()).norm(dim=1) for a, b in parts])  # [rows]
        norms = torch.cat([b.float().norm(dim=1) for _, b in parts])
        typical = norms.square().mean().sqrt()
        return float((distances / norms.clamp(min=typical)).max())


def mend_pre_tokenizer(tokenizer: PreTrainedTokenizerBase, reader: GGUFReader) -> None:
    """Splits text as SmolLM's vocabulary was learned, every digit on its own.

    transformers does not know the pre-tokenizer "smollm" and takes GPT-2's, under which white space before a digit
    falls into pieces the model hardly ever saw: "\\n\\n1" becomes \\n, \\n, 1 instead of \\n\\n, 1.
    """
    from tokenizers import pre_tokenizers

    name = reader.fields.get("tokenizer.ggml.pre")
    if name is not None and name.contents() == "smollm":
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )


def restore_steps(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Makes a tokenizer treat text as the one saved in `folder` did.

    Some tokenizer classes of transformers (Qwen2's) take only the vocabulary from there, and otherwise may not treat
    text as they do for a GGUF file, which has no normalizer.
    """
    from tokenizers import Tokenizer

    backend, saved = tokenizer.backend_tokenizer, Tokenizer.from_file(str(folder / "tokenizer.json"))
    for step in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
        setattr(backend, step, getattr(saved, step))
