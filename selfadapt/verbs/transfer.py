"""`selfadapt transfer EXPERT --to BASE`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from tyro.conf import Positional

from selfadapt.verbs import check_output, show


def transfer(
    expert: Positional[str],
    to: str,
    output: Path | None = None,
    shuffled: int | None = None,
    compare: bool = False,
    library: Path | None = None,
    model: str | None = None,
    json: bool = False,
) -> None:
    """Make an expert of one base an expert of another of the same shapes, and say how comparable the two are.

    Args:
        expert: an expert of the library, an expert's folder, or a MIX.json.
        to: the base to use it on: a built-in name, a hub id or a folder.
        output: the folder of the new expert.
        shuffled: a seed for the control, in which z is permuted within each matrix.
        compare: load the expert's own base too, and compare the singular directions of the two.
        library: a folder of experts, or a repository on the hub; by default those that come with the base.
        model: the base that the expert was trained on; by default the one that it names.
        json: print both fingerprints and the comparison as JSON.
    """
    from experts.exchange.transfer import mean, table
    from experts.library import UnknownBase
    from experts.outside.errors import SEEDS, UserError, check_whole
    from selfadapt.named_experts import transfer_expert

    if output is None and not compare:
        raise UserError("nothing to do: name a folder for the new expert with --output, or give --compare")
    if output is not None:
        check_output(output)
    if shuffled is not None:
        check_whole("--shuffled", shuffled, least=0, most=SEEDS)
    try:
        moved = transfer_expert(expert, to, shuffled=shuffled, compare=compare, library=library, model=model)
    except UnknownBase as error:
        raise UserError(f"{error} with --model") from error
    document: dict[str, object] = {"from": moved.origin, "to": moved.expert.fingerprint, "shuffled": shuffled}
    lines = []
    if moved.comparisons:
        means = asdict(mean(moved.comparisons))
        del means["matrix"]
        document |= {"matrices": list(map(asdict, moved.comparisons)), "mean": means}
        lines.append(table(moved.comparisons))
    if output is not None:
        moved.expert.write(output)
        document["output"] = str(output)
        lines.append(str(output))
    show(document, json, "\n".join(lines))
