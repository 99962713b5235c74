"""Where a REINFORCE step's time goes: seconds of its parts, and the share of all.

python benchmarks/where_a_step_goes.py [--recipe smollm2-135m/stories] [--model NAME] [--steps 2]

Counted by Python's own profiler, which makes a step somewhat slower. A part that a recipe does without takes 0 s.
"""

from __future__ import annotations

import argparse
from cProfile import Profile
from dataclasses import replace
from inspect import unwrap
from pathlib import Path
from pstats import Stats
from tempfile import TemporaryDirectory
from typing import Any

from torch.autograd.graph import _engine_run_backward

from experts.engine.decoding import Batch, _Reader, sampled
from experts.training.reinforce import Reinforce
from experts.training.shared_prompts import sample
from experts.training.token_logps import token_logps
from experts.training.trainer import LoadedBase
from experts.training.trl_glue import ReinforceTrainer, make_trainer
from selfadapt import load_base
from selfadapt.recipes.configuration import find_recipe
from selfadapt.recipes.expert import read_recipe

PARTS: dict[str, Any] = {
    "sampling": unwrap(sample),
    "  reading the prompts": _Reader.read,
    "  reading token after token": Batch.read,
    "  choosing them": sampled(1.0),
    "judging": ReinforceTrainer._calculate_rewards,
    "log-likelihoods": ReinforceTrainer._compute_loss,
    "  of which the head, with its gradient": token_logps,
    "the other gradients": _engine_run_backward,
}
"""The parts of a step, and the functions that do them."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="smollm2-135m/stories")
    parser.add_argument("--model")
    parser.add_argument("--steps", type=int, default=2)
    choice = parser.parse_args()
    recipe = read_recipe(find_recipe(choice.recipe))
    assert isinstance(recipe.training, Reinforce)
    options = replace(recipe.training, steps=choice.steps, seed=0)
    name = choice.model or recipe.model
    base = LoadedBase(*load_base(name, dtype=recipe.dtype), name)
    profile = Profile()
    with TemporaryDirectory() as folder:
        trainer = make_trainer(base, recipe.domain, recipe.adapt.config(), options, Path(folder))
        profile.runcall(trainer.train)
    stats: Any = Stats(profile)
    whole = stats.total_tt / choice.steps
    print(f"a step: {whole:.1f} s")
    for part, function in PARTS.items():
        code = function.__code__
        _, _, _, seconds, _ = stats.stats.get((code.co_filename, code.co_firstlineno, code.co_name), (0,) * 5)
        print(f"{part}: {seconds / choice.steps:.1f} s, {seconds / stats.total_tt:.0%}")
    lengths = [log["completions/mean_length"] for log in trainer.state.log_history if "completions/mean_length" in log]
    print(f"tokens per sample: {', '.join(f'{length:.0f}' for length in lengths)}")


if __name__ == "__main__":
    main()
