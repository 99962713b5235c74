"""`selfadapt import policy_params.pt`."""

from __future__ import annotations

from pathlib import Path

from tyro.conf import Positional

from selfadapt.verbs import check_output, show


def import_(file: Positional[Path], model: str, output: Path, description: str = "", json: bool = False) -> None:
    """Convert an expert file of the paper's own code, policy_params.pt or learnable_params.pt.

    Args:
        file: the file; it is read without running any code that it may hold.
        model: the base that the expert was trained on: a hub id or a folder.
        output: the folder of the expert.
        description: what the expert is for, in one sentence; dispatchers read it.
        json: print what was written as JSON.
    """
    from experts.exchange.reference_import import import_expert
    from experts.outside.errors import UserError
    from selfadapt.base_models import load_base

    if not file.is_file():
        raise UserError(f"no such file: {file}")
    check_output(output)
    base, _ = load_base(model)
    expert = import_expert(file, base, model, description or f"Imported from {file.name}.")
    expert.write(output)
    document = {
        "output": str(output),
        "base": expert.base,
        "fingerprint": expert.fingerprint,
        "matrices": len(expert.z),
        "parameters": sum(map(len, expert.z.values())),
    }
    show(document, json, f"{output}: {document['parameters']} values for {len(expert.z)} matrices")
