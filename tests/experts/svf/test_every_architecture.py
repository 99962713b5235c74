"""The walk over the architectures that transformers has for causal language models: each is right, or says what is not.

`docs/training.md` has a table of what is adapted where, and why not the rest; it is held against what is found here.
`python -m tests.experts.svf.test_every_architecture` prints it anew.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn

from experts.engine import NativeEngine
from experts.engine.padding import reading_of
from experts.mixture import Mixture
from experts.outside.chats import tokenize
from experts.outside.errors import UserError
from experts.svf import SVFConfig, SVFLinear
from experts.svf.linear import left_out
from experts.svf.stacks import fused_matrices
from experts.svf.watching import linear_layers
from tests.small_models import small_model

# One of each kind of trouble is walked with the fast tests, the popular ones with the long, the rest with the slow.
FAST = {
    "DeepseekV3",
    "FalconMamba",
    "GPT2",
    "GptOss",
    "Jamba",
    "Llama",
    "Mixtral",
    "OPT",
    "Qwen3Next",
    "XLNet",
    "Zamba",
}
POPULAR = """
    Afmoe Arcee BioGpt Bamba Bart Bloom Cohere Cohere2 CTRL DeepseekV2 DeepseekV3 Dots1 Ernie4_5 Exaone4 Falcon
    FalconMamba Gemma Gemma2 Gemma3Text Gemma4Text Glm Glm4 GPT2 GPTBigCode GPTJ GPTNeo GPTNeoX GptOss Granite
    GraniteMoe Helium HunYuanMoEV1 Jamba JetMoe Lfm2 Llama Llama4Text LongcatFlash Mamba Mamba2 MiniMax Ministral3
    Mistral Mixtral Mpt NanoChat Nemotron Olmo2 Olmo3 Olmoe OPT Persimmon Phi Phi3 Phimoe Qwen2 Qwen2Moe Qwen3
    Qwen3_5Text Qwen3Moe Qwen3Next RecurrentGemma Rwkv SmolLM3 StableLm Starcoder2 XLNet Zamba Zaya
""".split()  # noqa: SIM905

# Bases whose own numbers depend, in the last bits, on where a tensor lies in memory.
UNSTEADY = {"FalconMamba", "Jamba", "Mamba"}

IDS = torch.arange(3, 27).view(3, 8)
NAMES = ["default", "other"]
WEIGHTS = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.5, 0.5]])
PROMPTS = ["2 + 2 =", "Spell it backwards.", "?"]
DOCUMENT = Path(__file__).parents[3] / "docs" / "training.md"
ALL = "nothing"


def table() -> dict[tuple[str, str], list[str]]:
    """The architectures of each row of the table in docs/training.md."""
    lines = DOCUMENT.read_text().split("| architectures |")[1].split("\n\n")[0].splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return {(out, batches): names.split(", ") for names, out, batches in cells}


EVERY = [name for names in table().values() for name in names]


def marks(name: str) -> list[pytest.MarkDecorator]:
    """When an architecture is walked."""
    return [] if name in FAST else [pytest.mark.long] if name in POPULAR else [pytest.mark.slow]


def logits(model: Any, ids: Tensor = IDS, mask: Tensor | None = None) -> Tensor:
    mask = torch.ones_like(ids) if mask is None else mask
    places = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=mask, position_ids=places, use_cache=False).logits


def close(x: Tensor, y: Tensor) -> bool:
    return bool((x - y).abs().max() <= 1e-3 * y.std())


def svf_layers(model: nn.Module) -> dict[str, SVFLinear]:
    return {name: m for name, m in linear_layers(model).items() if isinstance(m, SVFLinear)}


def with_two_experts(model: PeftModel) -> PeftModel:
    """The model with random z in "default", of full rank, and "other", of rank 4."""
    model.add_adapter("other", SVFConfig(rank=4))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for layer in svf_layers(model.get_base_model()).values():
            for z in layer.svf_z.values():
                z.add_(0.3 * torch.randn(z.shape, generator=generator))
    return model


def row_of_table(base: Any, model: PeftModel) -> tuple[str, str]:
    """What all-linear leaves out of an architecture, and what its batches cannot be."""
    layers = linear_layers(base)
    missing = {name for name, layer in layers.items() if not isinstance(layer, SVFLinear)}
    missing -= {name for name in missing if layers[name] is base.get_output_embeddings()}
    reasons = left_out(base, missing)
    out = [f"{', '.join(sorted({_short(name) for name in names}))}: {why}" for why, names in reasons.items()]
    if any(fused_matrices(module) for module in base.modules()):
        out.append("matrices that are fused into one tensor")
    batches = [] if all(reading_of(base)) else ["prompts of one length"]
    batches += [] if model.base_model.runs_rows(["default"]) else ["one mixture"]
    return "; ".join(out) or ALL, " and ".join(batches) or "any"


def _short(name: str) -> str:
    return "`" + ".".join([part for part in name.split(".") if not part.isdigit()][-2:]) + "`"


def check_training(name: str, base: Any, model: PeftModel, plain: Tensor) -> None:
    """z = 1 is the base, and every z has a gradient."""
    assert torch.equal(logits(model), plain) or (name in UNSTEADY and close(logits(model), plain))
    with_two_experts(model)
    output = model(input_ids=IDS, use_cache=False).logits
    (output * torch.randn(output.shape, generator=torch.Generator().manual_seed(1))).sum().backward()
    layers = svf_layers(base)
    assert layers
    assert [key for key, layer in layers.items() if layer.svf_z["default"].grad is None] == []
    model.requires_grad_(False)


def check_merging(name: str, model: PeftModel, plain: Tensor) -> None:
    adapted = logits(model)
    assert not close(adapted, plain)
    model.merge_adapter()
    assert close(logits(model), adapted)
    model.unmerge_adapter()
    with model.disable_adapter():
        assert torch.equal(logits(model), plain) or (name in UNSTEADY and close(logits(model), plain))


def check_rows(name: str, base: Any, model: PeftModel, plain: Tensor, tuner: Any) -> None:
    with tuner.mixed(NAMES, WEIGHTS):
        together = logits(model)
    alone = []
    for row in range(3):
        with tuner.mixed(NAMES, WEIGHTS[row : row + 1]):
            alone.append(logits(model, IDS[row : row + 1]))
    assert all(close(together[row : row + 1], alone[row]) for row in range(3))
    assert close(alone[0], _active(model))
    # Experts of a mixture multiply the tokens of all rows at once, as many as there are: the base's own last bits.
    among_others = any(fused_matrices(module) for module in base.modules())
    assert torch.equal(together[1], plain[1]) or ((among_others or name in UNSTEADY) and close(together[1], plain[1]))
    # As many rows as tokens: what lies along which dimension is not told by sizes.
    ids = torch.arange(3, 12).view(3, 3)
    with tuner.mixed(NAMES, WEIGHTS):
        square = logits(model, ids)
    with tuner.mixed(NAMES, WEIGHTS[2:]):
        assert close(square[2:], logits(model, ids[2:]))
    check_tokens(model, tuner, together)


def check_tokens(model: PeftModel, tuner: Any, together: Tensor) -> None:
    """Tokens that are under their row's mixture are what rows are; those that are not, are not. Or a layer says no."""
    numbers = torch.arange(3)[:, None].repeat(1, 8)
    others = torch.cat([numbers[:, :4], numbers[:, 4:].roll(1, 0)], 1)
    try:
        with tuner.mixed(NAMES, WEIGHTS, of_tokens=numbers):
            assert close(logits(model), together)
        with tuner.mixed(NAMES, WEIGHTS, of_tokens=others):
            assert not any(close(own, row) for own, row in zip(logits(model)[:, 4:], together[:, 4:], strict=True))
    except UserError as error:
        assert "cannot tell which text a token belongs to" in str(error)  # noqa: PT017


