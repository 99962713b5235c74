"""SVF of a mixture's matrices, on the architectures of which docs/training.md says that all-linear leaves them out."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from dispatch.few_shot import matrix_groups
from experts.engine import NativeEngine
from experts.engine.lora_cache import LoraCache
from experts.exchange.export import best_lora, export_merged
from experts.expert import Expert
from experts.library import ExpertLibrary
from experts.mixture import Mixture
from experts.outside.errors import UserError
from experts.svf import SVFConfig
from experts.svf.decomposition import decompose
from experts.svf.fingerprint import fingerprint
from experts.svf.mixing import LoraFactors
from experts.svf.scaled import SVFLayer
from experts.svf.sigmoid import effective_z
from experts.svf.stacks import SVFExperts, SVFStack, fused_parameters
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
    Afmoe DeepseekV3 GptOss JetMoe Llama4Text LongcatFlash Mixtral NemotronH
""".split()  # noqa: SIM905
OTHERS = {"RecurrentGemma", "XLNet", "Zamba"}  # whose parameters of three dimensions are no mixture's
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
        stack.parameter.requires_grad_(True)
    output = model(input_ids=IDS, use_cache=False).logits
    (output * torch.randn(output.shape, generator=torch.Generator().manual_seed(1))).sum().backward()
    scale = max(stack.svf_z["default"].grad.abs().max() for stack in stacks.values())
    for key, stack in stacks.items():
        u, s, vt = decompose(stack.pristine_weight)
        wanted = s * torch.einsum("emr,emn,ern->er", u, stack.parameter.grad, vt)
        assert (stack.svf_z["default"].grad - wanted).abs().max() < 1e-3 * scale, key
        reached = stack.parameter.grad.flatten(1).any(1)  # matrices that a token is sent to
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


@pytest.mark.parametrize("implementation", ["eager", "batched_mm", "grouped_mm"])
@pytest.mark.parametrize("name", ["Mixtral", "GptOss"])
def test_however_a_mixture_multiplies_in_half_precision_small_differences_are_kept(
    name: str, implementation: str
) -> None:
    base = small_model(name)
    base.config._experts_implementation = implementation
    precise = get_peft_model(base, stacks_alone(base, rank=5)).eval()
    perturb(precise)
    moved = logits(precise) - logits(base_of(precise))
    base = small_model(name).to(torch.bfloat16)
    base.config._experts_implementation = implementation
    plain = logits(base)
    model = get_peft_model(base, stacks_alone(base, rank=5)).eval()
    assert torch.equal(logits(model), plain)
    perturb(model)
    assert (logits(model).float() - plain.float() - moved).norm() < 0.1 * moved.norm()
    assert {z.dtype for stack in stacks_in(model).values() for z in stack.svf_z.values()} == {torch.float32}


def base_of(model: Any) -> Any:
    """The base without its experts, in a copy."""
    return copy.deepcopy(model).unload()


def test_gradients_are_those_of_finite_differences() -> None:
    base = small_model("Mixtral").double()
    base.config._experts_implementation = "eager"  # the others have no double precision
    model = get_peft_model(base, stacks_alone(base, rank=3)).eval()
    perturb(model)
    stack = next(iter(stacks_in(model).values()))

    def loss() -> Tensor:
        return model(input_ids=IDS, use_cache=False).logits.square().mean()

    loss().backward()
    z = stack.svf_z["default"]
    for place in ((0, 0), (1, 2), (3, 1)):
        values = []
        for step in (1e-2, -2e-2):  # routers count in single precision
            with torch.no_grad():
                z[place] += step
                values.append(loss())
        with torch.no_grad():
            z[place] += 1e-2
        assert (values[0] - values[1]).item() / 2e-2 == pytest.approx(z.grad[place].item(), rel=1e-2)


@pytest.mark.parametrize("name", ["Mixtral", "GptOss", "Llama4Text"])
def test_training_keeps_no_copy_of_the_matrices_and_makes_no_gradient_of_one(name: str) -> None:
    model = adapted(name)
    stacks = stacks_in(model.get_base_model()).values()
    own = {stack.parameter.untyped_storage().data_ptr() for stack in stacks}
    smallest = min(stack.parameter.numel() for stack in stacks)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        output = model(input_ids=IDS[:1, :4], use_cache=False).logits
    output.sum().backward()
    large = [t for t in kept if t.numel() >= smallest and t.untyped_storage().data_ptr() not in own]
    assert not [t.shape for t in large if t.ndim == 3 and len(t) == 4]
    assert all(stack.parameter.grad is None for stack in stacks)


def test_gradient_checkpointing_and_the_hooks_of_accelerate_change_nothing() -> None:
    model: Any = adapted("Mixtral")
    wanted = logits(model)
    for module in model.modules():
        if isinstance(module, SVFExperts):
            add_hook_to_module(module.base_layer, AlignDevicesHook(execution_device="cpu"))
    assert torch.equal(logits(model), wanted)
    model.train()
    model.gradient_checkpointing_enable()
    model.enable_input_require_grads()
    model(input_ids=IDS, use_cache=False).logits.sum().backward()
    assert all(stack.svf_z["default"].grad is not None for stack in stacks_in(model).values())


