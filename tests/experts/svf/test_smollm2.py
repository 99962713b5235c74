"""SVF on the built-in base: the identity, and the training op at real shapes, against autograd."""

from __future__ import annotations

import pytest
import torch
from peft import PeftModel, get_peft_model
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from experts.shipped import shipped_library
from experts.svf import SVFConfig, SVFLinear
from experts.svf.truncated import largest_triplets


def test_the_identity_and_the_gradient_on_a_real_model(
    smollm2: tuple[PreTrainedModel, PreTrainedTokenizerBase],
) -> None:
    base, tokenizer = smollm2
    ids = tokenizer("The capital of France is Paris.", return_tensors="pt").input_ids
    with torch.no_grad():
        wanted = base(ids).logits
    # One layer of each shape: wide, tall, square, and the grouped-query projections.
    model = get_peft_model(base, SVFConfig(layers_to_transform=[3]))
    with torch.no_grad():
        assert torch.equal(model(ids).logits, wanted)
    layers = {name: module for name, module in model.named_modules() if isinstance(module, SVFLinear)}
    assert len(layers) == 7

    seen: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    for name, layer in layers.items():
        layer.register_full_backward_hook(lambda m, gx, gy, n=name: seen.update({n: (seen[n][0], gy[0])}))
        layer.register_forward_hook(lambda m, x, y, n=name: seen.update({n: (x[0], y)}))
    model(ids, labels=ids).loss.backward()
    for name, layer in layers.items():
        x, g = (tensor.detach().double().flatten(0, 1) for tensor in seen[name])
        dense = g.T @ x  # ∂L/∂W
        u, s, vt = torch.linalg.svd(layer.pristine_weight.double(), full_matrices=False)
        reference = s * torch.einsum("mr,mn,rn->r", u, dense, vt)
        torch.testing.assert_close(layer.svf_z["default"].grad.double(), reference, rtol=2e-3, atol=2e-4)


@pytest.mark.slow
def test_shipped_experts_answer_the_same_on_a_truncated_decomposition(
    smollm2: tuple[PreTrainedModel, PreTrainedTokenizerBase],
) -> None:
    """By the measure ‖D' − D‖ / ‖D‖ of an expert's difference D = U diag(s (z − 1)) Vᵀ, and by its greedy tokens."""
    base, tokenizer = smollm2
    folder = shipped_library("smollm2-135m")
    assert folder is not None
    names = ["stories", "groups", "relations", "sums"]
    model = PeftModel.from_pretrained(base, folder / names[0], adapter_name=names[0])
    for name in names[1:]:
        model.load_adapter(folder / name, adapter_name=name)
    model.eval()
    prompts = [
        "Anna finds 8 stamps and Grace finds 7. How many stamps did they find together? Answer with a number only.",
        "There are 6 boxes with 7 eggs in each. How many eggs are there in all? Answer with a number only.",
        "Leo has 5 coins. Mia has 3 more than Leo. How many coins does Mia have? Answer with a number only.",
    ]

    def answers() -> dict[str, list[list[int]]]:
        found: dict[str, list[list[int]]] = {}
        for name in names:
            model.set_adapter(name)
            for prompt in prompts:
                chat = [{"role": "user", "content": prompt}]
                ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt")["input_ids"]
                with torch.no_grad():
                    out = model.generate(input_ids=ids, attention_mask=ids * 0 + 1, max_new_tokens=16, do_sample=False)
                found.setdefault(name, []).append(out[0, ids.shape[1] :].tolist())
        return found

    wanted = answers()
    changes = []
    for layer in (module for module in model.modules() if isinstance(module, SVFLinear)):
        before = {name: layer.difference(layer.delta([name]).detach()) for name in names}
        weight = layer.pristine_weight
        m, n = weight.shape
        none = (weight.new_zeros(m, 0), weight.new_zeros(0), weight.new_zeros(0, n))
        full = layer.svf_s
        layer.svf_u, layer.svf_s, layer.svf_vt = largest_triplets(weight, len(full), *none)
        torch.testing.assert_close(layer.svf_s, full, rtol=1e-5, atol=0)
        for name, difference in before.items():
            changes.append((layer.difference(layer.delta([name]).detach()) - difference).norm() / difference.norm())
        layer.invalidate()
    print(f"changes: median {torch.stack(changes).median():.1e}, largest {max(changes):.1e}")
    assert max(changes) < 0.02
    assert answers() == wanted
    model.unload()
