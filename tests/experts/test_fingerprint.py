from __future__ import annotations

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaForCausalLM

from experts.fingerprint import fingerprint
from experts.svf import SVFConfig


def test_it_does_not_see_precision_adapters_or_the_vocabulary(tiny_model: LlamaForCausalLM) -> None:
    plain = fingerprint(tiny_model)
    assert fingerprint(tiny_model.bfloat16()) == plain
    tiny_model.resize_token_embeddings(300)
    assert fingerprint(tiny_model) == plain
    svf = get_peft_model(tiny_model, SVFConfig(target_modules=["up_proj"]))
    with torch.no_grad():
        for p in svf.parameters():
            if p.requires_grad:
                p.fill_(2)
    assert fingerprint(svf) == plain
    svf.merge_adapter()
    assert fingerprint(svf) == plain
    svf.unmerge_adapter()
    lora = get_peft_model(svf.unload(), LoraConfig(target_modules="all-linear"))
    assert fingerprint(lora) == plain


def test_it_sees_every_linear_weight(tiny_model: LlamaForCausalLM) -> None:
    plain = fingerprint(tiny_model)
    for name, p in tiny_model.named_parameters():
        if p.ndim == 2 and "embed" not in name:
            old = p.data.clone()
            p.data[0, 0] += 1
            assert fingerprint(tiny_model) != plain, name
            p.data.copy_(old)
    assert fingerprint(tiny_model) == plain
