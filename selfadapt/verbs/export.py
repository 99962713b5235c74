"""`selfadapt export EXPERT|MIX.json`."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from selfadapt.verbs import check_output, show
from selfadapt.verbs.loading import FromOptions, Loading


def export(
    expert: Positional[str],
    output: Path,
    format: Literal["merged", "lora"],
    rank: int | None = None,
    library: Path | None = None,
    model: str | None = None,
    base: FromOptions = Loading(),
    texts: Path | None = None,
    json: bool = False,
) -> None:
    """Write an expert, a LoRA or a fixed mixture for other programs, as a merged checkpoint or a LoRA.

    Args:
        expert: an expert or a LoRA of the library, the folder of one, or a MIX.json.
        output: the folder to write.
        format: merged is a plain transformers checkpoint; lora is a PEFT LoRA folder.
        rank: the LoRA's rank; by default one that holds the expert exactly.
        library: a folder of experts, or a repository on the hub; by default those that come with the base.
        model: a built-in name, a hub id or a folder; by default the library's base.
        base: how the base is loaded.
        texts: a UTF-8 file with one text per line, on which the LoRA's change is measured; by default eight neutral
            sentences.
        json: print what was written as JSON.
    """
    from experts.exchange.export import ExportedLora, export_lora, export_merged
    from experts.exchange.measure import NEUTRAL_TEXTS, read_texts
    from experts.outside.errors import UserError, check_whole
    from selfadapt.base_models import copy_settings, load_base
    from selfadapt.two_pass import find_difference

    if format == "merged" and (rank is not None or texts is not None):
        raise UserError("--rank and --texts belong to --format lora; a merged checkpoint keeps all of the expert")
    if format == "merged" and base.quantization is not None:
        raise UserError(
            "rounding to few bits would swallow what an expert changes; leave out --quantization and quantise the "
            "merged checkpoint, or use --format lora"
        )
    if rank is not None:
        check_whole("--rank", rank)
    check_output(output)
    measured_on = NEUTRAL_TEXTS if texts is None else read_texts(texts)
    fixed = find_difference(expert, library, model)
    base_name = model or fixed.expert.base
    if base_name is None:
        raise UserError(f"the expert {expert} does not say which base it belongs to; name it with --model")
    loaded, tokenizer = load_base(base_name, **base.options())
    fixed = replace(fixed, expert=replace(fixed.expert, base=base_name))
    if format == "merged":
        exported = export_merged(
            fixed, loaded, tokenizer, output, finish=lambda unfinished: copy_settings(base_name, unfinished)
        )
    else:
        exported = export_lora(fixed, loaded, tokenizer, output, rank=rank, texts=measured_on)

    document: dict[str, object] = {"output": str(output), "format": format, "base": base_name}
    document |= {"fingerprint": exported.fingerprint, "base_fingerprint": exported.base_fingerprint}
    if isinstance(exported, ExportedLora):
        nats = asdict(exported.measured)
        tokens = nats.pop("tokens")
        document |= {"rank": exported.rank, "energy_kept": exported.energy_kept, "nats_per_token": nats}
        document["measured_on"] = {"texts": measured_on.name, "tokens": tokens}
    show(document, json, f"{output}\n{exported.facts}")
