"""A name becomes a model and its tokenizer: the built-in base, a folder, a GGUF file or a hub id."""

from __future__ import annotations

import json
import logging
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from experts.outside.base_names import HUB_ID
from experts.outside.errors import UserError, short, unknown
from experts.outside.files import atomic_folder, cache_folder, check_writable, expand, write_json
from experts.outside.reading import MARK
from selfadapt.bases.built_in import BUILT_IN, fetch_gguf, stands_for
from selfadapt.bases.gguf_files import (
    check_room,
    converted_folder,
    file_state,
    float32_bytes,
    is_conversion,
    mend_pre_tokenizer,
    restore_steps,
    tie_head,
)
from selfadapt.bases.options import check_options, device_of, dtype_of, first_line
from selfadapt.bases.packed import PACKED, SUFFIXES, unpacked_folder
from selfadapt.bases.quantised import bitsandbytes_config, dequantising, quantised_by, remember_dense
from selfadapt.bases.special_tokens import settle_special_tokens

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

# Of a checkpoint, what is neither weights nor their configuration.
SETTINGS = (
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt", "*.model", "*.tiktoken"),
    *("chat_template*", "generation_config.json", "*processor_config.json"),
)


class BaseOptions(TypedDict, total=False):
    """How a base is loaded: what else may be said of it than its name."""

    dtype: torch.dtype | str | None
    """By default float32 on a CPU and the checkpoint's own on an accelerator (which `"auto"` means anywhere)."""
    device: torch.device | str | None
    """By default the accelerator, if there is one."""
    revision: str
    """A branch, tag or commit of a hub id."""
    attn_implementation: str
    """transformers' name of one: eager, sdpa, flash_attention_2."""
    device_map: str | Mapping[str, Any]
    """accelerate's, such as "auto": shares the base out over devices; in the place of `device`."""
    trust_remote_code: bool
    """Run the code that comes with the checkpoint; off unless it is said."""
    quantization: str | Mapping[str, Any]
    """nf4, nf4-svd or int8, by bitsandbytes while it is loaded; or arguments of transformers' `BitsAndBytesConfig`."""
    chat_template_kwargs: Mapping[str, Any]
    """Arguments of the chat template, wherever the tokenizer shows a chat, such as Qwen3's `enable_thinking`."""


