"""Imports networks of Text-to-LoRA's own code (github.com/SakanaAI/text-to-lora) as networks of this project.

A folder has `args.yaml`, `adapter_config.json` and `hypermod.pt`, a state dict with

    task_encoder.mlp, layer_depth_encoder, layer_type_encoder, mixer, mlp1.mlp, mlp2.mlp, mlp3
    heads.<module>                   weight [P, h]; a bias [P], or none
    out_emb.<module>.A and .B        where one head writes both: size M
    AB_offset, mean_recon_target, std_recon_target     .A.<module> [layers, r, n], .B.<module> [layers, m, r]

Theirs writes A and Bᵀ in the same places as ours; a head of M has one bias for both. What theirs adds to a head's
output, for each layer, is the mean of one of our networks that is `normalised`:

    training_task: sft                          A + AB_offset
    recon, factorized, pred_z_score             A · (std + 1e-10) + mean + AB_offset
    recon, not factorized                       A / √delta_w_scaling
    recon, factorized, no pred_z_score          A + AB_offset

The modules in `layer_type_encoder` are in the order of the heads: their code takes it from a set.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from experts.outside.errors import UserError
from experts.outside.reading import read_json, read_text
from experts.outside.tensor_files import read_tensors
from experts.text_to_lora.encoder import BASE
from experts.text_to_lora.network import AdapterNetwork, LoraHead, LoraOutput, NetworkConfig
from experts.text_to_lora.shapes import Matrix

# Their name of a part → ours; the layers inside have the same numbers.
PARTS = {
    "task_encoder.mlp": "task",
    "layer_depth_encoder": "layer",
    "layer_type_encoder": "module",
    "mixer": "mixer",
    "mlp1.mlp": "block1",
    "mlp2.mlp": "block2",
    "mlp3": "features",
}


@dataclass(frozen=True)
class Original:
    """The contents of one of their folders."""

    folder: Path
    args: Mapping[str, Any]
    lora: LoraOutput
    tensors: Mapping[str, Tensor]

    @property
    def modules(self) -> list[str]:
        """The last parts of the modules' names, in the order of their embeddings."""
        names = [key.split(".")[1] for key in self.tensors if key.startswith("heads.")]
        return list(dict.fromkeys(names))

    @property
    def base(self) -> str:
        return str(self.args["model_dir"])

    @property
    def encoder(self) -> str:
        return self.args.get("emb_model") or BASE


def read_original(folder: Path) -> Original:
    """Reads one of their folders; no code in it is run.

    Raises:
        UserError: if there is no such network, it is damaged, or it is of a kind that does not exist here.
    """
    args, config = _read_yaml(folder / "args.yaml"), read_json(folder / "adapter_config.json")
    try:
        unlike = {
            "one embedding per task (use_one_hot_task_emb)": args.get("use_one_hot_task_emb"),
            f"the task encoder {args.get('encoder_type')}": args.get("encoder_type", "linear") != "linear",
            "ranks one by one (autoreg_gen), with rotated positions where ours are learned": args.get("autoreg_gen"),
            f"adapters of the kind {config['peft_type']}": config["peft_type"] != "LORA",
        }
        if why := next((what for what, is_so in unlike.items() if is_so), None):
            raise UserError(f"the network in {folder} has {why}, which cannot be imported")
        size: Any = "M" if args.get("shared_AB_head") else "L"
        lora = LoraOutput(
            rank=config["r"],
            alpha=config["lora_alpha"],
            rslora=bool(config.get("use_rslora")),
            target_modules=sorted(config["target_modules"]),
            size=size,
        )
        args["model_dir"], args["training_task"]
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{folder} is not a network of Text-to-LoRA's own code: it lacks {error}") from error
    return Original(folder, args, lora, read_tensors(folder / "hypermod.pt"))


