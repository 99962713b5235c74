"""A mixture for a new domain from a handful of examples, by cross-entropy search (arXiv 2501.06252, section 3.2).

It differs from the published code (SakanaAI/self-adaptive-llms at 03a41ae), "theirs" below, in these points:

- By default, one weight per expert and 5 generations; theirs has one weight per matrix and 50. A few examples cannot
  tell hundreds of weights apart, and each generation costs one answer per candidate and example.
- The elite is a quarter of the candidates, 8 of 32; theirs is a fifth, 6. A spread estimated from more falls more
  slowly.
- Weights are not kept between 0 and 1: a mixture may reverse an expert, or go further than the expert does.
- The spread has a floor. With few examples, many candidates earn the same, and the elite may happen to lie close
  together; without a floor the search would end there.
- Ties in reward are broken by the likelihood of the right answers, in the elite too. Theirs picks the elite by chance
  among equals; its best is the one whose own right answers are likeliest, which says nothing about what it got wrong.
- Half of the examples are kept for choosing between the best candidates, the experts alone and the base: the best of
  many looks too good on the examples that found it. Theirs searches on all examples, and the rest of the test set
  chooses the generation.

`benchmarks/few_shot_settings.py` measures both.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from dispatch.racing import Pair, race
from experts.engine import NativeEngine, Population, check_context
from experts.engine.batches import ROWS_PER_READ
from experts.mixture import Mixture
from experts.outside.chats import tokenize
from experts.outside.errors import SEEDS, UserError, check_whole
from experts.svf.names import plain_modules
from experts.svf.scaled import SVFLayer

Reward = Callable[..., list[float]]  # (completions, **columns) → from 0 to 1, as a domain's


@dataclass(frozen=True)
class Search:
    """The settings of a search."""

    per: Literal["model", "layer", "matrix"] = "model"
    """What each expert has a separate weight for."""
    population: int = 32
    """Candidates per generation."""
    elite: float = 0.25
    """The best share of the candidates: the next generation is drawn from their mean and spread."""
    generations: int = 5
    std: float = 0.5
    """The spread of the first generation, around equal weights that sum to 1."""
    least_std: float = 0.05
    """The spread never falls below this: a few equal scores must not end the search."""
    max_new_tokens: int = 32
    batch_size: int = 64
    """The size of a batch, in rows of 512 tokens; more rows fit if they are shorter."""
    seed: int = 0

    def __post_init__(self) -> None:
        check_whole("population", self.population, least=2)
        for name in ("generations", "max_new_tokens", "batch_size"):
            check_whole(name, getattr(self, name))
        check_whole("seed", self.seed, least=0, most=SEEDS)
        if not 0 < self.elite <= 1:
            raise UserError(f"elite must be a share of the population, above 0 and up to 1, not {self.elite}")


@dataclass(frozen=True)
class Found:
    """The mixture, and its share of right answers and mean log-likelihood on the examples that chose it."""

    mixture: Mixture
    reward: float
    loglikelihood: float


def search(
    engine: NativeEngine,
    names: Sequence[str],
    rows: Sequence[dict[str, Any]],
    reward: Reward,
    options: Search,
    on_generation: Callable[[int, float, float], None] = lambda generation, reward, loglikelihood: None,
) -> Found:
    """The best mixture of the experts `names` for a domain that `rows` are examples of.

    Half of the examples guide the search. The other half choose between its best candidates, the experts alone and the
    base; so a search that has found nothing returns the base. Candidates compare by the mean reward of their greedy
    answers and, where that is equal, by the mean log-likelihood of the right answers. Weights may be negative and
    need not sum to 1.

    Args:
        rows: each with `prompt` (a chat), `answer`, and what else `reward` needs; at least 2.
        on_generation: is called with the generation's number and its best candidate's reward and log-likelihood.

    Raises:
        UserError: if there are no experts, fewer than 2 examples, or an example that does not fit the model's context
            or that the base's chat template refuses.
    """
    if not names:
        raise UserError("the library is empty, so there is nothing to mix; add experts to it first")
    if len(rows) < 2:
        raise UserError(
            f"a search needs at least 2 examples, one to search with and one to choose with, not {len(rows)}"
        )
    # Before any work, find what the base cannot be shown and what is too long for it.
    answers = cast(Any, engine.tokenizer)([row["answer"] for row in rows], add_special_tokens=False)["input_ids"]
    for prompt, answer in zip(tokenize(engine.tokenizer, [row["prompt"] for row in rows]), answers, strict=True):
        check_context(engine.model.config, len(prompt), max(options.max_new_tokens, len(answer)))
    generator = torch.Generator().manual_seed(options.seed)
    order = torch.randperm(len(rows), generator=generator).tolist()
    searching, choosing = ([rows[i] for i in order[part::2]] for part in (0, 1))
    groups = matrix_groups(engine.model, options.per)
    size = (len(names), 1 + max(groups.values()))  # K experts, G weights each
    mean, std = torch.full(size, 1 / len(names)), torch.full(size, options.std)
    elite = max(2, round(options.elite * options.population))
    finalists = [torch.zeros(size), *(one[:, None].expand(size) for one in torch.eye(len(names)))]
    for generation in range(options.generations):
        alphas = mean + std * torch.randn(options.population, *size, generator=generator)  # [C, K, G]
        candidates = mixture_of(names, alphas, groups)
        best, scores = rank_candidates(engine, candidates, searching, reward, options, places=elite)
        mean, std = alphas[best].mean(0), alphas[best].std(0).clamp(min=options.least_std)
        finalists += [alphas[best[0]], mean]
        on_generation(generation + 1, *scores[0].tolist())
    candidates = mixture_of(names, torch.stack(finalists), groups)
    best, scores = rank_candidates(engine, candidates, choosing, reward, options, places=1)
    return Found(candidates.rows(best), *scores[0].tolist())


def rank_candidates(
    engine: NativeEngine,
    candidates: Mixture,
    rows: Sequence[dict[str, Any]],
    reward: Reward,
    options: Search,
    places: int,
) -> tuple[list[int], Tensor]:
    """The best candidates, best first, and their mean reward and mean log-likelihood [places, 2].

    Args:
        candidates: one per row.
    """
    columns = {column: [row[column] for row in rows] for column in rows[0]}
    prompts = columns.pop("prompt")
    population = Population(
        engine,
        prompts,
        columns["answer"],
        candidates,
        max_new_tokens=options.max_new_tokens,
        batch_size=options.batch_size,
    )

    def ask(pairs: Sequence[Pair]) -> tuple[Tensor, Tensor]:
        texts, likelihoods = population.answer(pairs)
        asked = {name: [values[example] for _, example in pairs] for name, values in columns.items()}
        # Where a reward function has no opinion (NaN), the answer earns nothing.
        rewards = torch.tensor(reward(texts, **asked)).nan_to_num(0.0)
        if not ((rewards >= 0) & (rewards <= 1)).all():  # which the race relies on
            raise UserError(
                "a search needs rewards from 0 to 1, but this reward function gives others; scale them to that range"
            )
        return rewards, likelihoods

    # Three times the rows from which computing takes longer than reading the weights.
    round_size = 3 * ROWS_PER_READ.get(engine.model.device.type, 256)
    return race(ask, len(candidates), len(rows), places, round_size)


def matrix_groups(model: PreTrainedModel | PeftModel, per: str) -> dict[str, int]:
    """Adapted matrix → the number of its weight."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    matrices = [name for name, module in plain_modules(base).items() if isinstance(module, SVFLayer)]
    if per == "model":
        return dict.fromkeys(matrices, 0)
    if per == "matrix":
        return {matrix: number for number, matrix in enumerate(matrices)}
    layers = {matrix: re.sub(r"^(.*?\.\d+)\..*", r"\1", matrix) for matrix in matrices}
    numbers = {layer: number for number, layer in enumerate(dict.fromkeys(layers.values()))}
    return {matrix: numbers[layer] for matrix, layer in layers.items()}


def mixture_of(names: Sequence[str], alphas: Tensor, groups: dict[str, int]) -> Mixture:
    """α [C, K, G] as a mixture of C rows."""
    if alphas.shape[2] == 1:
        return Mixture(tuple(names), alphas[:, :, 0])
    per_matrix = {matrix: alphas[:, :, group] for matrix, group in groups.items()}
    return Mixture(tuple(names), torch.stack([*per_matrix.values()]).mean(0), per_matrix)
