"""A network of Text-to-LoRA's own code, made anew here from its layout, writes the same LoRAs when it is imported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

from experts.outside.errors import UserError
from experts.text_to_lora.original_import import import_network, read_original
from experts.text_to_lora.shapes import Matrix
from experts.text_to_lora.writer import read_network

RANK, LAYERS, TASK, LATENT, HEAD = 3, 2, 10, 16, 24
SHAPES = {"q_proj": (8, 8), "v_proj": (4, 8)}  # out, in
MATRICES = [
    Matrix(f"model.layers.{layer}.self_attn.{module}", *shape)
    for layer in range(LAYERS)
    for module, shape in SHAPES.items()
]
KINDS: dict[str, dict[str, Any]] = {
    "L": {},
    "L with an offset": {"head_use_bias": False},
    "M": {"shared_AB_head": True},
    "reconstructed": {"training_task": "recon", "factorized": True, "pred_z_score": True, "head_use_bias": False},
    "reconstructed differences": {"training_task": "recon", "factorized": False, "delta_w_scaling": 400},
    "reconstructed M": {"training_task": "recon", "factorized": True, "shared_AB_head": True},
}


def perceptron(d: int, out: int, norm: bool, dropout: bool) -> nn.Sequential:
    layers: list[nn.Module] = [nn.LayerNorm(d)] if norm else []
    layers += [nn.Linear(d, 4 * d), nn.SiLU(), nn.Dropout(0.05), nn.Linear(4 * d, out), nn.SiLU()]
    return nn.Sequential(*layers, *([nn.Dropout(0.05)] if dropout else []))


class Theirs(nn.Module):
    """Their network by the names of its tensors; the modules in an order of its own."""

    def __init__(self, args: dict[str, Any]) -> None:
        super().__init__()
        self.args = args
        self.order = ["v_proj", "q_proj"]
        self.task_encoder = nn.ModuleDict(
            {"mlp": nn.Sequential(nn.Linear(TASK, LATENT // 2), nn.LayerNorm(LATENT // 2))}
        )
        self.layer_depth_encoder, self.layer_type_encoder = (
            nn.Sequential(nn.Embedding(count, LATENT // 4), nn.LayerNorm(LATENT // 4)) for count in (LAYERS, 2)
        )
        self.mixer = nn.Sequential(nn.Dropout(0.05), *perceptron(LATENT, LATENT, False, True))
        self.mlp1, self.mlp2 = (nn.ModuleDict({"mlp": perceptron(LATENT, LATENT, True, True)}) for _ in range(2))
        self.mlp3 = perceptron(LATENT, HEAD, True, False)
        shared = args["shared_AB_head"]
        numbers = {m: RANK * (max(shape) if shared else sum(shape)) for m, shape in SHAPES.items()}
        self.heads = nn.ModuleDict({m: nn.Linear(HEAD, numbers[m], bias=args["head_use_bias"]) for m in self.order})
        if shared:
            self.out_emb = nn.ModuleDict(
                {m: nn.ParameterDict({side: nn.Parameter(torch.randn(LATENT)) for side in "AB"}) for m in self.order}
            )
            self.out_emb_norm = nn.LayerNorm(LATENT)
        for name in ("AB_offset", "mean_recon_target", "std_recon_target"):
            sides = {
                "A": {m: nn.Parameter(torch.randn(LAYERS, RANK, n).abs()) for m, (_, n) in SHAPES.items()},
                "B": {m: nn.Parameter(torch.randn(LAYERS, out, RANK).abs()) for m, (out, _) in SHAPES.items()},
            }
            self.register_module(name, nn.ModuleDict({side: nn.ParameterDict(own) for side, own in sides.items()}))

    @torch.no_grad()
    def lora(self, task: Tensor, layer: int, module: str) -> tuple[Tensor, Tensor]:
        """A [r, n] and B [m, r] for one task [E]."""
        out, n = SHAPES[module]
        kind = self.layer_type_encoder(torch.tensor(self.order.index(module)))
        place = [self.layer_depth_encoder(torch.tensor(layer)), kind]
        x = self.mixer(torch.cat([self.task_encoder["mlp"](task), *place]))
        x = x + self.mlp1["mlp"](x)

        def written(x: Tensor) -> Tensor:
            return self.heads[module](self.mlp3(x + self.mlp2["mlp"](x)))

        if self.args["shared_AB_head"]:
            both = [written(x + self.out_emb_norm(self.out_emb[module][side])) for side in "AB"]
            a, b = (own.view(RANK, -1)[:, :width] for own, width in zip(both, (n, out), strict=True))
        else:
            flat = written(x)
            a, b = flat[: RANK * n].view(RANK, n), flat[RANK * n :].view(RANK, out)
        offset, mean, std = (
            [getattr(self, name)[side][module][layer] for side in "AB"]
            for name in ("AB_offset", "mean_recon_target", "std_recon_target")
        )
        parts = [a, b.T]
        if self.args["training_task"] == "sft":
            parts = [own + more for own, more in zip(parts, offset, strict=True)]
        elif not self.args["factorized"]:
            parts = [own / self.args["delta_w_scaling"] ** 0.5 for own in parts]
        else:
            if self.args["pred_z_score"]:
                parts = [own * (s + 1e-10) + m for own, s, m in zip(parts, std, mean, strict=True)]
            parts = [own + more for own, more in zip(parts, offset, strict=True)]
        return parts[0], parts[1]


def saved(folder: Path, **changes: Any) -> Theirs:
    """A network of theirs in a folder."""
    args: dict[str, Any] = {
        "model_dir": "some-base",
        "training_task": "sft",
        "shared_AB_head": False,
        "autoreg_gen": False,
        "factorized": False,
        "pred_z_score": False,
        "head_use_bias": True,
        "use_one_hot_task_emb": False,
        "encoder_type": "linear",
        "emb_model": "Alibaba-NLP/gte-large-en-v1.5",
    }
    args |= changes
    torch.manual_seed(0)
    theirs = Theirs(args).eval()
    folder.mkdir()
    (folder / "args.yaml").write_text(yaml.safe_dump(args))
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 16, "use_rslora": True, "target_modules": [*SHAPES]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    torch.save(theirs.state_dict(), folder / "hypermod.pt")
    return theirs


@pytest.mark.parametrize("kind", KINDS)
def test_an_imported_network_writes_the_same_loras(kind: str, tmp_path: Path) -> None:
    theirs = saved(tmp_path / "theirs", **KINDS[kind])
    original = read_original(tmp_path / "theirs")
    ours = import_network(original, MATRICES)
    assert (original.lora.size, original.lora.scaling) == ("M" if "M" in kind else "L", 16 / RANK**0.5)
    tasks = torch.randn(2, TASK)
    with torch.no_grad():
        written = ours.unpack(ours(tasks))
    for matrix in MATRICES:
        found: Any = written[matrix.name]
        for row, task in enumerate(tasks):
            a, b = theirs.lora(task, matrix.layer, matrix.module.rpartition(".")[2])
            torch.testing.assert_close(found.a[row], a, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(found.b[row], b, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"autoreg_gen": True}, "ranks one by one"),
        ({"use_one_hot_task_emb": True}, "one embedding per task"),
        ({"encoder_type": "vq"}, "the task encoder vq"),
    ],
)
def test_what_there_is_nothing_like_here_is_refused(changes: dict[str, Any], line: str, tmp_path: Path) -> None:
    saved(tmp_path / "theirs", **changes)
    with pytest.raises(UserError, match=line):
        read_original(tmp_path / "theirs")


class Runs:
    def __reduce__(self) -> Any:
        return (print, ("it ran",))


def test_files_that_are_no_network_are_refused_and_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "theirs"
    with pytest.raises(UserError, match=r"args\.yaml"):
        read_original(folder)
    saved(folder)
    with pytest.raises(UserError, match="does not fit the base some-base"):
        import_network(read_original(folder), [Matrix(each.name, 16, 16) for each in MATRICES])
    tensors = torch.load(folder / "hypermod.pt", weights_only=True)
    torch.save({key: tensor for key, tensor in tensors.items() if "mlp3.4" not in key}, folder / "hypermod.pt")
    with pytest.raises(UserError, match=r"no tensor 'mlp3\.4\.weight'"):
        import_network(read_original(folder), MATRICES)
    torch.save({"heads": Runs()}, folder / "hypermod.pt")
    with pytest.raises(UserError, match="wants to run code"):
        read_original(folder)
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match="it lacks 'peft_type'"):
        read_original(folder)
    assert capsys.readouterr().out == ""


def test_the_command_writes_a_network(tmp_path: Path, tiny_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_model.config.save_pretrained(tmp_path / "base")
    shapes = {
        name.rpartition(".")[2]: tuple(m.weight.shape) for name, m in tiny_model.named_modules() if "_proj" in name
    }
    monkeypatch.setitem(SHAPES, "q_proj", shapes["q_proj"])
    monkeypatch.setitem(SHAPES, "v_proj", shapes["v_proj"])
    monkeypatch.setattr(f"{__name__}.LAYERS", tiny_model.config.num_hidden_layers)
    saved(tmp_path / "theirs", model_dir=str(tmp_path / "base"))
    from selfadapt.verbs.t2l import t2l_import

    t2l_import(tmp_path / "theirs", tmp_path / "ours")
    spec = read_network(tmp_path / "ours").spec
    assert spec.encoder == "Alibaba-NLP/gte-large-en-v1.5"
    assert len(spec.matrices) == 2 * tiny_model.config.num_hidden_layers
    with pytest.raises(UserError, match="exists"):
        t2l_import(tmp_path / "theirs", tmp_path / "ours")
