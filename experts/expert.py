"""One expert as vectors that can be added, scaled, and saved as an expert again."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self, cast

import torch
from peft import PeftModel, get_peft_model, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from experts.exchange.hub import OnTheHub
from experts.mixture import sum_of
from experts.outside.adapters import PREFIX, write_adapter
from experts.outside.base_names import own_name, public_name
from experts.outside.errors import UserError
from experts.outside.files import new_folder
from experts.outside.reading import read_json
from experts.svf import SVFConfig
from experts.svf.fingerprint import Sketch, is_other_base, read_sketch, write_sketch
from experts.svf.names import plain_modules
from experts.svf.quantised import shape_of
from experts.svf.stacks import fused_parameters

SUFFIX = ".svf_z"  # follows a matrix's name in the keys of an adapter file
EMBEDDING = re.compile(
    r"base_model\.model\.(?!.*(svf|lora)_).*\.(weight|bias)"
)  # as the base's own parameters are called


def _is_text(value: Any) -> bool:
    return isinstance(value, str | None)


def _is_rank(value: Any) -> bool:
    return type(value) is int and value > 0


def _are_names(value: Any) -> bool:
    return _is_text(value) or (isinstance(value, list) and all(isinstance(name, str) for name in value))


FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

# What the fields of an expert's configuration may hold, or None where they are missing.
FIELDS: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("base_model_name_or_path", "base_fingerprint", "domain", "description"), _is_text),
    **dict.fromkeys(("transferred_from", "revision", "task_type"), _is_text),
    **dict.fromkeys(("target_modules", "exclude_modules", "layers_pattern"), _are_names),
    "target_parameters": lambda names: names is None or (_are_names(names) and not isinstance(names, str)),
    "rank": lambda rank: rank is None or _is_rank(rank),
    "rank_pattern": lambda ranks: ranks is None or (isinstance(ranks, dict) and all(map(_is_rank, ranks.values()))),
}


def read_config(folder: Path) -> SVFConfig:
    """The configuration of the expert in `folder`.

    Raises:
        UserError: if it is not an SVF adapter folder, or the adapter is more than its vectors.
    """
    path = folder / "adapter_config.json"
    if not path.is_file():
        why = "it has no adapter_config.json" if folder.is_dir() else "there is no such folder"
        raise UserError(f"{folder} is not an expert: {why}")
    document = read_json(path)
    if not isinstance(document, dict):
        raise UserError(f"{path} is damaged: it is not a JSON object")
    kind = document.get("peft_type")
    if kind != "SVF":
        raise UserError(f"{folder} is {f'a {kind} adapter, not an SVF expert' if kind else 'not a PEFT adapter'}")
    for name, holds in FIELDS.items():
        if not holds(document.get(name)):
            raise UserError(f"{path} is damaged: {name} cannot be {document[name]!r:.60}")
    try:
        # `from_pretrained` does no more, and reads no byte-order mark. Unknown fields are dropped, with a warning.
        config = cast(SVFConfig, SVFConfig.from_peft_type(**document))
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise UserError(f"{path} is damaged: {' '.join(str(error).split())}") from error
    if config.modules_to_save or config.trainable_token_indices:
        what = ", ".join(config.modules_to_save or ["embeddings of tokens"])
        raise UserError(
            f"{folder} was trained with modules of its own ({what}), but an expert is only its vectors: "
            "load it with PEFT (PeftModel.from_pretrained)"
        )
    return config


def read_z(folder: Path) -> dict[str, Tensor]:
    """Matrix name → z [r], or [E, r] of a stack of matrices, float32.

    The embeddings that PEFT saves with a model whose vocabulary was resized are ignored.

    Raises:
        UserError: if the file is missing or truncated, or holds anything but finite z vectors.
    """
    path = folder / "adapter_model.safetensors"
    if not path.is_file():
        raise UserError(f"{folder} is not an expert: it has no adapter_model.safetensors")
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError, ValueError, LookupError, RuntimeError) as error:
        raise UserError(f"{path} is damaged and was not loaded: {error}") from error
    vectors = {}
    for key, z in tensors.items():
        if EMBEDDING.fullmatch(key) and z.ndim <= 2:
            continue
        named = key.startswith(PREFIX) and key.endswith(SUFFIX)
        if not named or z.ndim not in (1, 2) or not z.numel() or z.dtype not in FLOATS:
            raise UserError(f"{path} is damaged and was not loaded: {key} is not a z vector")
        if not torch.isfinite(z).all():
            raise UserError(f"{path} is damaged and was not loaded: {key} is not finite")
        vectors[key.removeprefix(PREFIX).removesuffix(SUFFIX)] = z.float()
    if not vectors:
        raise UserError(f"{path} is damaged and was not loaded: it holds no z vectors")
    return vectors


@dataclass(frozen=True, eq=False)
class Expert(OnTheHub):
    """The z of every adapted matrix. Sums and multiples act on the difference from the base, z − 1:

        (0.5 * a + b).z = 1 + 0.5 (a.z − 1) + (b.z − 1)

    so that `(a + b) / 2` is the average, `-a` undoes a, and `0 * a` is the base. Where experts adapt different
    matrices, or have different ranks, the one that has nothing there counts as z = 1.

    Args:
        z: matrix name → z [r], float32; [E, r] if E matrices of a mixture of experts share one parameter of that name.
        base: the name of the base.
        fingerprint: the base's; only experts of one base can be added.
        description: what it is for, or how it was made.
        transferred_from: the name and fingerprint of the base it was trained on, if that is another one.
        sketch: the base's, from `experts.svf.fingerprint.sketch`; it tells whether another base is a rounding of it.
    """

    z: dict[str, Tensor]
    base: str | None = None
    fingerprint: str | None = None
    description: str = ""
    transferred_from: str | None = None
    sketch: Sketch | None = field(default=None, repr=False, compare=False)

    @classmethod
    def read(cls, folder: str | Path) -> Self:
        """Reads an expert from an adapter folder; raises UserError if it is damaged or of another kind."""
        config = read_config(Path(folder))
        return cls(
            read_z(Path(folder)),
            own_name(config.base_model_name_or_path, config.base_fingerprint),
            config.base_fingerprint,
            config.description or Path(folder).name,
            config.transferred_from,
            read_sketch(Path(folder)),
        )

    @property
    def config(self) -> SVFConfig:
        """The PEFT configuration to write to its folder."""
        return SVFConfig(
            task_type="CAUSAL_LM",
            base_model_name_or_path=public_name(self.base),
            target_modules=sorted(matrix for matrix, z in self.z.items() if z.ndim == 1),
            target_parameters=sorted(matrix for matrix, z in self.z.items() if z.ndim == 2) or None,
            # Longest first: a pattern counts for every matrix whose name ends like it.
            rank_pattern={matrix: self.z[matrix].shape[-1] for matrix in sorted(self.z, key=len, reverse=True)},
            base_fingerprint=self.fingerprint,
            description=self.description,
            transferred_from=self.transferred_from,
            inference_mode=True,
        )

    def write(self, folder: str | Path) -> None:
        """Writes a PEFT adapter folder, all or nothing.

        Raises:
            UserError: if the folder exists.
        """
        folder = Path(folder)
        with new_folder(folder) as temporary:
            self._save_pretrained(temporary, folder.name)

    @classmethod
    def _read(cls, folder: Path) -> Self:
        return cls.read(folder)

    def _save_pretrained(self, save_directory: Path, name: str | None = None) -> None:
        title, base = name or save_directory.name, f"`{self.base}` (`{self.fingerprint}`)"
        card = f"# {title}\n\n{self.description}\n\nFor the base {base}.\n"
        if self.transferred_from:
            card += f"\nTrained on another base, {self.transferred_from}, and transferred: measure it before use.\n"
        write_adapter(save_directory, self.config, self._state_dict(), card)
        if self.sketch is not None:
            write_sketch(save_directory, self.sketch)

    def layers_in(self, base: PreTrainedModel) -> dict[str, nn.Module | Tensor]:
        """The layer of each adapted matrix, or the parameter [E, m, n] of each adapted stack.

        Raises:
            UserError: if the base lacks a matrix, or one has too few singular values.
        """
        modules, fused = plain_modules(base), fused_parameters(base)
        layers: dict[str, nn.Module | Tensor] = {}
        for matrix, z in self.z.items():
            if z.ndim == 2:
                layers[matrix] = self._stack_in(fused, matrix)
                continue
            module = modules.get(matrix)
            if not isinstance(module, nn.Linear | Conv1D):
                raise UserError(f"the expert adapts {matrix}, which is not a linear layer of the base")
            layers[matrix] = module
            if len(z) > min(shape_of(module)):
                raise UserError(
                    f"the expert has {len(z)} values for {matrix}, but the base has {min(shape_of(module))}"
                )
        return layers

    def _stack_in(self, fused: Mapping[str, Tensor], matrix: str) -> Tensor:
        """Finds W [E, m, n] of an adapted stack among the fused parameters of a base; raises as `layers_in` does."""
        if matrix not in fused:
            raise UserError(f"the expert adapts {matrix}, which is not a stack of matrices in the base")
        z, weight = self.z[matrix], fused[matrix].detach()
        if len(z) != len(weight) or z.shape[1] > min(weight.shape[1:]):
            raise UserError(
                f"the expert has {list(z.shape)} values for {matrix}, but the base has {list(weight.shape)}"
            )
        return weight

    def attach(self, base: PreTrainedModel) -> PeftModel:
        """`base` with this expert active and trainable. Nothing checks that the expert belongs to this base.

        Raises:
            UserError: if the base lacks a matrix, or one has too few singular values.
        """
        self.layers_in(base)
        config = self.config
        config.inference_mode = False
        config.base_model_name_or_path = None  # PEFT puts the base's own name there, with a warning if it differs
        model = cast(PeftModel, get_peft_model(base, config))
        set_peft_model_state_dict(model, self._state_dict())
        return model

    def _state_dict(self) -> dict[str, Tensor]:
        return {f"{PREFIX}{matrix}{SUFFIX}": z for matrix, z in self.z.items()}

    def __eq__(self, other: object) -> bool:
        """Whether both are the same vectors of the same base, and said to be for the same."""
        if not isinstance(other, Expert):
            return NotImplemented
        said = [(one.base, one.fingerprint, one.description, one.transferred_from) for one in (self, other)]
        same = said[0] == said[1] and self.z.keys() == other.z.keys()
        return same and all(torch.equal(z, other.z[matrix]) for matrix, z in self.z.items())

    def __add__(self, other: Expert | int) -> Expert:
        if other == 0:  # sum() starts from 0
            return self
        if not isinstance(other, Expert):
            return NotImplemented
        if is_other_base(self.fingerprint, self.sketch, other.fingerprint, other.sketch):
            raise UserError(
                f"experts of different bases cannot be added: {self.fingerprint} and {other.fingerprint}; "
                "transfer one of them first"
            )
        z = dict(self.z)
        for matrix, theirs in other.z.items():
            z[matrix] = 1 + sum_of(z.get(matrix, theirs[..., :0]) - 1, theirs - 1)
        origin = self.transferred_from or other.transferred_from
        return Expert(z, self.base, self.fingerprint, f"{self.description} + {other.description}", origin, self.sketch)

    __radd__ = __add__

    def __mul__(self, factor: float) -> Expert:
        if not isinstance(factor, int | float):
            return NotImplemented
        z = {matrix: 1 + factor * (z - 1) for matrix, z in self.z.items()}
        return replace(self, z=z, description=f"{factor:g} · ({self.description})")

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> Expert:
        return self * (1 / divisor)

    def __neg__(self) -> Expert:
        return self * -1

    def __sub__(self, other: Expert) -> Expert:
        return self + -other