def _active(model: PeftModel) -> Tensor:
    return logits(model, IDS[:1])


def check_padding(model: PeftModel, tuner: Any) -> None:
    """Where padding changes nothing for the base, it changes nothing for the rows of a mixture."""
    for side in ("left", "right"):
        ids, mask = IDS.clone(), torch.ones_like(IDS)
        for row, length in enumerate((8, 5, 6)):
            hole = slice(0, 8 - length) if side == "left" else slice(length, 8)
            ids[row, hole], mask[row, hole] = 0, 0
        with tuner.mixed([], torch.zeros(3, 0)):
            base_padded = logits(model, ids, mask)
        with tuner.mixed(NAMES, WEIGHTS):
            padded = logits(model, ids, mask)
        for row in range(3):
            shown, single = mask[row].bool(), ids[row : row + 1, mask[row].bool()]
            with tuner.mixed([], torch.zeros(1, 0)):
                if not close(base_padded[row, shown], logits(model, single)[0]):
                    continue
            with tuner.mixed(NAMES, WEIGHTS[row : row + 1]):
                assert close(padded[row, shown], logits(model, single)[0]), (side, row)


def check_answers(base: Any, model: PeftModel, tuner: Any, tokenizer: Any) -> None:
    """The engine's answers are those that transformers writes to each prompt alone."""
    mixture = Mixture(tuple(NAMES), WEIGHTS)
    engine = NativeEngine(model, tokenizer)
    answers = engine.generate(PROMPTS, max_new_tokens=12, mixture=mixture)
    ends = {"pad_token_id": 0, "eos_token_id": base.generation_config.eos_token_id}
    for row, prompt in enumerate(PROMPTS):
        ids = torch.tensor(tokenize(tokenizer, [prompt]))
        with torch.inference_mode(), tuner.mixed(NAMES, WEIGHTS[row : row + 1]):
            written = base.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False, **ends
            )
        assert answers[row] == tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True), row


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [pytest.param(name, marks=marks(name)) for name in EVERY])
def test_an_architecture_is_right_or_said_not_to_be(name: str, tiny_tokenizer: Any) -> None:
    base = small_model(name)
    plain = logits(base)
    model = get_peft_model(base, SVFConfig(task_type="CAUSAL_LM")).eval()
    tuner: Any = model.base_model
    check_training(name, base, model, plain)
    check_merging(name, model, plain)
    if tuner.runs_rows(NAMES):
        check_rows(name, base, model, plain, tuner)
        check_padding(model, tuner)
    check_answers(base, model, tuner, tiny_tokenizer)
    assert name in table()[row_of_table(base, model)], f"{name}: print the table of docs/training.md anew"


def test_the_table_has_every_architecture_once() -> None:
    assert len(EVERY) == len({*EVERY}) > 150
    assert FAST <= {*POPULAR} <= {*EVERY}


def print_table() -> None:
    rows: dict[tuple[str, str], list[str]] = {}
    for name in sorted(EVERY, key=str.lower):
        base = small_model(name)
        rows.setdefault(row_of_table(base, get_peft_model(base, SVFConfig(task_type="CAUSAL_LM"))), []).append(name)
    print("| architectures | what `all-linear` leaves out, beside the head | rows that share a batch |\n|---|---|---|")
    for (out, batches), names in sorted(rows.items(), key=lambda row: (row[0][0] != ALL, -len(row[1]))):
        print(f"| {', '.join(names)} | {out} | {batches} |")


if __name__ == "__main__":
    print_table()
