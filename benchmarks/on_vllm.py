"""What adapting costs on vLLM: dispatch, mixing and LoRAs on demand, against the same requests with ready LoRAs.

python benchmarks/on_vllm.py [--rounds 3] [--new-tokens 32]      (in the environment of `make setup-vllm`)

There are 32 requests under 8 mixtures of the shipped experts. "on demand" starts with a library and prompts: it embeds
and dispatches the prompts, mixes the experts, writes the LoRAs, and vLLM loads them. "made beforehand" has LoRAs that
are on disk and loaded in vLLM already, and only answers.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from sidebyside import side_by_side

from dispatch import Dispatcher, find_dispatcher
from experts import Mixture
from experts.library import ExpertLibrary
from experts.outside.chats import Chat
from experts.shipped import shipped_library
from selfadapt import SelfAdaptiveModel

THINGS = ["apples", "books", "coins", "stones"]
QUESTIONS = [
    "What is {n} + {m}?",
    "Tom has {n} {things} and gets {m} more. How many {things} has he now?",
    "{n} boxes hold {m} {things} each. How many {things} are there in all the boxes together?",
    "Ann has {m} {things} more than Bob, who has {n}. How many {things} has Ann?",
    "Name a use for {things}.",
    "Where would you look for {things}?",
    "Is {n} larger than {m}?",
    "Write one sentence about {things} and the sea.",
]
PROMPTS = [text.format(n=n, m=n + 3, things=things) for n, things in enumerate(THINGS, 2) for text in QUESTIONS]


class EightMixtures:
    """Asks the embedding dispatcher but, whatever it says, deals out eight mixtures that have not occurred before."""

    def __init__(self, library: ExpertLibrary) -> None:
        self.embedding = find_dispatcher("embedding", library)
        self.turn = 0

    def __call__(self, prompts: Sequence[str | Chat]) -> Mixture:
        names = self.embedding(prompts).names
        rows = torch.arange(len(prompts)) % 8
        shares = torch.stack([1 + rows, 8 - rows, 1 + rows % 2, 1 + rows // 4], 1)  # [B, K]
        self.turn += 1
        return Mixture(names, shares / shares.sum(1, keepdim=True) * (1 - self.turn / 1000))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--new-tokens", type=int, default=32)
    options = parser.parse_args()
    folder = shipped_library("smollm2-135m")
    assert folder is not None
    library = ExpertLibrary.open(folder)
    # Room for the eight mixtures of each way, so that neither drives the other's out.
    settings = {"max_loras": 16, "max_model_len": 512}
    model = SelfAdaptiveModel.from_pretrained(library=library, dispatch="none", engine="vllm", engine_options=settings)
    dispatcher = EightMixtures(library)
    decided = dispatcher(PROMPTS)

    def answer(dispatch: Dispatcher) -> None:
        model.dispatcher = dispatch
        model.generate(PROMPTS, max_new_tokens=options.new_tokens)

    side_by_side(
        f"{len(PROMPTS)} requests under 8 mixtures, {options.new_tokens} new tokens at most",
        {"made beforehand": lambda: answer(lambda prompts: decided), "on demand": lambda: answer(dispatcher)},
        against="made beforehand",
        rounds=options.rounds,
    )


if __name__ == "__main__":
    main()
