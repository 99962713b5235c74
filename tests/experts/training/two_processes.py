"""What each process of `test_processes.py` runs.

Training on recorded completions and on given answers, live training, and a step of a model that is sharded.
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
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from experts.svf import SVFConfig
from experts.training.reinforce import Reinforce, ReinforceTrainer, make_trainer
from experts.training.supervised import NextToken, NextTokenTrainer, make_next_token_trainer

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


def train(base: Any, tokenizer: Any, domain: Any, options: Reinforce, folder: Path, recorded: bool) -> ReinforceTrainer:
    """A trained trainer. Recorded completions depend on the prompt and on the number of the sample, and not on z."""
    trainer = make_trainer(base, tokenizer, domain, SVFConfig(), options, folder, [])
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


def train_on_answers(base: Any, tokenizer: Any, domain: Any, folder: Path) -> NextTokenTrainer:
    """A trained trainer; the answers are the prompts' numbers, repeated one to seven times."""

    class Answered(type(domain)):  # type: ignore[misc]
        def load(self, split: str) -> Any:
            rows = super().load(split).remove_columns("answer")
            texts = [prompt[0]["content"] * (1 + row % 7) for row, prompt in enumerate(rows["prompt"])]
            return rows.add_column("answer", texts)

    trainer = make_next_token_trainer(base, tokenizer, Answered(), SVFConfig(), SUPERVISED, folder, [])
    trainer.args.save_strategy = "no"
    trainer.train()
    return trainer


def vectors(trainer: ReinforceTrainer | NextTokenTrainer) -> dict[str, torch.Tensor]:
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
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {name: g.full_tensor() if isinstance(g, DTensor) else g for name, g in found.items()}


def main(folder: Path, checkpoint: str) -> None:
    from conftest import Letters  # beside this script

    from selfadapt import load_base

    recorded = train(*load_base(checkpoint), Letters(), OPTIONS, folder, recorded=True)
    rank = recorded.accelerator.process_index
    save_file(vectors(recorded), folder / f"recorded-{rank}.safetensors")
    answers = train_on_answers(*load_base(checkpoint), Letters(), folder)
    save_file(vectors(answers), folder / f"answers-{rank}.safetensors")
    live = train(*load_base(checkpoint), Letters(), LIVE, folder, recorded=False)
    save_file(vectors(live), folder / f"live-{rank}.safetensors")

    sharded = small_expert(load_base(checkpoint)[0])
    mesh = init_device_mesh("cpu", (2,))
    for block in sharded.base_model.model.model.layers:
        fully_shard(block, mesh=mesh)
    fully_shard(sharded, mesh=mesh)
    shares = [isinstance(p, DTensor) for p in sharded.parameters()]
    save_file(gradients(sharded, IDS[rank : rank + 1]), folder / f"sharded-{rank}.safetensors")
    if rank == 0:
        facts = {
            "processes": recorded.accelerator.num_processes,
            "broadcast_buffers": recorded.model_wrapped.broadcast_buffers,
            "all_parameters_are_sharded": all(shares),
            "rewards": [entry["reward"] for entry in live.state.log_history if "reward" in entry],
        }
        (folder / "facts.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
