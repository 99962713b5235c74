"""What dispatching costs: against a bare prefill of the prompts, and against answering them.

python benchmarks/pass_one.py [--rounds 5] [--rows 16] [--tokens 100] [--new-tokens 128]
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from sidebyside import side_by_side

from dispatch import EmbeddingDispatcher, PromptDispatcher
from experts.engine import NativeEngine
from experts.library import CLASSIFIER, ExpertLibrary
from experts.shipped import shipped_library
from selfadapt import load_base

TEXT = (
    "A farmer counts the animals on three fields before the rain comes. On the first there are sheep and two dogs, on "
    "the second a horse that somebody left there in the spring, and on the third nothing but grass and a broken fence. "
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=100)
    parser.add_argument("--new-tokens", type=int, default=128)
    options = parser.parse_args()
    folder = shipped_library("smollm2-135m")
    assert folder is not None
    library = ExpertLibrary.open(folder)
    base, tokenizer = load_base()
    model: Any = library.load(base)
    ids = [tokenizer.encode(f"{row}. {TEXT * 4}")[: options.tokens] for row in range(options.rows)]
    prompts = tokenizer.batch_decode(ids)
    inputs = torch.tensor(ids)
    prompt = PromptDispatcher(NativeEngine(model, tokenizer), library.descriptions())
    embedding = EmbeddingDispatcher.from_library(library)

    def prefill() -> None:
        with torch.inference_mode(), model.disable_adapter():
            model(input_ids=inputs, logits_to_keep=1)

    alternatives: dict[str, Any] = {
        "bare prefill": prefill,
        "prompt": lambda: prompt(prompts),
        "embedding": lambda: embedding(prompts),
        "pass two": lambda: NativeEngine(model, tokenizer).generate(prompts, max_new_tokens=options.new_tokens),
    }
    if library.classifier:
        classifier = PromptDispatcher(NativeEngine(model, tokenizer), library.descriptions(), expert=CLASSIFIER)
        alternatives["classifier"] = lambda: classifier(prompts)
    # The answers must not end early: no token ends them.
    model.generation_config.eos_token_id = -1
    side_by_side(
        f"{options.rows} prompts of {options.tokens} tokens, {options.new_tokens} new ones in pass two",
        alternatives,
        against="bare prefill",
        rounds=options.rounds,
    )


if __name__ == "__main__":
    main()
