"""What each process of `test_processes.py` runs.

Training on recorded completions and on given answers, live training, and all of that with the base shared out.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import save_file
from torch.distributed import all_reduce
from torch.distributed.tensor import DTensor

from experts.svf import SVFConfig
from experts.training import passes
from experts.training.processes import shard
from experts.training.reinforce import Reinforce
from experts.training.supervised import NextToken, make_next_token_trainer
from experts.training.trainer import LoadedBase, RunTrainer
from experts.training.trl_glue import ReinforceTrainer, make_trainer

OPTIONS = Reinforce(
    learning_rate=0.03,
    steps=4,
    prompts_per_step=4,
    samples_per_prompt=4,
    max_new_tokens=6,
    reward="raw",
    micro_batch_size=4,
)
SUPERVISED = NextToken(learning_rate=0.03, steps=4, sequences_per_step=16, micro_batch_size=4)
IDS = torch.arange(3, 43).view(2, 20)
LIVE = replace(OPTIONS, learning_rate=0.1, steps=30, prompts_per_step=16, micro_batch_size=64, max_new_tokens=3)


def train(
    base: Any, tokenizer: Any, domain: Any, options: Reinforce, folder: Path, recorded: bool, shard_base: bool = False
) -> ReinforceTrainer:
    """A trained trainer. Recorded completions depend on the prompt and on the number of the sample, and not on z."""
    trainer = make_trainer(LoadedBase(base, tokenizer, "tiny", shard_base), domain, SVFConfig(), options, folder)
    trainer.args.save_strategy = "no"

    def replay(prompts: list[list[int]], *_: Any) -> list[list[int]]:
        first = trainer.accelerator.process_index * len(prompts)
        completions = []
        for row, prompt in enumerate(prompts):
            sample = (first + row) % options.samples_per_prompt
            generator = torch.Generator().manual_seed(sum(prompt) * options.samples_per_prompt + sample)
            letters = torch.randint(3, len(tokenizer), (1 + sample,), generator=generator).tolist()
            completions.append([*letters, tokenizer.eos_token_id])
        return completions

    if recorded:
        trainer._generate_single_turn = replay
    trainer.train()
    return trainer


def train_on_answers(base: Any, tokenizer: Any, domain: Any, folder: Path, shard_base: bool = False) -> RunTrainer:
    """A trained trainer; the answers are the prompts' numbers, repeated one to seven times."""

    class Answered(type(domain)):  # type: ignore[misc]
        def load(self, split: str) -> Any:
            rows = super().load(split).remove_columns("answer")
            texts = [prompt[0]["content"] * (1 + row % 7) for row, prompt in enumerate(rows["prompt"])]
            return rows.add_column("answer", texts)

    loaded = LoadedBase(base, tokenizer, "tiny", shard_base)
    trainer = make_next_token_trainer(loaded, Answered(), SVFConfig(), SUPERVISED, folder)
    trainer.args.save_strategy = "no"
    trainer.train()
    return trainer


def vectors(trainer: RunTrainer) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters() if "svf_z" in name}


def small_expert(base: Any) -> PeftModel:
    """A rank-limited expert away from z = 1 on a bfloat16 copy of the base."""
    model = get_peft_model(base.to(torch.bfloat16), SVFConfig(rank=4))
    with torch.no_grad():
        for z in filter(lambda p: p.requires_grad, model.parameters()):
            z.copy_(torch.linspace(0.5, 1.5, len(z)))
    return model


def gradients(model: PeftModel, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    model(input_ids=ids, labels=ids).loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def main(folder: Path, checkpoint: str) -> None:
    from conftest import Letters  # beside this script

    from selfadapt import load_base

    def load() -> Any:
        return load_base(checkpoint)

    passes.APART["cpu"] = 2  # completions in several passes, and not as many in either process
    trainers: dict[str, Any] = {
        "recorded": train(*load(), Letters(), OPTIONS, folder, recorded=True),
        "answers": train_on_answers(*load(), Letters(), folder),
        "live": train(*load(), Letters(), LIVE, folder, recorded=False),
        "sharded-recorded": train(*load(), Letters(), OPTIONS, folder, recorded=True, shard_base=True),
        "sharded-answers": train_on_answers(*load(), Letters(), folder, shard_base=True),
        "sharded-live": train(*load(), Letters(), LIVE, folder, recorded=False, shard_base=True),
    }
    rank = trainers["live"].accelerator.process_index
    for name, trainer in trainers.items():
        save_file(vectors(trainer), folder / f"{name}-{rank}.safetensors")

    half_precision = small_expert(load()[0])
    shard(half_precision)
    found = gradients(half_precision, IDS[rank : rank + 1])
    for gradient in found.values():  # which DDP does in training
        all_reduce(gradient)
        gradient /= 2
    save_file(found, folder / f"bfloat16-{rank}.safetensors")
    if rank == 0:
        frozen = [p for p in half_precision.parameters() if not p.requires_grad]
        facts = {
            "processes": trainers["recorded"].accelerator.num_processes,
            "broadcast_buffers": trainers["recorded"].model_wrapped.broadcast_buffers,
            "share": sum(p.to_local().numel() for p in frozen if isinstance(p, DTensor))
            / sum(p.numel() for p in frozen),
            "rewards": {
                name: [entry["reward"] for entry in trainers[name].state.log_history if "reward" in entry]
                for name in ("live", "sharded-live")
            },
        }
        (folder / "facts.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