def load_base(
    name: str | Path = BUILT_IN, **options: Unpack[BaseOptions]
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Loads a base model, in evaluation mode, and its tokenizer; of a vision-language model, its processor.

    The tokenizer pads on the left with a token that is not an end token wherever the vocabulary has one; its chat
    template is the checkpoint's, None where that has none. The model decodes greedily unless a call asks for something
    else, whatever its checkpoint says: of its `GenerationConfig` the end tokens stay, with the tokenizer's.

    Args:
        name: the built-in `smollm2-135m`, a folder with a checkpoint, a `.gguf` file (dequantised, once) or a hub id.
            Where the hub's SmolLM2-135M-Instruct is not to be had, the built-in base stands for it, which is said once.
        options: `BaseOptions`.

    Raises:
        UserError: where the name means nothing, or what it means cannot be fetched or loaded, or an option does not go
            with the name.
    """
    from experts.outside.chats import with_template_arguments

    check_options(options, BaseOptions.__annotations__)
    device = options.get("device")
    if device is not None and "device_map" in options:
        raise UserError("device and device_map both say where the base goes; give only one of them")
    place = device_of(device)
    source, found = _locate(name, options.get("revision"))
    found["trust_remote_code"] = options.get("trust_remote_code", False)
    of_model = ("attn_implementation", "device_map", "quantization")
    own = {option: value for option, value in options.items() if option in of_model}
    model, tokenizer = _read(source, dtype_of(options.get("dtype"), place), place, own, **found)
    tokenizer = with_template_arguments(tokenizer, options.get("chat_template_kwargs", {}))
    if (head := model.get_output_embeddings()) is not None:
        head.register_forward_pre_hook(_contiguous)
    placed = "device_map" in options or getattr(model, "is_quantized", False)
    return model if placed else model.to(place), tokenizer  # type: ignore[arg-type]


def load_config(name: str | Path = BUILT_IN, **options: Unpack[BaseOptions]) -> PreTrainedConfig:
    """The configuration of a base, without its weights; of `BaseOptions` those count that say which it is.

    Raises:
        UserError: where the name means nothing, or what it means cannot be fetched or read.
    """
    from transformers import AutoConfig

    source, found = _locate(name, options.get("revision"))
    try:
        return AutoConfig.from_pretrained(source, trust_remote_code=options.get("trust_remote_code", False), **found)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read the configuration of {name!r}: {first_line(error)}") from error


def load_shapes(name: str | Path = BUILT_IN) -> PreTrainedModel:
    """A base on the meta device: every parameter has its shape, and none a value.

    Raises:
        UserError: as `load_config` does.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    config = load_config(name)
    with torch.device("meta"):
        return (AutoModelForImageTextToText if _sees(config) else AutoModelForCausalLM).from_config(config)


def copy_settings(name: str, folder: Path) -> None:
    """Gives the checkpoint in `folder` what `load_base` has settled for its own use as the base's files have it.

    That is the tokenizer with its padding side and pad token, the chat template and the sampling settings. A `.gguf`
    file has no such files.
    """
    source, options = _locate(name)
    if "gguf_file" in options:
        return
    own = _files_of(source, options)
    for old in _settings(folder):
        old.unlink()
    for file in _settings(own):
        shutil.copyfile(file, folder / file.name)
    document, wanted = (json.loads((each / "config.json").read_text(encoding="utf-8")) for each in (folder, own))
    document.pop("pad_token_id", None)
    write_json(folder / "config.json", document | {k: v for k, v in wanted.items() if k == "pad_token_id"})


def _files_of(source: str, options: Mapping[str, Any]) -> Path:
    """The folder of what was loaded: a hub's snapshot on this machine has it."""
    from huggingface_hub import snapshot_download

    if Path(source).is_dir():
        return Path(source)
    return Path(snapshot_download(source, revision=options.get("revision"), local_files_only=True))


def _downloaded(source: str, options: Mapping[str, Any]) -> Path:
    """The folder of what is to be read without transformers: a hub's files are fetched, unless they are here."""
    from huggingface_hub import snapshot_download

    if Path(source).is_dir():
        return Path(source)
    files = ["*.safetensors", *(f"*{suffix}" for suffix in SUFFIXES)]
    where = {key: options[key] for key in ("revision", "local_files_only") if key in options}
    return Path(snapshot_download(source, allow_patterns=files, **where))


def _settings(folder: Path) -> list[Path]:
    return [file for pattern in SETTINGS for file in folder.glob(pattern) if file.is_file()]


def _contiguous(head: Any, args: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
    """transformers' `generate` gives the head the last states of a batch as a slice, which PyTorch multiplies row by
    row on a CPU. Our own calls use `experts.engine.last_positions`, which any base profits from."""
    return (args[0].contiguous(),)


def _locate(name: str | Path, revision: str | None = None) -> tuple[str, dict[str, Any]]:
    """What `from_pretrained` must be given to find `name`: a folder or hub id, and options."""
    if not isinstance(name, str | os.PathLike) or not str(name).strip():
        raise UserError(f"a base is a built-in name, a folder, a .gguf file or a hub id, not {short(name)}")
    name = os.fspath(name)
    path = expand(name)
    if revision is not None and (name == BUILT_IN or path.exists()):
        raise UserError(f"{name!r} is not a hub id, so it has no revision {revision!r}; leave 'revision' out")
    if name == BUILT_IN:
        return str(_built_in_folder()), {}
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UserError(f"no config.json in {path}; give a folder that holds a checkpoint, or a .gguf file")
        return str(path), {}
    if path.suffix == ".gguf":
        if not path.is_file():
            raise UserError(f"no such file: {path}")
        kept = _converted(path)
        return (str(path.parent), {"gguf_file": path.name}) if kept is None else (str(kept), {})
    if path.is_file():
        raise UserError(f"{path} is a file, but not a .gguf file: a base is a folder, a .gguf file or a hub id")
    if HUB_ID.fullmatch(name):
        answers = _hub_answers(name, revision)
        if not answers and revision is None and stands_for(name):
            return str(_built_in_folder()), {}
        of_revision = {} if revision is None else {"revision": revision}
        return name, {"local_files_only": not answers, **of_revision}
    if "/" in name:
        raise UserError(f"no such folder: {path}")
    raise UserError(
        f"{unknown('base model', name, [BUILT_IN])}; a folder, a .gguf file or a hub id (owner/name) works too"
    )


def _hub_answers(name: str, revision: str | None) -> bool:
    """Asks the hub for `name`, once and briefly: transformers would try six times for every file it looks for."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        HfApi().model_info(name, revision=revision, timeout=10)
    except RevisionNotFoundError as error:
        raise UserError(
            f"the hub's model {name!r} has no revision {revision!r}; check the branch, tag or commit"
        ) from error
    except RepositoryNotFoundError as error:
        raise UserError(
            f"{name!r} is neither a folder here nor a model on the hub that you may read; check the name, or log in"
        ) from error
    except (HTTPError, OSError):
        return False
    return True


def _read(
    source: str,
    dtype: torch.dtype | str,
    place: torch.device | None = None,
    of_model: Mapping[str, Any] = {},
    **options: Any,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """`from_pretrained` for both halves; `options` as `_locate` gives them, `of_model` for the model alone.

    A quantised model is put in its place at once, where it is not shared out.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import (
        AutoConfig,
        AutoModelForCausalLM,
        AutoModelForImageTextToText,
        AutoProcessor,
        AutoTokenizer,
        GgufConfig,
    )

    from experts.svf.quantised import floating_dtype, unpack

    gguf_file, own = options.get("gguf_file"), dict(of_model)
    try:
        # A download keeps its progress bars.
        with nullcontext() if "local_files_only" in options else _no_progress_bars():
            sees, kept = False, 0
            if not gguf_file:
                config = AutoConfig.from_pretrained(source, **options)
                if quantised_by(config) in PACKED:
                    source = str(unpacked_folder(_downloaded(source, options), source))
                    options = {"trust_remote_code": options["trust_remote_code"]}
                    config = AutoConfig.from_pretrained(source, **options)
                sees = _sees(config)
                if (named := own.pop("quantization", None)) is not None:
                    own["quantization_config"], kept = bitsandbytes_config(named, dtype, config)
                elif (dense := dequantising(config, source)) is not None:
                    own["quantization_config"] = dense
                if own.get("quantization_config") or quantised_by(config):
                    own.setdefault("device_map", {"": place})
            else:
                if "quantization" in own:
                    raise UserError(
                        "a .gguf file must be converted to a kept checkpoint before it is quantised, and there is no "
                        "place to keep it; set SELFADAPT_CACHE to a folder with room, or leave 'quantization' out"
                    )
                own["quantization_config"] = GgufConfig(dequantize=True)
            tokenizer: Any = (AutoProcessor if sees else AutoTokenizer).from_pretrained(source, **options)
            each: Any
            for each in (tokenizer, getattr(tokenizer, "tokenizer", None)):
                if isinstance(template := getattr(each, "chat_template", None), str):
                    each.chat_template = template.removeprefix(MARK)  # which an editor may have put there
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "You passed `quantization_config`")  # beside the checkpoint's own
                auto: Any = AutoModelForImageTextToText if sees else AutoModelForCausalLM
                model, info = auto.from_pretrained(source, dtype=dtype, output_loading_info=True, **options, **own)
            if not gguf_file and (missing := sorted(info["missing_keys"])):
                raise UserError(
                    f"the checkpoint {source!r} lacks {len(missing)} of the model's weights, such as {missing[0]}, "
                    "and random numbers are no substitute: fetch it again, or check its config.json"
                )
            for module in model.modules():
                if isinstance(module, torch.nn.Linear):
                    unpack(module)
            if "quantization" in of_model:
                remember_dense(model, _files_of(source, options), floating_dtype(model.parameters()), kept)
            if gguf_file:
                from gguf import GGUFReader

                reader = GGUFReader(Path(source, gguf_file))
                mend_pre_tokenizer(tokenizer, reader)
                tie_head(model, reader)
            elif is_conversion(Path(source)):
                restore_steps(tokenizer, Path(source))
    except UserError:
        raise
    except Exception as error:  # transformers may raise anything for a damaged configuration
        usual = isinstance(error, OSError | ValueError | ImportError | SafetensorError)
        if usual and options.get("local_files_only"):
            reason = "the hub could not be reached and its cache on this machine does not hold the model"
            mend = "connect to the hub, or give a folder that holds the checkpoint"
        elif "trust_remote_code" in str(error):
            reason = "it comes with code of its own"
            mend = "read it, and load the base with trust_remote_code=True if you trust it"
        elif usual:
            reason = first_line(error)
            mend = "a base is a causal language model with its tokenizer"
        else:
            reason = f"{type(error).__name__}: {first_line(error)}"
            mend = "check its config.json, and that all its files belong to one model"
        raise UserError(f"cannot load {str(Path(source, gguf_file or ''))!r}: {reason}; {mend}") from error
    settle_special_tokens(model, tokenizer.tokenizer if sees else tokenizer)
    return model, tokenizer


def _sees(config: PreTrainedConfig) -> bool:
    """Whether it is of a vision-language model, and of none that transformers also has as text alone."""
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    )

    kind = type(config)
    return kind in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING and kind not in MODEL_FOR_CAUSAL_LM_MAPPING


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    from transformers.utils import logging as transformers_logging

    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def _built_in_folder() -> Path:
    """The built-in base as an ordinary float32 checkpoint in the cache folder, made where it is not there yet."""
    from filelock import FileLock

    folder = cache_folder() / "bases" / BUILT_IN
    if folder.exists():
        return folder
    check_writable(folder.parent)
    with FileLock(folder.parent / f".{BUILT_IN}.lock"):
        if not folder.exists():
            logger.info("making the built-in base %s in %s; this happens only once", BUILT_IN, folder)
            with TemporaryDirectory() as temporary, atomic_folder(folder) as unfinished:
                _convert(fetch_gguf(Path(temporary)), unfinished)
    return folder