def test_what_other_threads_run_is_not_changed() -> None:
    model = adapted("Mixtral")
    wanted, seen = logits(model), []
    tuner: Any = model.base_model
    with tuner.mixed([], torch.zeros(3, 0)):
        thread = Thread(target=lambda: seen.append(logits(model)))
        thread.start()
        thread.join()
        assert not close(logits(model), wanted)
    assert torch.equal(seen[0], wanted)
    assert torch.equal(logits(copy.deepcopy(model)), wanted)


@pytest.mark.slow
def test_a_compiled_base_gives_the_same() -> None:
    model: Any = adapted("Mixtral")
    compiled = torch.compile(model.get_base_model(), backend="eager")
    assert close(logits(compiled), logits(model))
    with model.base_model.mixed(["default"], torch.full((3, 1), 0.5)):
        assert close(logits(compiled), logits(model))


def test_a_mixture_may_have_weights_of_its_own_for_a_stack_and_linear_layers_rows_of_theirs() -> None:
    base = small_model("Mixtral")
    config = SVFConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], target_parameters=["down_proj"])
    model: Any = get_peft_model(base, config).eval()
    perturb(model)
    tuner, stacks = model.base_model, [*stacks_in(model.get_base_model())]
    assert {*stacks} <= {*matrix_groups(model, "matrix")}
    rows, half = torch.tensor([[1.0], [0.0], [0.7]]), torch.full((3, 1), 0.5)
    with tuner.mixed(["default"], rows, per_matrix=dict.fromkeys(stacks, half)):
        together = logits(model)
    for row in range(3):
        with tuner.mixed(["default"], rows[row : row + 1], per_matrix=dict.fromkeys(stacks, half[:1])):
            assert close(together[row : row + 1], logits(model, IDS[row : row + 1]))
    with tuner.mixed(["default"], half * 0, per_matrix=dict.fromkeys(stacks, half)):
        assert not close(logits(model), together)


def test_routers_are_left_alone() -> None:
    base = small_model("Afmoe")  # whose routers are linear layers
    before = {name: p.clone() for name, p in base.named_parameters()}
    everything = SVFConfig(task_type="CAUSAL_LM", target_parameters=["experts.gate_up_proj", "experts.down_proj"])
    model: Any = get_peft_model(base, everything)
    model.add_adapter("other", SVFConfig(task_type="CAUSAL_LM"))  # beside stacks that are adapted already
    perturb(model)
    assert not [name for name, _ in model.named_parameters() if "svf_z" in name and "router" in name]
    assert not any("other" in stack.svf_z for stack in stacks_in(model).values())
    merged = model.merge_and_unload()
    changed = {name for name, p in merged.named_parameters() if not torch.equal(p, before[name])}
    assert {name for name in changed if "experts" in name} >= {*fused_parameters(merged)}
    assert not [name for name in changed if "router" in name or "norm" in name]


def test_a_list_of_names_means_linear_layers_beside_stacks_of_that_name() -> None:
    model: Any = get_peft_model(small_model("DeepseekV3"), SVFConfig(target_parameters=["experts.down_proj"]))
    model.add_adapter("other", SVFConfig(target_modules=["down_proj"]))
    carrying = [name for name, m in model.named_modules() if isinstance(m, SVFLayer) and "other" in m.svf_z]
    assert carrying
    assert not [name for name in carrying if isinstance(model.get_submodule(name), SVFStack)]


def test_layers_and_ranks_are_chosen_as_for_linear_layers() -> None:
    base = small_model("Mixtral")
    config = stacks_alone(base, rank=4, rank_pattern={"down_proj": 2}, layers_to_transform=[1])
    stacks = stacks_in(get_peft_model(base, config))
    assert {name.rpartition("layers.")[2]: [*stack.svf_z["default"].shape] for name, stack in stacks.items()} == {
        "1.mlp.experts.gate_up_proj": [4, 4],
        "1.mlp.experts.down_proj": [4, 2],
    }


def test_all_linear_stays_what_it_was() -> None:
    base = small_model("Mixtral")
    assert not stacks_in(get_peft_model(base, SVFConfig()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_parameters": ["gate_up_prj"]}, "gate_up_proj"),
        ({"target_parameters": ["mlp.gate.weight"]}, "not a parameter \\[experts, m, n\\]"),
        ({"target_parameters": "gate_up_proj"}, "must be a list"),
        ({"target_modules": ["mlp.experts"]}, "target_parameters"),
        ({"target_parameters": ["down_proj"], "rank_pattern": {"up_proj": 2}}, "rank_pattern"),
    ],
)
def test_names_that_mean_no_stack_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        get_peft_model(small_model("Mixtral"), SVFConfig(**options))


