"""SVF on the language part of vision-language models, as tiny random ones that look at random pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import PeftModel, get_peft_model
from torch import Tensor, nn

from experts.exchange.export import best_lora
from experts.expert import Expert
from experts.svf import SVFConfig, SVFLinear
from experts.svf.fingerprint import fingerprint

TEXT = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 8,
    "patch_size": 4,
    "initializer_range": 0.2,
}
IMAGE, START, END = 63, 62, 61  # token ids


def llava_next() -> tuple[Any, dict[str, Tensor], int]:
    config = transformers.LlavaNextConfig(
        text_config=transformers.LlamaConfig(**TEXT),
        vision_config=transformers.CLIPVisionConfig(**VISION),
        image_token_index=IMAGE,
        image_grid_pinpoints=[[8, 8]],
        vision_feature_layer=-1,
        image_seq_length=4,
    )
    pictures = {"pixel_values": torch.randn(3, 2, 3, 8, 8), "image_sizes": torch.tensor([[8, 8]] * 3)}
    return (
        transformers.LlavaNextForConditionalGeneration(config),
        pictures,
        10,
    )  # 2 × 2 patches, twice, and two line ends


def smolvlm() -> tuple[Any, dict[str, Tensor], int]:
    config = transformers.SmolVLMConfig(
        text_config=transformers.LlamaConfig(**TEXT), vision_config=VISION, image_token_id=IMAGE, scale_factor=2
    )
    return transformers.SmolVLMForConditionalGeneration(config), {"pixel_values": torch.randn(3, 1, 3, 8, 8)}, 1


def qwen2_5_vl() -> tuple[Any, dict[str, Tensor], int]:
    rope = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [1, 1, 2]}
    vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 4, "out_hidden_size": 32}
    config = transformers.Qwen2_5_VLConfig(
        text_config=TEXT | {"rope_parameters": rope},
        vision_config=vision
        | {"patch_size": 4, "spatial_merge_size": 1, "temporal_patch_size": 1, "window_size": 8}
        | {"fullatt_block_indexes": [1], "initializer_range": 0.2},
        image_token_id=IMAGE,
        vision_start_token_id=START,
        vision_end_token_id=END,
    )
    pictures = {"pixel_values": torch.randn(12, 3 * 4 * 4), "image_grid_thw": torch.tensor([[1, 2, 2]] * 3)}
    return transformers.Qwen2_5_VLForConditionalGeneration(config), pictures, 4


MODELS = {"LLaVA-NeXT": llava_next, "SmolVLM": smolvlm, "Qwen2.5-VL": qwen2_5_vl}


@pytest.fixture(params=MODELS)
def make(request: pytest.FixtureRequest) -> Any:
    """`make()` → a fresh copy of the same model, and a batch of three rows with a picture each."""

    def make() -> tuple[Any, dict[str, Tensor]]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model, pictures, length = MODELS[request.param]()
        words = torch.arange(3, 15).view(3, 4)
        picture = torch.tensor([START] + [IMAGE] * length + [END]).expand(3, -1)
        ids = torch.cat([words[:, :2], picture, words[:, 2:]], 1)
        return model.eval(), {"input_ids": ids, "attention_mask": torch.ones_like(ids), **pictures}

    return make


def svf_layers(model: nn.Module) -> dict[str, SVFLinear]:
    return {
        name.removeprefix("base_model.model."): module
        for name, module in model.named_modules()
        if isinstance(module, SVFLinear)
    }


def adapted(base: Any, rank: int | None = None) -> PeftModel:
    return get_peft_model(base, SVFConfig(target_modules="all-linear", rank=rank, task_type="CAUSAL_LM")).eval()


def perturb(model: PeftModel, seed: int = 0, name: str = "default") -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in svf_layers(model).values():
            layer.svf_z[name].add_(0.3 * torch.randn(layer.svf_z[name].shape, generator=generator))


def logits(model: Any, batch: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return model(**batch, use_cache=False).logits


def test_all_linear_is_the_language_part(make: Any) -> None:
    base, batch = make()
    wanted = logits(base, batch)
    decoder = {name for name, module in base.get_decoder().named_modules() if isinstance(module, nn.Linear)}
    model = adapted(base)
    found = svf_layers(model)
    assert len(found) == len(decoder) == 14
    assert not any("vision" in name or "visual" in name or "projector" in name for name in found)
    assert torch.equal(logits(model, batch), wanted)
    plain: Any = model.unload()
    half = get_peft_model(plain, SVFConfig(target_modules="all-linear", layers_to_transform=[1]))
    assert len(svf_layers(half)) == 7
    own = get_peft_model(half.unload(), SVFConfig(target_modules="all-linear", exclude_modules=["lm_head"]))
    assert len(svf_layers(own)) > 14  # who excludes for himself gets what is left


def test_a_step_changes_only_z_and_sees_the_picture(make: Any) -> None:
    base, batch = make()
    frozen = {key: value.clone() for key, value in base.state_dict().items()}
    model = adapted(base)
    negative = batch | {"pixel_values": -batch["pixel_values"]}
    assert not torch.equal(logits(model, batch), logits(model, negative))
    trainable = [p for p in model.parameters() if p.requires_grad]
    labels = batch["input_ids"].masked_fill(batch["input_ids"] >= END, -100)
    optimizer = torch.optim.AdamW(trainable, lr=0.05)
    before = model(**batch, labels=labels).loss
    before.backward()
    optimizer.step()
    assert model(**batch, labels=labels).loss < before
    plain: Any = model.unload()
    assert all(torch.equal(value, frozen[key]) for key, value in plain.state_dict().items())


def test_save_load_merge_and_export_with_pictures(make: Any, tmp_path: Path) -> None:
    base, batch = make()
    base_logits = logits(base, batch)
    model = adapted(base, rank=4)
    perturb(model)
    wanted = logits(model, batch)
    assert (wanted - base_logits).abs().max() > 1e-3
    model.save_pretrained(str(tmp_path / "expert"))
    loaded = PeftModel.from_pretrained(make()[0], str(tmp_path / "expert"))
    assert torch.equal(logits(loaded, batch), wanted)
    loaded.merge_adapter()
    torch.testing.assert_close(logits(loaded, batch), wanted, atol=1e-4, rtol=1e-4)
    loaded.unmerge_adapter()
    plain: Any = loaded.unload()
    assert torch.equal(logits(plain, batch), base_logits)

    z = {name: layer.svf_z["default"].detach() for name, layer in svf_layers(model).items()}
    expert = Expert(z, "tiny", fingerprint(plain))
    best_lora(plain, expert)[0].write(tmp_path / "lora")
    lora = PeftModel.from_pretrained(plain, str(tmp_path / "lora"))
    torch.testing.assert_close(logits(lora, batch), wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("rank", [None, 4])
def test_every_row_of_pictures_has_its_own_mixture(make: Any, rank: int | None) -> None:
    base, batch = make()
    model = adapted(base, rank)
    perturb(model)
    model.add_adapter("other", SVFConfig(target_modules="all-linear", rank=6))
    perturb(model, 1, "other")
    weights = torch.tensor([[1.0, 0.0], [0.3, 0.7], [0.0, 0.0]])
    with model.base_model.mixed(["default", "other"], weights):
        together = logits(model, batch)
    for row in range(3):
        with model.base_model.mixed(["default", "other"], weights[row : row + 1].expand(3, 2)):
            alone = logits(model, batch)
        torch.testing.assert_close(together[row], alone[row], atol=1e-4, rtol=1e-4)
    with model.disable_adapter():
        torch.testing.assert_close(together[2], logits(model, batch)[2], atol=1e-5, rtol=1e-5)
