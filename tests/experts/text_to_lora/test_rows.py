"""Adapters of one's own for every row: the same as each adapter alone, with gradients, and gone afterwards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from experts.svf.decomposition import decompose
from experts.text_to_lora.network import LoraOutput, SvfOutput
from experts.text_to_lora.rows import adapted_rows

TEXTS = ["Add two numbers.", "Translate into French.", "Is this sentence rude?"]
OUTPUTS = [
    LoraOutput(size="L", rank=4),
    LoraOutput(size="S", rslora=False, target_modules="all-linear"),
    SvfOutput(),
    SvfOutput(rank=5),
]


def factors_of(model: Any, written: Any, output: Any) -> Any:
    if isinstance(output, LoraOutput):
        return {"scaling": output.scaling}
    return {"factors": {name: decompose(model.get_submodule(name).weight, z.shape[1]) for name, z in written.items()}}


@pytest.mark.parametrize("output", OUTPUTS, ids=str)
def test_every_row_is_under_its_own_adapter(output: Any, make_writer: Any, tiny_model: Any, tmp_path: Path) -> None:
    writer = make_writer(output, trained=True)
    written = writer.write(TEXTS)
    ids = torch.randint(3, 200, (3, 12))
    kwargs = factors_of(tiny_model, written, output)
    with torch.no_grad():
        base = tiny_model(ids).logits
        with adapted_rows(tiny_model, written, **kwargs):
            rows = tiny_model(ids).logits
        assert torch.equal(tiny_model(ids).logits, base)
        for row, adapter in enumerate(writer.split(written, TEXTS)):
            # PEFT's own arithmetic is the reference.
            adapter.write(tmp_path / str(row))
            if row == 0:
                model = PeftModel.from_pretrained(tiny_model, str(tmp_path / "0"), adapter_name="0")
            else:
                model.load_adapter(str(tmp_path / str(row)), str(row))
            model.set_adapter(str(row))
            alone = model(ids[row : row + 1]).logits[0]
            torch.testing.assert_close(rows[row], alone, atol=2e-4, rtol=1e-4)
            assert not torch.allclose(rows[row], base[row], atol=1e-3)


@pytest.mark.parametrize("output", OUTPUTS, ids=str)
def test_one_adapter_serves_all_rows(output: Any, make_writer: Any, tiny_model: Any) -> None:
    writer = make_writer(output, trained=True)
    ids = torch.randint(3, 200, (3, 12))
    one, three = writer.write(TEXTS[:1]), writer.write(TEXTS[:1] * 3)
    kwargs = factors_of(tiny_model, one, output)
    with torch.no_grad():
        with adapted_rows(tiny_model, one, **kwargs):
            shared = tiny_model(ids).logits
        with adapted_rows(tiny_model, three, **kwargs):
            torch.testing.assert_close(tiny_model(ids).logits, shared, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("output", OUTPUTS, ids=str)
def test_gradients_flow_to_the_network_and_not_to_the_base(output: Any, make_writer: Any, tiny_model: Any) -> None:
    writer = make_writer(output, trained=True)
    tiny_model.requires_grad_(False)
    written = writer.network.unpack(writer.network(writer.encoder(TEXTS)))
    with adapted_rows(tiny_model, written, **factors_of(tiny_model, written, output)):
        loss = tiny_model(torch.randint(3, 200, (3, 12))).logits.square().mean()
    loss.backward()
    assert all(p.grad is not None and p.grad.any() for p in writer.network.parameters())
    assert all(p.grad is None for p in tiny_model.parameters())


def test_hooks_are_gone_after_an_error(make_writer: Any, tiny_model: Any) -> None:
    written = make_writer(LoraOutput(), trained=True).write(TEXTS)
    ids = torch.randint(3, 200, (3, 12))
    base = tiny_model(ids).logits
    with pytest.raises(RuntimeError, match="stop"), adapted_rows(tiny_model, written):
        raise RuntimeError("stop")
    assert torch.equal(tiny_model(ids).logits, base)
