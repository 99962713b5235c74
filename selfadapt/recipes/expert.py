"""An expert's recipe: one YAML file that says how one expert is made, and the types that its fields must have."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Union

import tyro

from dispatch.embedding import PROMPTS, write_prompts
from experts.domains import KINDS, is_judged, own_reward, reinforced
from experts.outside.chats import with_template_arguments
from experts.outside.errors import SEEDS, UserError, check_whole
from experts.outside.fields import added
from experts.training.expert import HeldOut, TrainedExpert, train_expert
from experts.training.methods import METHODS, SVF, Adapt, LoRA
from experts.training.reinforce import Reinforce
from experts.training.run import Run
from experts.training.supervised import NextToken
from experts.training.trainer import LoadedBase
from selfadapt.recipes.base import BaseBlock
from selfadapt.recipes.classification import Classification
from selfadapt.recipes.configuration import Choice, make, read_yaml, spell_out

DOMAINS: dict[str, type] = {**KINDS, "classification": Classification}
OBJECTIVES: dict[str, type] = {"reinforce": Reinforce, "next_token": NextToken}

if TYPE_CHECKING:
    from experts.domains import Domain as AnyDomain
else:
    AnyDomain = Union[tuple(dict.fromkeys(DOMAINS.values()))]  # noqa: UP007 (of as many as there are)


@dataclass(frozen=True)
class Recipe:
    """Base, domain, adapted matrices and training of one expert.

    In the file, `training.objective` is reinforce (the default) or next_token, and `adapt.method` is svf (the default)
    or one of its rivals. `trainer`, a field of the training, may also stand at the top.
    """

    at_top: ClassVar[Mapping[str, str]] = {"trainer": "training"}

    domain: Annotated[AnyDomain, Choice("kind", DOMAINS, noun="domain")]
    training: Annotated[
        Reinforce | NextToken, Choice("objective", OBJECTIVES, default="reinforce"), tyro.conf.arg(name="")
    ]
    adapt: Annotated[Adapt, Choice("method", METHODS, default="svf"), tyro.conf.arg(name="")] = field(
        default_factory=SVF
    )
    model: str = "smollm2-135m"
    """A built-in name, a hub id, or a folder."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] | None = None
    """The base's dtype; by default float32 on a CPU, and the checkpoint's own (auto) on an accelerator. z is
    always float32."""
    test_size: int = 256
    """Held-out problems on which the base and the finished expert are compared."""
    base: BaseBlock = added(default_factory=BaseBlock)
    chat_template_kwargs: dict[str, bool | int | float | str] = added(default_factory=dict)
    """Arguments of the base's chat template, in training and every answer, such as Qwen3's enable_thinking: false."""

    def __post_init__(self) -> None:
        check_whole("test_size", self.test_size)
        if isinstance(self.training, Reinforce):
            if not is_judged(self.domain):
                raise UserError(
                    "domain.judged_by is missing: reinforce needs to know which answers are right; next_token does not"
                )
            if len(reinforced(self.domain)) == 1:  # the model card says what was done
                rewards = self.training.rewards(own_reward(self.domain) is not None)
                object.__setattr__(self, "training", replace(self.training, reward=rewards))
        check_whole("training.seed", self.training.seed, least=0, most=SEEDS)
        try:
            self.adapt.config()
        except ValueError as error:
            raise UserError(f"adapt: {error}") from error

    def run(self, output: Path, *, resume: bool = False, replace: bool = False, log_completions: bool = False) -> Run:
        """The run of this recipe.

        If sentence-transformers is installed, embeddings of some training prompts are stored for dispatch beside an
        expert or a LoRA that answers.
        """
        answers = isinstance(self.adapt, SVF | LoRA) and not isinstance(self.domain, Classification)

        def beside(folder: Path) -> None:
            if not (answers and find_spec("sentence_transformers")):
                return
            try:
                write_prompts(folder, self.domain.load("train")[:PROMPTS]["prompt"])
            except UserError as error:
                print(f"dispatch will go by the description alone, without training prompts: {error}", file=sys.stderr)

        return Run(output, self.to_dict(), resume, replace, log_completions, beside)

    def to_dict(self) -> dict[str, Any]:
        """As `spell_out`: the YAML file as a document."""
        return spell_out(self)


def read_recipe(path: Path) -> Recipe:
    """Reads and checks a recipe.

    Raises:
        UserError: one line that names the file, the field, and what it should be.
    """
    document = read_yaml(path)
    if isinstance(document, dict):
        for block in (document, document.get("training")):
            if isinstance(block, dict) and "output_dir" in block:
                raise UserError(
                    f"{path}: output_dir is not part of a recipe; give it to `selfadapt train` as --output-dir"
                )
    return make(Recipe, document, path)


def train_recipe(recipe: Recipe, base: LoadedBase, run: Run, base_scores: list[float] | None = None) -> TrainedExpert:
    """Runs `train_expert` as the recipe says; raises what that raises.

    Args:
        base_scores: the base's scores on the recipe's held-out problems, if they are known.
    """
    base = replace(base, tokenizer=with_template_arguments(base.tokenizer, recipe.chat_template_kwargs))
    held_out = HeldOut(recipe.test_size, base_scores)
    return train_expert(base, recipe.domain, recipe.adapt.config(), recipe.training, run, held_out)
