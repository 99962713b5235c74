"""`selfadapt export EXPERT|MIX.json`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from selfadapt.verbs import show


def export(
    expert: Positional[str],
    output: Path,
    format: Literal["merged", "lora"],
    rank: int | None = None,
    library: Path | None = None,
    model: str | None = None,
    dtype: str | None = None,
    texts: Path | None = None,
    json: bool = False,
) -> None:
    """Write an expert, or a fixed mixture, for other programs: a merged checkpoint or a LoRA.

    Args:
        expert: an expert of the library, an expert's folder, or a MIX.json.
        output: the folder to write.
        format: merged is a plain transformers checkpoint; lora is a PEFT LoRA folder.
        rank: of the LoRA; by default what holds the expert exactly.
        library: a folder of experts; by default those that come with the base.
        model: a built-in name, a hub id or a folder; by default the library's base.
        dtype: of the base; by default float32 on a CPU and the checkpoint's own on an accelerator.
        texts: a UTF-8 file with one text a line, on which what a LoRA changes is measured; by default eight
            neutral sentences.
        json: print what was written as JSON.
    """
    from experts.exchange.export import NEUTRAL_TEXTS, best_lora, measure_lora, write_lora, write_merged
    from experts.outside.errors import UserError, check_whole
    from experts.outside.files import atomic_folder, check_writable
    from experts.outside.reading import read_lines
    from experts.svf.fingerprint import refuse_other_base
    from selfadapt.base_models import copy_settings, load_base
    from selfadapt.two_pass import find_expert

    if output.exists():
        raise UserError(f"{output} exists already; choose another --output, or remove it first")
    if format == "merged" and (rank is not None or texts is not None):
        raise UserError("--rank and --texts belong to --format lora; a merged checkpoint keeps all of the expert")
    if rank is not None:
        check_whole("--rank", rank)
    measured_on = NEUTRAL_TEXTS if texts is None else [line for _, line in read_lines(texts)]
    if not measured_on:
        raise UserError(f"there is no text in {texts}")
    fixed = find_expert(expert, library, model)
    base_name = model or fixed.base
    if base_name is None:
        raise UserError(f"the expert {expert} does not say which base it belongs to; name it with --model")
    check_writable(output.parent)
    base, tokenizer = load_base(base_name, dtype=dtype)
    found = fixed.fingerprint
    if found is not None:
        found = refuse_other_base(f"the expert {expert}", found, fixed.sketch, base)

    about = f"{fixed.description} For the base `{base_name}` (fingerprint `{found}`)."
    if found != fixed.fingerprint:
        about += f" Trained on what that base is a rounding of (fingerprint `{fixed.fingerprint}`)."
    document: dict[str, object] = {"output": str(output), "format": format}
    document |= {"base": base_name, "fingerprint": fixed.fingerprint, "base_fingerprint": found}
    with atomic_folder(output) as folder:
        if format == "merged":
            write_merged(folder, base, tokenizer, fixed)
            copy_settings(base_name, folder)
            facts = f"Merged into the base's weights, {str(base.dtype).removeprefix('torch.')}."
        else:
            lora = best_lora(base, fixed, rank)
            write_lora(folder, base, lora, fixed)
            measured = measure_lora(base, tokenizer, fixed, folder, measured_on)
            largest, on = max(lora.ranks.values()), texts.name if texts else "neutral sentences"
            document |= {
                "rank": largest,
                "energy_kept": lora.energy,
                "nats_per_token": {"base": measured.base, "expert": measured.expert, "lora": measured.lora},
                "measured_on": {"texts": on, "tokens": measured.tokens},
            }
            facts = (
                f"A LoRA of rank {largest} that keeps {lora.energy:.2%} of the energy of the expert's difference. "
                f"Log-likelihood of {on}, {measured.tokens} tokens, in nats a token: base {measured.base:.4f}, "
                f"expert {measured.expert:.4f}, LoRA {measured.lora:.4f}."
            )
        (folder / "README.md").write_text(f"# {output.name}\n\n{about}\n\n{facts}\n", encoding="utf-8")
    show(document, json, f"{output}\n{facts}")
