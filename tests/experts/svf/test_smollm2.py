"""SVF on the built-in base: the identity, and the training op at real shapes, against autograd."""

from __future__ import annotations

import torch
from peft import get_peft_model
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from experts.svf import SVFConfig, SVFLinear


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
