"""Adapters that are more than their vectors: heads, tokens, resized vocabularies; and rows by adapter names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForQuestionAnswering,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    LlamaForTokenClassification,
)

from experts.expert import Expert
from experts.library import load_expert
from experts.outside.errors import UserError
from experts.svf import SVFConfig, SVFLinear

IDS = torch.arange(3, 43).view(2, 20)


def outputs(model: nn.Module, **kwargs: Any) -> Tensor:
    with torch.no_grad():
        return model(input_ids=IDS, **kwargs)[0]


def perturb(model: nn.Module, name: str = "default", seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, p in model.named_parameters():
            if f".{name}" in key:
                p.add_(0.3 * torch.randn(p.shape, generator=generator))


def llama(kind: Any) -> Any:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    return kind(LlamaConfig(vocab_size=64, **sizes, num_labels=3, pad_token_id=0, initializer_range=0.2))


def bert() -> BertForQuestionAnswering:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    return BertForQuestionAnswering(BertConfig(vocab_size=64, **sizes))


def distilbert() -> DistilBertForSequenceClassification:
    config = DistilBertConfig(vocab_size=64, dim=32, hidden_dim=48, n_layers=2, n_heads=4, num_labels=3)
    return DistilBertForSequenceClassification(config)


HEADS = {
    "SEQ_CLS": (lambda: llama(LlamaForSequenceClassification), {"score"}),
    "TOKEN_CLS": (lambda: llama(LlamaForTokenClassification), {"score"}),
    "QUESTION_ANS": (bert, {"qa_outputs"}),
    "SEQ_CLS of DistilBERT": (distilbert, {"classifier", "pre_classifier"}),
}


def made(make: Callable[[], Any]) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make().eval()


@pytest.mark.parametrize("task", HEADS)
@pytest.mark.parametrize("targets", ["all-linear", r".*\.(q_proj|query|q_lin)"])
def test_a_head_is_trained_and_saved_with_the_vectors(task: str, targets: str, tmp_path: Path) -> None:
    make, heads = HEADS[task]
    config = SVFConfig(task_type=task.split()[0], target_modules=targets)
    base = outputs(made(make))
    model = get_peft_model(made(make), config)
    trained = [name for name, p in model.named_parameters() if p.requires_grad and "svf_z" not in name]
    assert {name.split(".modules_to_save")[0].rpartition(".")[2] for name in trained} == heads
    torch.testing.assert_close(outputs(model), base)
    perturb(model)
    wanted = outputs(model)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(made(make), str(tmp_path))
    torch.testing.assert_close(outputs(loaded), wanted)
    torch.testing.assert_close(outputs(loaded.merge_and_unload()), wanted, atol=1e-4, rtol=1e-4)
    with pytest.raises(UserError, match=r"modules of its own \(.*load it with PEFT"):
        Expert.read(tmp_path)


@pytest.mark.parametrize("task", ["SEQ_CLS", "TOKEN_CLS"])
def test_rows_have_the_heads_of_their_adapters(task: str) -> None:
    make, _ = HEADS[task]
    model = get_peft_model(made(make), SVFConfig(task_type=task))
    model.add_adapter("other", SVFConfig(task_type=task, target_modules=["up_proj"]))
    model.eval()
    alone = {}
    for seed, name in enumerate(("default", "other")):
        perturb(model, name, seed)
        model.set_adapter(name)
        alone[name] = outputs(model)
    with model.disable_adapter():
        alone["__base__"] = outputs(model)
    for names in (["default", "other"], ["other", "__base__"], ["other", "other"], ["__base__", "default"]):
        found = outputs(model, adapter_names=names)
        for row, name in enumerate(names):
            torch.testing.assert_close(found[row], alone[name][row], atol=1e-4, rtol=1e-4)
    with pytest.raises(UserError, match="cannot be mixed"), model.base_model.mixed(["other"], torch.full((2, 1), 0.5)):
        pass


def test_a_base_without_the_head_is_refused(tiny_model: LlamaForCausalLM) -> None:
    with pytest.raises(UserError, match="no classifier or score to train for SEQ_CLS"):
        get_peft_model(tiny_model, SVFConfig(task_type="SEQ_CLS"))


def test_a_head_beside_a_compiled_model_is_refused() -> None:
    model = torch.compile(made(HEADS["SEQ_CLS"][0]), backend="eager")
    with pytest.raises(UserError, match="load the adapters first, then compile it"):
        get_peft_model(model, SVFConfig(task_type="SEQ_CLS"))


@pytest.mark.parametrize("kept", [{"modules_to_save": ["norm"]}, {"trainable_token_indices": [3, 5]}])
def test_other_modules_and_tokens_are_trained_and_saved(kept: Any, tiny_folder: Path, tmp_path: Path) -> None:
    base = LlamaForCausalLM.from_pretrained(tiny_folder)
    before = outputs(base)
    model = get_peft_model(base, SVFConfig(rank=4, task_type="CAUSAL_LM", **kept))
    torch.testing.assert_close(outputs(model), before)
    perturb(model)
    wanted = outputs(model)
    with model.disable_adapter():
        torch.testing.assert_close(outputs(model), before)
    model.save_pretrained(tmp_path / "expert")
    plain = LlamaForCausalLM.from_pretrained(tiny_folder)
    loaded = PeftModel.from_pretrained(plain, str(tmp_path / "expert"))
    torch.testing.assert_close(outputs(loaded), wanted)
    torch.testing.assert_close(outputs(loaded.merge_and_unload()), wanted, atol=1e-4, rtol=1e-4)
    with pytest.raises(UserError, match="modules of its own"):
        Expert.read(tmp_path / "expert")


@pytest.mark.parametrize(("kept", "names"), [("norm", ("weight", "z")), ("mlp", ("gate_proj", "weight"))])
def test_adapters_may_be_called_like_what_is_saved_with_them(
    kept: str, names: tuple[str, str], tiny_folder: Path, tmp_path: Path
) -> None:
    config = {"rank": 4, "target_modules": ["q_proj"], "modules_to_save": [kept]}
    model = get_peft_model(LlamaForCausalLM.from_pretrained(tiny_folder), SVFConfig(**config), names[0])
    model.add_adapter(names[1], SVFConfig(**config))
    wanted = {}
    for seed, name in enumerate(names):
        model.set_adapter(name)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.1 * (seed + 1))
        wanted[name] = outputs(model)
    model.save_pretrained(tmp_path)
    for name in names:
        plain = LlamaForCausalLM.from_pretrained(tiny_folder)
        torch.testing.assert_close(outputs(PeftModel.from_pretrained(plain, str(tmp_path / name))), wanted[name])


def test_a_model_with_a_resized_vocabulary_comes_back(tiny_folder: Path, tmp_path: Path) -> None:
    def base() -> Any:
        return LlamaForCausalLM.from_pretrained(tiny_folder)

    size = base().config.vocab_size
    resized = base()
    resized.resize_token_embeddings(size + 3)
    model = get_peft_model(resized, SVFConfig(rank=4))
    perturb(model)
    wanted = outputs(model)
    model.save_pretrained(tmp_path / "expert")
    assert any("embed_tokens" in key for key in load_file(tmp_path / "expert" / "adapter_model.safetensors"))

    expert = Expert.read(tmp_path / "expert")
    assert len(expert.z) == 14
    plain = base()
    before = plain.get_input_embeddings().weight.clone()
    loaded = load_expert(plain, tmp_path / "expert")
    assert torch.equal(loaded.get_input_embeddings().weight, before)
    torch.testing.assert_close(outputs(loaded), wanted[..., :size])

    again = base()
    again.resize_token_embeddings(size + 3)
    again.get_input_embeddings().weight.data[size:] = 9.0
    torch.testing.assert_close(outputs(PeftModel.from_pretrained(again, str(tmp_path / "expert"))), wanted)


@pytest.mark.parametrize("task", [None, "CAUSAL_LM"])
@pytest.mark.parametrize(
    "names",
    [[], ["default"], ["default"] * 5, ["__base__"] * 4, "default", ["nobody"] * 3, ["default", None, "default"]],
)
def test_adapter_names_are_one_a_row(task: str | None, names: Any, tiny_model: LlamaForCausalLM) -> None:
    model = get_peft_model(tiny_model, SVFConfig(rank=4, task_type=task)).eval()
    ids = torch.arange(3, 33).view(3, 10)
    for run in (model, model.generate):
        with pytest.raises(ValueError, match=r"name for each row|unknown expert 'nobody'"), torch.no_grad():
            run(input_ids=ids, adapter_names=names)
    with pytest.raises(ValueError, match=r"name for each row|unknown expert 'nobody'"), torch.no_grad():
        model(inputs_embeds=model.get_input_embeddings()(ids), adapter_names=names)
    options = {"max_new_tokens": 2, "num_beams": 2, "num_return_sequences": 2}
    answers = model.generate(input_ids=ids, adapter_names=["default", "__base__", "default"], **options)
    assert len(answers) == 6


def test_vectors_stay_in_float32_however_they_are_loaded(tiny_model: LlamaForCausalLM, tmp_path: Path) -> None:
    model = get_peft_model(tiny_model.bfloat16(), SVFConfig(rank=4))
    perturb(model)
    wanted = {n: m.svf_z["default"].clone() for n, m in model.named_modules() if isinstance(m, SVFLinear)}
    for safe in (True, False):
        model.save_pretrained(tmp_path / str(safe), safe_serialization=safe)
    base = model.unload()
    for safe in ("True", "False"):
        for kwargs in ({}, {"low_cpu_mem_usage": True}, {"is_trainable": True}, {"autocast_adapter_dtype": False}):
            loaded = PeftModel.from_pretrained(base, str(tmp_path / safe), **kwargs)
            found = {n: m.svf_z["default"] for n, m in loaded.named_modules() if isinstance(m, SVFLinear)}
            assert all(torch.equal(z, wanted[name]) and z.dtype == torch.float32 for name, z in found.items())
            assert all(z.requires_grad == ("is_trainable" in kwargs) for z in found.values())
            base = loaded.unload()


def test_the_status_of_adapters_is_told(tiny_model: LlamaForCausalLM) -> None:
    model = get_peft_model(tiny_model, SVFConfig(rank=4))
    model.add_adapter("second", SVFConfig(target_modules=["up_proj"]))
    status = model.get_model_status()
    assert status.peft_types == {"default": "SVF", "second": "SVF"}
    assert (status.num_adapter_layers, status.available_adapters) == (14, ["default", "second"])
    assert status.requires_grad == {"default": True, "second": False}
    assert model.get_layer_status()[0].devices == {"default": ["cpu"]}
    assert model.get_nb_trainable_parameters()[0] == 14 * 4
