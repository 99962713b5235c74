"""What leaves the project answers as it did inside: PEFT and transformers alone give the same logits."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from peft import LoraConfig, PeftConfig, PeftModel, convert_to_lora
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoTokenizer

from experts import Expert, ExpertLibrary, Mixture
from experts.engine import mixed
from experts.exchange.export import best_lora, export_lora, export_merged
from experts.exchange.measure import NEUTRAL_TEXTS, log_likelihood
from experts.outside.errors import UserError
from experts.svf.fingerprint import fingerprint

IDS = torch.arange(3, 43).view(2, 20)
MLP = ("gate_proj", "up_proj", "down_proj")


def random_expert(base: Any, rank: int | None, seed: int, names: tuple[str, ...] = MLP) -> Expert:
    generator = torch.Generator().manual_seed(seed)
    z = {}
    for matrix, module in base.named_modules():
        if matrix.endswith(names):
            r = min(*module.weight.shape, rank or 10_000)
            z[matrix] = 1 + 0.4 * torch.randn(r, generator=generator)
    return Expert(z, "tiny", fingerprint(base), f"Random {seed}.")


@pytest.fixture
def library(tiny_model: Any, tmp_path: Path) -> ExpertLibrary:
    """`small` limits the rank of the MLP, `mixed` has all of the attention, `whole` all of the MLP."""
    library = ExpertLibrary.create(tmp_path / "library", "tiny", fingerprint(tiny_model))
    random_expert(tiny_model, 4, 1).write(tmp_path / "small")
    random_expert(tiny_model, None, 2, ("q_proj", "k_proj")).write(tmp_path / "mixed")
    random_expert(tiny_model, None, 3).write(tmp_path / "whole")
    for name in ("small", "mixed", "whole"):
        library.add(tmp_path / name)
    return library


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


def under_mixture(library: ExpertLibrary, base: Any, mixture: Mixture) -> torch.Tensor:
    """What the engine computes; `base` is left as it was."""
    model: Any = library.load(base)
    with torch.inference_mode(), mixed(model, mixture.expand(len(IDS))):
        found = model(IDS).logits
    model.unload()
    return found


MIXTURES = {
    "small": Mixture.of({"small": 1.0}),
    "whole": Mixture.of({"whole": 1.0}),
    "three": Mixture.of({"small": 0.7, "mixed": 0.5, "whole": -0.2}),
    "per matrix": Mixture(
        ("small", "whole"), torch.tensor([[0.5, 0.25]]), {"model.layers.0.mlp.up_proj": torch.tensor([[1.0, 0.0]])}
    ),
}


@pytest.mark.parametrize("name", MIXTURES)
def test_a_merged_checkpoint_answers_as_the_mixture_does(
    library: ExpertLibrary, tiny_model: Any, tiny_tokenizer: Any, tmp_path: Path, name: str
) -> None:
    wanted = under_mixture(library, tiny_model, MIXTURES[name])
    base_logits = logits(tiny_model)
    export_merged(library.mixed(MIXTURES[name]), tiny_model, tiny_tokenizer, tmp_path / "merged")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    torch.testing.assert_close(logits(loaded), wanted, atol=1e-4, rtol=0)
    assert (wanted - base_logits).abs().max() > 0.01
    assert AutoTokenizer.from_pretrained(tmp_path / "merged")("ab")["input_ids"] == tiny_tokenizer("ab")["input_ids"]


def test_the_base_mixture_merges_into_the_base(
    library: ExpertLibrary, tiny_model: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    wanted = logits(tiny_model)
    export_merged(library.mixed(Mixture.of({})), tiny_model, tiny_tokenizer, tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    assert torch.equal(logits(merged), wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_rank_limited_expert_is_exactly_a_lora(tiny_model: Any, tmp_path: Path, dtype: torch.dtype) -> None:
    tiny_model.to(dtype)
    expert = random_expert(tiny_model, 4, 1)
    attached = expert.attach(tiny_model)
    wanted = logits(attached)  # in bfloat16 as a difference: the expert is trainable
    attached.unload()
    lora, energy = best_lora(tiny_model, expert)
    assert energy == 1.0
    assert set(lora.ranks.values()) == {4}
    lora.write(tmp_path / "lora")
    loaded = PeftModel.from_pretrained(tiny_model, str(tmp_path / "lora"))
    tolerance = 1e-4 if dtype == torch.float32 else 0.1 * float(wanted.abs().max())
    torch.testing.assert_close(logits(loaded), wanted, atol=tolerance, rtol=0)
    if dtype == torch.float32:
        loaded.merge_adapter()
        torch.testing.assert_close(logits(loaded), wanted, atol=1e-4, rtol=0)


def test_a_mixture_of_ranks_is_one_lora(library: ExpertLibrary, tiny_model: Any, tmp_path: Path) -> None:
    mixture = MIXTURES["three"]
    wanted = under_mixture(library, tiny_model, mixture)
    fixed = library.mixed(mixture)
    lora, _ = best_lora(tiny_model, fixed, rank=1000)
    assert set(lora.ranks.values()) == {16, 32}  # k_proj has 16 rows
    lora.write(tmp_path / "lora")
    config = PeftConfig.from_pretrained(str(tmp_path / "lora"))
    assert isinstance(config, LoraConfig)
    assert (config.r, set(config.rank_pattern.values())) == (32, {16})
    loaded = PeftModel.from_pretrained(tiny_model, str(tmp_path / "lora"))
    torch.testing.assert_close(logits(loaded), wanted, atol=1e-4, rtol=0)


@pytest.mark.parametrize("rank", [1, 5, 20])
def test_no_lora_of_that_rank_comes_nearer(tiny_model: Any, rank: int) -> None:
    """PEFT's conversion decomposes each difference anew; ours picks from the singular vectors that are there."""
    expert = random_expert(tiny_model, None, 3)
    lora, share = best_lora(tiny_model, expert, rank)
    attached = expert.attach(tiny_model)
    _, theirs = convert_to_lora(attached, rank=rank)
    kept, energy = 0.0, 0.0
    for matrix in expert.z:
        difference = attached.base_model.model.get_submodule(matrix).get_delta_weight("default")
        prefix = f"base_model.model.{matrix}"
        best = theirs[f"{prefix}.lora_B.weight"] @ theirs[f"{prefix}.lora_A.weight"]
        ours = lora.b[matrix] @ lora.a[matrix]
        error = (difference - ours).square().sum()
        torch.testing.assert_close(error, (difference - best).square().sum(), rtol=1e-3, atol=1e-6)
        energy += difference.square().sum().item()
        kept += difference.square().sum().item() - error.item()
    assert share == pytest.approx(kept / energy, abs=1e-5)
    assert share < 1


