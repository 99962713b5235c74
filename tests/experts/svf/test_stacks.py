"""SVF of a mixture's matrices, on the architectures of which docs/training.md says that all-linear leaves them out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn

from experts.exchange.export import best_lora
from experts.expert import Expert
from experts.outside.errors import UserError
from experts.svf import SVFConfig
from experts.svf.decomposition import decompose
from experts.svf.fingerprint import fingerprint
from experts.svf.scaled import SVFLayer
from experts.svf.stacks import SVFStack, fused_parameters
from tests.experts.svf.test_every_architecture import (
    IDS,
    NAMES,
    UNSTEADY,
    WEIGHTS,
    check_answers,
    check_merging,
    close,
    logits,
    table,
)
from tests.small_models import small_model

# Walked with every run of the tests; the rest with the slow ones.
POPULAR = """
    Afmoe DeepseekV3 GptOss GraniteMoe Jamba JetMoe Llama4Text LongcatFlash Mixtral NemotronH Olmoe Qwen3Next
""".split()  # noqa: SIM905
OTHERS = {"RecurrentGemma", "XLNet"}  # whose parameters of three dimensions are no mixture's
EVERY = [n for (out, _), names in table().items() if "fused into one" in out for n in names if n not in OTHERS]


def stacks_alone(base: nn.Module, **options: Any) -> SVFConfig:
    ends = sorted({name.rpartition(".")[2] for name in fused_parameters(base)})
    return SVFConfig(task_type="CAUSAL_LM", target_modules=[], target_parameters=ends, **options)


def stacks_in(model: nn.Module) -> dict[str, SVFStack]:
    return {name: module for name, module in model.named_modules() if isinstance(module, SVFStack)}


def perturb(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, SVFLayer):
                for z in layer.svf_z.values():
                    z.add_(0.3 * torch.randn(z.shape, generator=generator))


def adapted(name: str, rank: int | None = 4) -> PeftModel:
    """A base whose stacks carry two experts, "default" and "other"."""
    base = small_model(name)
    model: Any = get_peft_model(base, stacks_alone(base, rank=rank)).eval()
    model.add_adapter("other", stacks_alone(base, rank=2))
    perturb(model)
    return model


def check_gradients(name: str, model: PeftModel, plain: Tensor) -> None:
    """z = 1 is the base, and the gradient of every z is s_i u_iᵀ G v_i, where G is that of the whole matrix."""
    assert torch.equal(logits(model), plain) or (name in UNSTEADY and close(logits(model), plain))
    stacks = stacks_in(model.get_base_model())
    for stack in stacks.values():
        stack.weight.requires_grad_(True)
    output = model(input_ids=IDS, use_cache=False).logits
    (output * torch.randn(output.shape, generator=torch.Generator().manual_seed(1))).sum().backward()
    scale = max(stack.svf_z["default"].grad.abs().max() for stack in stacks.values())
    for key, stack in stacks.items():
        u, s, vt = decompose(stack.pristine_weight)
        wanted = s * torch.einsum("emr,emn,ern->er", u, stack.weight.grad, vt)
        assert (stack.svf_z["default"].grad - wanted).abs().max() < 1e-3 * scale, key
        reached = stack.weight.grad.flatten(1).any(1)  # matrices that a token is sent to
        assert reached.any(), key
        assert stack.svf_z["default"].grad[reached].all(), key
    model.requires_grad_(False)


def check_mixtures(model: PeftModel) -> None:
    """Rows that share a mixture run together, each as the sum of its experts' differences; others are refused."""
    tuner: Any = model.base_model
    assert not tuner.runs_rows(["default"])
    name = next(iter(stacks_in(model.get_base_model())))
    with pytest.raises(UserError, match=name), tuner.mixed(NAMES, WEIGHTS):
        pass
    with tuner.mixed(NAMES, torch.tensor([[1.0, 0.0]] * 3)):
        assert close(logits(model), logits(model, IDS))
    alone = logits(model)
    with tuner.mixed(NAMES, torch.tensor([[1.0, 0.0]] * 3)):
        assert torch.equal(logits(model), alone)
    weights = torch.tensor([[0.5, 0.7]] * 3)
    with tuner.mixed(NAMES, weights):
        together = logits(model)
    tuner.add_weighted_adapter(NAMES, [0.5, 0.7], "both")
    model.set_adapter("both")
    assert close(logits(model), together)
    model.delete_adapter("both")
    model.set_adapter("default")


def check_files(name: str, model: PeftModel, adapted: Tensor, folder: Path) -> None:
    """What is saved is loaded, as a LoRA of PEFT's target_parameters, too."""
    model.save_pretrained(str(folder), selected_adapters=["default"])
    assert torch.equal(logits(PeftModel.from_pretrained(small_model(name), str(folder))), adapted)
    expert = Expert.read(folder)
    assert {key.removeprefix("base_model.model.") for key in stacks_in(model)} == {*expert.z}
    lora, kept = best_lora(small_model(name), expert, rank=64)  # all that there are
    assert kept == pytest.approx(1)
    lora.write(folder / "lora")
    assert close(logits(PeftModel.from_pretrained(small_model(name), str(folder / "lora"))), adapted)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name", [name if name in POPULAR else pytest.param(name, marks=pytest.mark.slow) for name in EVERY]
)
def test_the_matrices_of_a_mixture_are_adapted(name: str, tiny_tokenizer: Any, tmp_path: Path) -> None:
    base = small_model(name)
    plain, own = logits(base), fingerprint(base)
    model: Any = get_peft_model(base, stacks_alone(base)).eval()
    check_gradients(name, model, plain)
    model.add_adapter("other", stacks_alone(base, rank=4))
    perturb(model)
    check_merging(name, model, plain)
    check_mixtures(model)
    check_answers(base, model, model.base_model, tiny_tokenizer)
    assert fingerprint(model) == own
    check_files(name, model, logits(model), tmp_path)
    assert torch.equal(logits(model.unload()), plain) or (name in UNSTEADY and close(logits(base), plain))