def test_bases_without_stacks_and_weights_that_are_not_dense_are_refused(tiny_model: Any) -> None:
    with pytest.raises(UserError, match="leave out target_parameters"):
        get_peft_model(tiny_model, SVFConfig(target_parameters=["gate_up_proj"]))
    options = {"target_modules": [], "target_parameters": ["down_proj"]}
    base = small_model("Mixtral")
    base.config._experts_implementation = "deepgemm"
    with pytest.raises(UserError, match=r"layers\.0\.mlp\.experts\.down_proj is run by 'deepgemm'"):
        get_peft_model(base, SVFConfig(**options))
    base = small_model("Mixtral")
    experts: Any = base.model.layers[0].mlp.experts
    experts.down_proj = nn.Parameter(experts.down_proj.to(torch.int8), requires_grad=False)
    with pytest.raises(UserError, match=r"layers\.0\.mlp\.experts\.down_proj is quantised \(int8\)"):
        get_peft_model(base, SVFConfig(**options))
    beside = get_peft_model(base, SVFConfig(target_modules=[], target_parameters=["gate_up_proj"]))
    with pytest.raises(UserError, match=r"layers\.0\.mlp\.experts\.down_proj is quantised \(int8\)"):
        beside.add_adapter("other", SVFConfig(**options))
    with pytest.raises(UserError, match=r"down_proj is not loaded \(meta device\)"):
        get_peft_model(small_model("Mixtral").to("meta"), SVFConfig(**options))


def test_a_lora_beside_is_refused_by_the_name_of_the_stack() -> None:
    model: Any = adapted("Mixtral")
    name = "model.layers.0.mlp.experts.down_proj"
    with pytest.raises(UserError, match=name):
        model.base_model.add_lora("lora", {name: LoraFactors(torch.zeros(2, 48), torch.zeros(32, 2))})


def expert_of(model: Any, folder: Path, base: Any) -> Expert:
    model.peft_config["default"].base_fingerprint = fingerprint(base)
    model.peft_config["default"].base_model_name_or_path = "tiny"
    model.save_pretrained(str(folder), selected_adapters=["default"])
    return Expert.read(folder)


def test_experts_of_stacks_are_added_scaled_kept_in_libraries_and_merged(tmp_path: Path, tiny_tokenizer: Any) -> None:
    base = small_model("Mixtral")
    everything = SVFConfig(task_type="CAUSAL_LM", rank=4, target_parameters=["gate_up_proj", "down_proj"])
    model: Any = get_peft_model(base, everything).eval()
    perturb(model)
    wanted = logits(model)
    expert = expert_of(model, tmp_path / "one", base)
    base = model.unload()
    smaller = replace(expert, z={matrix: z[..., :2] for matrix, z in expert.z.items()})
    twice = 0.5 * (expert + smaller) + 0.5 * (expert - smaller)
    assert {m: z.shape for m, z in twice.z.items()} == {m: z.shape for m, z in expert.z.items()}
    for matrix, z in twice.z.items():
        torch.testing.assert_close(z, expert.z[matrix])

    library = ExpertLibrary.create(tmp_path / "library", "tiny", fingerprint(base))
    library.add(tmp_path / "one")
    assert library.fits(base)
    assert not library.fits(small_model("Mixtral", num_local_experts=8))
    assert not library.fits(small_model("Qwen3"))
    half = library.mixed(Mixture.of({"one": 0.5}))
    torch.testing.assert_close(
        half.z["model.layers.0.mlp.experts.down_proj"], (0.5 * expert).z["model.layers.0.mlp.experts.down_proj"]
    )
    assert library.figures("one").parameters == sum(z.numel() for z in expert.z.values())

    engine = NativeEngine(library.load(small_model("Mixtral")), tiny_tokenizer)
    engine.carry("two", twice)
    ones, twos = (engine.generate(["2 + 2 ="], max_new_tokens=8, mixture=Mixture.of({n: 1.0})) for n in ("one", "two"))
    assert ones == twos
    with pytest.raises(UserError, match="native engine"):
        LoraCache(library, base)

    export_merged(expert, small_model("Mixtral"), tiny_tokenizer, tmp_path / "merged")
    assert close(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()), wanted)


def test_a_lora_that_peft_would_misread_is_refused(tmp_path: Path) -> None:
    """It takes the gate_proj of a shared expert for the matrix of that name in a fused parameter."""
    base = small_model("DeepseekV3")
    model: Any = get_peft_model(base, SVFConfig(task_type="CAUSAL_LM", rank=2)).eval()
    perturb(model)
    expert = expert_of(model, tmp_path / "one", base)
    with pytest.raises(UserError, match="PEFT would mistake"):
        best_lora(small_model("DeepseekV3"), expert)


def test_the_sigmoid_keeps_the_nuclear_norm_of_each_matrix() -> None:
    s, p = torch.rand(3, 5) + 0.1, torch.randn(3, 5)
    z = effective_z(p, s)
    torch.testing.assert_close((s * z).sum(1), s.sum(1))
    torch.testing.assert_close(z[1], effective_z(p[1], s[1]))