def test_a_larger_rank_keeps_more_until_nothing_is_lost(tiny_model: Any, tiny_tokenizer: Any, tmp_path: Path) -> None:
    expert = random_expert(tiny_model, None, 3)
    energies, changes = [], []
    for rank in (2, 12, 32):
        exported = export_lora(expert, tiny_model, tiny_tokenizer, tmp_path / str(rank), rank=rank)
        measured = exported.measured
        energies.append(exported.energy_kept)
        changes.append(abs(measured.lora - measured.expert))
    assert energies == sorted(energies)
    assert energies[-1] == 1.0
    assert min(changes[:2]) > 1e-3
    assert changes[2] < 1e-5
    assert abs(measured.base - measured.expert) > 1e-3


def test_the_stated_loss_is_what_lm_eval_sees(tiny_model: Any, tiny_tokenizer: Any, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    expert = random_expert(tiny_model, None, 3)
    stated = export_lora(expert, tiny_model, tiny_tokenizer, tmp_path / "lora", rank=4).measured

    def seen(model: Any) -> float:
        harness = HFLM(pretrained=model, tokenizer=tiny_tokenizer, batch_size=1)
        requests = [Instance("loglikelihood_rolling", {}, (text,), i) for i, text in enumerate(NEUTRAL_TEXTS.lines)]
        return sum(harness.loglikelihood_rolling(requests, disable_tqdm=True)) / stated.tokens

    assert seen(tiny_model) == pytest.approx(stated.base, rel=1e-5)
    loaded = PeftModel.from_pretrained(tiny_model, str(tmp_path / "lora"))
    assert seen(loaded) == pytest.approx(stated.lora, rel=1e-5)
    loaded.unload()
    assert seen(expert.attach(tiny_model)) == pytest.approx(stated.expert, rel=1e-5)
    assert stated.lora != pytest.approx(stated.expert, rel=1e-4)


def test_what_cannot_be_exported_is_refused(library: ExpertLibrary, tiny_model: Any, tiny_tokenizer: Any) -> None:
    whole = library.expert("whole")
    with pytest.raises(UserError, match="choose a rank"):
        best_lora(tiny_model, whole)
    with pytest.raises(UserError, match="at least 1, not 0"):
        best_lora(tiny_model, whole, 0)
    with pytest.raises(UserError, match="nothing to export"):
        best_lora(tiny_model, library.mixed(Mixture.of({})))
    with pytest.raises(UserError, match=r"up_proj, which is not a linear layer"):
        best_lora(tiny_model, Expert({"model.up_proj": torch.ones(4)}))
    with pytest.raises(UserError, match="has 33 values"):
        best_lora(tiny_model, Expert({"model.layers.0.mlp.up_proj": torch.ones(33)}), 4)
    with pytest.raises(UserError, match="unknown expert 'smal'"):
        library.mixed(Mixture.of({"smal": 1.0}))
    with pytest.raises(UserError, match="no text"):
        log_likelihood(tiny_model, tiny_tokenizer, [])


@pytest.mark.parametrize("adds_begin", [False, True])
def test_nats_are_those_of_lm_evals_rolling_loglikelihood(
    tiny_model: Any, tiny_tokenizer: Any, adds_begin: bool
) -> None:
    tokenizer = copy.deepcopy(tiny_tokenizer)
    if adds_begin:
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)]
        )
    texts = ["hello world", "a", "", "<|im_start|>begun", "x" * 511, "x y " * 300]
    lm = HFLM(pretrained=tiny_model, tokenizer=tokenizer, batch_size=1)
    wanted = lm.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, (text,), 0) for text in texts])
    tokens = sum(len(lm.tok_encode(text)) for text in texts)
    mean, counted = log_likelihood(tiny_model, tokenizer, texts)
    assert (mean * counted, counted) == (pytest.approx(sum(wanted), rel=1e-5), tokens)