def _converted(gguf_file: Path) -> Path | None:
    """A .gguf file as an ordinary float32 checkpoint in the cache folder, made where it is not there yet.

    None, which is said, where none can be kept.
    """
    from filelock import FileLock
    from safetensors import SafetensorError

    state = file_state(gguf_file)
    try:
        folder = converted_folder(gguf_file)
    except (UserError, OSError) as error:
        _say_not_kept(gguf_file, error)
        return None
    if folder.exists():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.parent / f".{folder.name}.lock"):
            if not folder.exists():
                for left in folder.parent.glob(f".{folder.name}.*/"):  # by a process that was killed
                    shutil.rmtree(left, ignore_errors=True)
                needed = float32_bytes(gguf_file)
                check_room(folder.parent, needed)
                logger.warning(
                    "converting %s to float32, once, and keeping the result in %s (%.1f GB at most; set "
                    "SELFADAPT_CACHE to use another cache folder)",
                    gguf_file,
                    folder,
                    needed / 1e9,
                )
                with atomic_folder(folder) as unfinished:
                    _convert(gguf_file, unfinished)
                    if file_state(gguf_file) != state:  # and the folder's name is of what was there before
                        raise UserError(
                            f"{gguf_file} changed while it was being read; load it again once it is complete"
                        )
    except (OSError, SafetensorError) as error:
        _say_not_kept(gguf_file, error)
        return None
    return folder


def _convert(gguf_file: Path, folder: Path) -> None:
    import torch

    model, tokenizer = _read(str(gguf_file.parent), torch.float32, gguf_file=gguf_file.name)
    with _no_progress_bars():
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _say_not_kept(gguf_file: Path, error: Exception) -> None:
    logger.warning(
        "%s is converted in memory and not kept (%s); set SELFADAPT_CACHE to use another cache folder",
        gguf_file,
        first_line(error),
    )
