"""SVF on whatever transformers loads as a causal language model with linear layers, as tiny random models."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from experts.engine import NativeEngine
from experts.exchange.export import best_lora, export_merged
from experts.expert import Expert
from experts.mixture import Mixture
from experts.outside.errors import UserError
from experts.svf import SVFConfig, SVFLinear
from experts.svf.fingerprint import fingerprint

IDS = torch.arange(3, 27).view(3, 8)

COMMON = {
    "vocab_size": 259,  # of the tiny tokenizer
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,  # grouped queries: k and v are smaller than q
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
WITHOUT_GROUPS = {key: value for key, value in COMMON.items() if key != "num_key_value_heads"}
GPT2 = {
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 64,
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "attn_pdrop": 0.0,
}
MIXTURE_OF_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 8}

# Config class → its arguments and the linear layers of two blocks.
ARCHITECTURES: dict[str, tuple[dict[str, Any], int]] = {
    "Llama": (COMMON, 14),
    "Mistral": (COMMON | {"sliding_window": 4, "head_dim": 8}, 14),
    "Qwen2": (COMMON | {"tie_word_embeddings": True}, 14),
    "Qwen3": (COMMON | {"head_dim": 8}, 14),
    "Gemma3Text": (COMMON | {"head_dim": 8, "sliding_window": 4}, 14),
    "Phi": (COMMON, 12),
    "Phi3": (COMMON, 8),
    "GPT2": (WITHOUT_GROUPS | GPT2, 8),
    "GPTNeoX": (WITHOUT_GROUPS, 8),
    "Olmo2": (COMMON, 14),
    "Mixtral": (COMMON | {"num_local_experts": 4, "num_experts_per_tok": 2}, 8),
    "Qwen3Moe": (COMMON | MIXTURE_OF_EXPERTS, 8),
}


def make_base(name: str, dtype: torch.dtype = torch.float32, **changes: Any) -> PreTrainedModel:
    config = getattr(transformers, f"{name}Config")(**ARCHITECTURES[name][0] | changes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="eager").eval()
    return model


def svf_layers(model: nn.Module) -> dict[str, SVFLinear]:
    return {
        name.removeprefix("base_model.model."): module
        for name, module in model.named_modules()
        if isinstance(module, SVFLinear)
    }


def adapted(base: PreTrainedModel, rank: int | None = None) -> PeftModel:
    return get_peft_model(base, SVFConfig(target_modules="all-linear", rank=rank, task_type="CAUSAL_LM")).eval()


def perturb(model: PeftModel, seed: int = 0, name: str = "default") -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in svf_layers(model).values():
            z = layer.svf_z[name]
            z.add_(0.3 * torch.randn(z.shape, generator=generator))


def logits(model: Any, ids: Tensor = IDS) -> Tensor:
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False).logits


LATENT = {"kv_lora_rank": 8, "q_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 8}
SHARED_EXPERT = {
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
}
# Their layers see tokens end to end, or with a dimension for the heads.
UNUSUAL_SHAPES: dict[str, dict[str, Any]] = {
    "OPT": {**WITHOUT_GROUPS, "ffn_dim": 48, "word_embed_proj_dim": 32, "init_std": 0.2},
    "Qwen2Moe": COMMON | MIXTURE_OF_EXPERTS | {"shared_expert_intermediate_size": 16},
    "DeepseekV2": COMMON | MIXTURE_OF_EXPERTS | LATENT | SHARED_EXPERT | {"num_key_value_heads": 4},
    "DeepseekV3": COMMON | MIXTURE_OF_EXPERTS | LATENT | SHARED_EXPERT | {"num_key_value_heads": 4, "head_dim": 4},
}


@pytest.mark.parametrize("name", UNUSUAL_SHAPES)
def test_rows_equal_the_same_rows_alone_whatever_shape_layers_see(name: str) -> None:
    config = getattr(transformers, f"{name}Config")(**UNUSUAL_SHAPES[name])
    torch.manual_seed(0)
    model = adapted(AutoModelForCausalLM.from_config(config).eval())
    model.add_adapter("small", SVFConfig(rank=4))
    perturb(model)
    perturb(model, 1, "small")
    weights = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.5, 0.5]])
    with model.base_model.mixed(["default", "small"], weights):
        together = logits(model)
    for row in range(3):
        with model.base_model.mixed(["default", "small"], weights[row : row + 1]):
            torch.testing.assert_close(logits(model, IDS[row : row + 1])[0], together[row], atol=1e-4, rtol=1e-4)


@pytest.fixture(params=ARCHITECTURES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def test_z_of_one_is_the_base_and_one_step_changes_only_z(name: str) -> None:
    base = make_base(name)
    wanted = logits(base)
    frozen = {key: value.clone() for key, value in base.state_dict().items()}
    model = adapted(base)
    assert len(svf_layers(model)) == ARCHITECTURES[name][1]
    assert torch.equal(logits(model), wanted)

    trainable = {key: p for key, p in model.named_parameters() if p.requires_grad}
    assert all(key.endswith("svf_z.default") for key in trainable)
    optimizer = torch.optim.AdamW(trainable.values(), lr=0.05)
    before = model(input_ids=IDS, labels=IDS).loss
    before.backward()
    assert all(p.grad is not None and p.grad.any() for p in trainable.values())
    optimizer.step()
    assert model(input_ids=IDS, labels=IDS).loss < before
    assert all(not torch.equal(p, torch.ones_like(p)) for p in trainable.values())
    plain: Any = model.unload()
    assert all(torch.equal(value, frozen[key]) for key, value in plain.state_dict().items())
    assert torch.equal(logits(plain), wanted)


def test_save_load_merge_and_unmerge(name: str, tmp_path: Path) -> None:
    model = adapted(make_base(name))
    perturb(model)
    wanted = logits(model)
    model.save_pretrained(str(tmp_path))
    loaded = PeftModel.from_pretrained(make_base(name), str(tmp_path))
    assert torch.equal(logits(loaded), wanted)

    with loaded.disable_adapter():
        base_logits = logits(loaded)
    assert (wanted - base_logits).abs().max() > 1e-3
    loaded.merge_adapter()
    torch.testing.assert_close(logits(loaded), wanted, atol=1e-4, rtol=1e-4)
    loaded.unmerge_adapter()
    plain: Any = loaded.unload()
    assert torch.equal(logits(plain), base_logits)


@pytest.mark.parametrize("rank", [None, 4])
def test_rows_of_a_mixed_batch_equal_the_same_rows_alone(name: str, rank: int | None) -> None:
    model = adapted(make_base(name), rank)
    perturb(model)
    model.add_adapter("other", SVFConfig(target_modules="all-linear", rank=6))
    perturb(model, 1, "other")
    weights = torch.tensor([[1.0, 0.0], [0.3, 0.7], [0.0, 0.0]])
    with model.base_model.mixed(["default", "other"], weights):
        together = logits(model)
    for row in range(3):
        with model.base_model.mixed(["default", "other"], weights[row : row + 1]):
            alone = logits(model, IDS[row : row + 1])
        torch.testing.assert_close(together[row : row + 1], alone, atol=1e-4, rtol=1e-4)
    with model.disable_adapter():
        torch.testing.assert_close(together[2], logits(model)[2], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(together[0], logits(model)[0], atol=1e-4, rtol=1e-4)


def test_exports_give_the_same_logits(name: str, tmp_path: Path, tiny_tokenizer: Any) -> None:
    base = make_base(name)
    model = adapted(base, rank=4)
    perturb(model)
    wanted = logits(model)
    z = {matrix: layer.svf_z["default"].detach().clone() for matrix, layer in svf_layers(model).items()}
    model.unload()
    expert = Expert(z, name, fingerprint(base), "Random.")
    best_lora(base, expert)[0].write(tmp_path / "lora")
    lora = PeftModel.from_pretrained(base, str(tmp_path / "lora"))
    torch.testing.assert_close(logits(lora), wanted, atol=1e-4, rtol=1e-4)
    lora.unload()
    export_merged(expert, base, tiny_tokenizer, tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32, attn_implementation="eager")
    torch.testing.assert_close(logits(merged), wanted, atol=1e-4, rtol=1e-4)


def test_answers_under_mixtures_do_not_depend_on_the_batch(name: str, tiny_tokenizer: Any) -> None:
    model = adapted(make_base(name), rank=4)
    perturb(model)
    model.add_adapter("other", SVFConfig(target_modules="all-linear"))
    perturb(model, 1, "other")
    prompts = ["2 + 2 =", "Spell it backwards.", "?"]
    mixture = Mixture(("default", "other"), torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.5, 0.5]]))
    together = NativeEngine(model, tiny_tokenizer).generate(prompts, max_new_tokens=5, mixture=mixture)
    for row, prompt in enumerate(prompts):
        (alone,) = NativeEngine(model, tiny_tokenizer).generate([prompt], max_new_tokens=5, mixture=mixture.rows([row]))
        assert together[row] == alone
    with torch.inference_mode(), model.disable_adapter():
        (base,) = NativeEngine(model, tiny_tokenizer).generate(prompts[1:2], max_new_tokens=5)
    assert together[1] == base


def test_bfloat16_and_gradient_checkpointing(name: str) -> None:
    base = make_base(name, torch.bfloat16)
    wanted = logits(base)
    model = adapted(base, rank=4)
    assert torch.equal(logits(model), wanted)
    gradients: list[dict[str, Tensor]] = []
    for checkpointed in (False, True):
        if checkpointed:
            model.gradient_checkpointing_enable()
            model.enable_input_require_grads()
        model.train()
        model(input_ids=IDS, labels=IDS).loss.backward()
        trainable = {key: p for key, p in model.named_parameters() if p.requires_grad}
        assert all(p.dtype == p.grad.dtype == torch.float32 for p in trainable.values())
        gradients.append({key: p.grad.clone() for key, p in trainable.items()})
        model.zero_grad()
    torch.testing.assert_close(gradients[0], gradients[1])


MIXTURES = [name for name in ARCHITECTURES if name in ("Mixtral", "Qwen3Moe")]


@pytest.mark.parametrize("name", MIXTURES)
def test_fused_experts_are_left_out_aloud_and_refused_by_name(name: str, caplog: pytest.LogCaptureFixture) -> None:
    base = make_base(name)
    adapted(base).unload()
    assert "4 stacks of mixture-of-experts matrices, such as model.layers.0.mlp.experts.gate_up_proj" in caplog.text
    for target in (["experts"], r".*\.mlp\.experts"):
        with pytest.raises(UserError, match="fused into one tensor"):
            get_peft_model(base, SVFConfig(target_modules=target))
    with pytest.raises(UserError, match="unknown target module 'gate_up_proj'"):
        get_peft_model(base, SVFConfig(target_modules=["gate_up_proj"]))


@pytest.mark.parametrize("name", MIXTURES)
def test_fused_experts_tell_bases_apart(name: str) -> None:
    base = make_base(name)
    before = fingerprint(base)
    with torch.no_grad():
        base.model.layers[1].mlp.experts.down_proj[0, 0, 0] += 1
    assert fingerprint(base) != before


def test_quantised_bases_are_refused() -> None:
    base = make_base("Llama")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's own 8-bit layers are on their way out
        eight_bit = torch.ao.quantization.quantize_dynamic(base, {nn.Linear}, dtype=torch.qint8)
    with pytest.raises(UserError, match=r"no linear layer.*as bitsandbytes quantises them"):
        get_peft_model(eight_bit, SVFConfig())
    with pytest.raises(UserError, match=r"q_proj is a Linear, but SVF adapts only torch\.nn\.Linear"):
        get_peft_model(eight_bit, SVFConfig(target_modules=["q_proj"]))
    for dtype in (torch.uint8, torch.int8, torch.float8_e4m3fn):  # how 4-bit, 8-bit and FP8 layers keep their weights
        layer = base.model.layers[0].mlp.up_proj
        layer.weight = nn.Parameter(layer.weight.detach().to(dtype), requires_grad=False)
        with pytest.raises(UserError, match=r"up_proj is quantised \(Linear, \w+\).*without quantisation"):
            get_peft_model(base, SVFConfig(target_modules=["up_proj"]))


@pytest.mark.parametrize(
    ("rank", "backend"),
    [
        (4, "aot_eager"),
        pytest.param(4, "inductor", marks=pytest.mark.slow),
        pytest.param(None, "inductor", marks=pytest.mark.slow),
    ],
)
def test_a_compiled_model_trains_and_answers_alike(rank: int | None, backend: str) -> None:
    config = {**ARCHITECTURES["Llama"][0], "num_hidden_layers": 1}
    torch.manual_seed(0)
    model = adapted(AutoModelForCausalLM.from_config(transformers.LlamaConfig(**config)).eval(), rank)
    perturb(model)
    trainable = [p for p in model.parameters() if p.requires_grad]
    compiled: Callable[..., Any] = torch.compile(model, backend=backend)
    try:
        wanted = torch.autograd.grad(model(input_ids=IDS, labels=IDS).loss, trainable)
        compiled(input_ids=IDS, labels=IDS).loss.backward()
        for parameter, gradient in zip(trainable, wanted, strict=True):
            torch.testing.assert_close(parameter.grad, gradient, atol=1e-6, rtol=1e-4)
        torch.optim.AdamW(trainable, lr=0.1).step()
        torch.testing.assert_close(logits(compiled), logits(model), atol=1e-5, rtol=1e-5)
    finally:
        torch._dynamo.reset()
