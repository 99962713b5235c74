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
        to: the base that it is to be used on: a built-in name, a hub id or a folder.
        output: the folder of the new expert.
        shuffled: a seed for the control, in which z is permuted within each matrix.
        compare: load the expert's own base too, and compare the singular directions of the two.
        library: a folder of experts; by default those that come with the base.
        model: the base that the expert was trained on; by default the one it names.
        json: print both fingerprints and the comparison as JSON.
    """
    from experts.exchange import transfer as transfers
    from experts.outside.errors import SEEDS, UserError, check_whole
    from experts.svf.fingerprint import refuse_other_base
    from selfadapt.base_models import load_base, load_shapes
    from selfadapt.two_pass import find_expert

    if output is None and not compare:
        raise UserError("nothing to do: name the folder of the new expert (--output), or --compare the bases")
    if output is not None:
        check_output(output)
    if shuffled is not None:
        check_whole("--shuffled", shuffled, least=0, most=SEEDS)
    trained = find_expert(expert, library, model)
    own = model or trained.base
    if own is None:
        raise UserError(f"the expert {expert} does not say which base it was trained on; name it with --model")
    other, _ = load_base(to)
    transfers.check_shapes(trained, load_shapes(own), other)
    moved = transfers.transfer(trained, other, to, shuffled)
    document: dict[str, object] = {"from": trained.fingerprint, "to": moved.fingerprint, "shuffled": shuffled}
    lines = []
    if compare:
        base, _ = load_base(own)
        if trained.fingerprint is not None:
            refuse_other_base(f"the expert {expert}", trained.fingerprint, trained.sketch, base)
        comparisons = transfers.compare_bases(trained, base, other)
        *matrices, mean = map(asdict, [*comparisons, transfers.mean(comparisons)])
        columns = [name for name in mean if name != "matrix"]
        document |= {"matrices": matrices, "mean": {name: mean[name] for name in columns}}
        lines = [f"{'matrix':40}" + "".join(f"{name:>12}" for name in columns)]
        lines += [
            f"{row['matrix']:40}" + "".join(f"{row[name]:12.3f}" for name in columns) for row in (*matrices, mean)
        ]
    if output is not None:
        moved.write(output)
        document["output"] = str(output)
        lines.append(str(output))
    show(document, json, "\n".join(lines))
