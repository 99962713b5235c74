"""One z for all layers: it steps as a single parameter would, and leaves nothing out."""

from __future__ import annotations

import torch
from torch import nn

from experts.svf.shared import SharedAdamW, of_one_kind


def test_matrices_of_one_kind_differ_in_the_layer_alone() -> None:
    shapes = {"layers.0.up": 3, "layers.0.down": 3, "layers.1.up": 3, "layers.1.down": 3, "layers.2.up": 2}
    z = {name: nn.Parameter(torch.ones(size)) for name, size in shapes.items()}
    kinds = of_one_kind(z.items())
    assert [[id(own) for own in kind] for kind in kinds] == [
        [id(z["layers.0.up"]), id(z["layers.1.up"])],
        [id(z["layers.0.down"]), id(z["layers.1.down"])],
        [id(z["layers.2.up"])],
    ]


def test_steps_equal_those_of_a_single_parameter() -> None:
    torch.manual_seed(0)
    weights = torch.rand(3, 4)  # what each layer makes of it
    layers = [nn.Parameter(torch.ones(4)) for _ in range(3)]
    alone = nn.Parameter(torch.ones(4))
    ours = SharedAdamW([layers], lr=0.05, max_grad_norm=0.5)
    reference = torch.optim.AdamW([alone], lr=0.05, weight_decay=0.0)
    for _ in range(5):
        for optimizer, own in ((ours, layers), (reference, [alone] * 3)):
            optimizer.zero_grad()
            torch.stack([(w * z).square().sum() for w, z in zip(weights, own, strict=True)]).sum().backward()
            if optimizer is reference:
                nn.utils.clip_grad_norm_([alone], 0.5)
            optimizer.step()
        for z in layers:
            torch.testing.assert_close(z, alone)
    assert not torch.equal(alone, torch.ones(4))