def import_network(original: Original, matrices: Sequence[Matrix], fingerprint: str | None = None) -> AdapterNetwork:
    """A network that writes what theirs does.

    Args:
        matrices: the base's matrices that `original.lora.target_modules` refers to.
        fingerprint: the base's fingerprint, if the base is there.

    Raises:
        UserError: if the file does not have exactly the tensors of such a network for such a base.
    """
    tensors = original.tensors
    try:
        spec = NetworkConfig(
            original.lora,
            tuple(matrices),
            original.encoder,
            tensors["task_encoder.mlp.0.weight"].shape[1],
            original.base,
            fingerprint,
            latent_size=tensors["mixer.1.weight"].shape[1],
            head_size=tensors["mlp3.4.weight"].shape[0],
            normalised=True,
        )
        network = AdapterNetwork(spec).eval()
        network.load_state_dict(_state(original, network))
    except KeyError as error:
        raise UserError(f"{original.folder / 'hypermod.pt'} has no tensor {error}") from error
    except (RuntimeError, IndexError, ValueError) as error:
        said = " ".join(str(error).split())
        raise UserError(f"{original.folder / 'hypermod.pt'} does not fit the base {original.base}: {said}") from error
    return network


def _state(original: Original, network: AdapterNetwork) -> dict[str, Tensor]:
    """The state dict of our network."""
    tensors = original.tensors
    state: dict[str, Tensor] = {}
    for theirs, ours in PARTS.items():
        part = {key.removeprefix(theirs): tensor for key, tensor in tensors.items() if key.startswith(f"{theirs}.")}
        state |= {f"{ours}{key}": tensor.float() for key, tensor in part.items()}
    modules = sorted({matrix.module for matrix in network.spec.matrices})
    short = [module.rpartition(".")[2] for module in modules]
    state["module.0.weight"] = state["module.0.weight"][[original.modules.index(name) for name in short]]
    if network.side is not None:
        sides = [tensors[f"out_emb.{name}.{side}"] for name in short for side in "AB"]
        state["side.0.weight"] = torch.stack(sides).float()
        state |= {f"side.1.{part}": tensors[f"out_emb_norm.{part}"].float() for part in ("weight", "bias")}
    for number, (of_kind, head) in enumerate(zip(network.kinds.values(), network.heads, strict=True)):
        assert isinstance(head, LoraHead)
        own = [network.spec.matrices[index] for index in of_kind]
        name = own[0].module.rpartition(".")[2]
        state[f"heads.{number}.linear.weight"] = tensors[f"heads.{name}.weight"].float()
        state[f"heads.{number}.bias"] = _bias(tensors.get(f"heads.{name}.bias"), head)
        layers = [matrix.layer for matrix in own]
        state[f"deviation_{number}"], state[f"mean_{number}"] = _scale(original, name, layers, head)
    return state


def _bias(bias: Tensor | None, head: LoraHead) -> Tensor:
    """The bias for A and Bᵀ together, from what their head has."""
    if bias is None:
        return torch.zeros(head.numbers)
    if head.size == "L":
        return bias.float()
    both = bias.float().view(head.rank, head.longest)
    return torch.cat([both[:, : head.in_features].flatten(), both[:, : head.out_features].flatten()])


def _scale(original: Original, name: str, layers: list[int], head: LoraHead) -> tuple[Tensor, Tensor]:
    """What a head's numbers [N, P] are multiplied by, and what is then added."""

    def numbers(of: str) -> Tensor:
        a, b = (original.tensors[f"{of}.{side}.{name}"].float()[layers] for side in "AB")
        return torch.cat([a.flatten(1), b.transpose(1, 2).flatten(1)], 1)

    ones = torch.ones(len(layers), head.numbers)
    args = original.args
    if args["training_task"] == "sft":
        return ones, numbers("AB_offset")
    if not args.get("factorized"):
        return ones / float(args.get("delta_w_scaling", 10_000)) ** 0.5, torch.zeros_like(ones)
    if args.get("pred_z_score"):
        return numbers("std_recon_target") + 1e-10, numbers("mean_recon_target") + numbers("AB_offset")
    return ones, numbers("AB_offset")


def _read_yaml(path: Path) -> dict[str, Any]:
    text = read_text(path)
    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(document, dict):
        raise UserError(f"{path} holds no training arguments")
    return document
