"""How well dispatchers tell GSM8K, MBPP and ARC-Easy questions apart, and what they do with other prompts.

python benchmarks/dispatch_accuracy.py [--per-domain 400] [--classifier FOLDER] [--output runs/dispatch_accuracy.json]

Everything is fitted on training splits and measured on held-out questions, without the domains' instructions. BoolQ
passages and small talk belong to no expert. `--classifier` measures the expert of
configs/smollm2-135m/paper_classifier.yaml instead of the other dispatchers.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from rich.console import Console
from rich.table import Table

from dispatch import Calibration, EmbeddingDispatcher, PromptDispatcher
from dispatch.base import question
from dispatch.embedding import PROMPTS
from experts.engine import NativeEngine
from experts.mixture import Mixture
from experts.outside.files import write_json
from experts.text_to_lora.encoder import encode
from experts.training.statistics import Accuracy
from selfadapt import load_base
from selfadapt.recipes import find_recipe, read_recipe

NAMES = ("gsm8k", "mbpp", "arc_easy")
CALIBRATED_ON = 64  # training prompts of each domain
SMALL_TALK = """
Hi there, how are you today? | What's your name? | Tell me a joke, please. | Good morning! | Thank you so much
for your help. | Who won the match last night? | What should I cook for dinner? | I feel a bit sad today. | Can
you recommend a good film? | Is it raining where you are? | Do you like music? | See you tomorrow! | I miss my
dog. | Where do you come from? | Let's talk about holidays. | What is your favourite colour? | Happy birthday to
my sister! | Nice to meet you. | Write me a short poem about autumn. | I'm bored, entertain me. | How was your
weekend? | Do you dream at night? | My boss is so annoying. | What do you think of my new phone? | Goodbye, and
take care. | Are you a robot? | I had pizza for lunch. | Sing me a song. | Which book are you reading? |
Congratulations on the new job! | I can't sleep. | Should I call her back? | That was a lovely evening. | Give
me a compliment. | What makes you happy? | Sorry, I was late. | Do you believe in ghosts? | My neighbours are
loud again. | Wish me luck! | How do I say no politely?
"""


def dispatchers(classifier: Path | None, categories: dict[str, str], train: list[list[str]]) -> dict[str, Any]:
    """Name in the table → what is measured, fitted on the training prompts [K][n], except for the classifier."""
    base, tokenizer = load_base()
    if classifier:
        model: Any = PeftModel.from_pretrained(base, str(classifier), adapter_name="classifier").eval()
        names = Calibration.of_names(len(NAMES))
        engine = NativeEngine(model, tokenizer)
        return {"classifier": PromptDispatcher(engine, categories, expert="classifier", calibration=names)}
    vectors = [encode(own) for own in train]
    described = encode(list(categories.values()))
    engine = NativeEngine(base, tokenizer)
    prompt = PromptDispatcher(engine, categories)
    sample = [text for own in train for text in own[:CALIBRATED_ON]]
    answers = torch.tensor([k for k, own in enumerate(train) for _ in own[:CALIBRATED_ON]])
    calibration = Calibration.fitted(prompt.scores(sample), answers)
    return {
        "embedding, forced": EmbeddingDispatcher(NAMES, described, vectors, false_alarms=0),
        "embedding": EmbeddingDispatcher(NAMES, described, vectors),
        "prompt, descriptions only": prompt,
        f"prompt, calibrated on {CALIBRATED_ON} each": PromptDispatcher(engine, categories, calibration=calibration),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--per-domain", type=int, default=400)
    parser.add_argument("--classifier", type=Path)
    parser.add_argument("--output", type=Path, default=Path("runs/dispatch_accuracy.json"))
    options = parser.parse_args()

    def asked(name: str, split: Any, most: int) -> list[str]:
        domain: Any = replace(read_recipe(find_recipe(f"smollm2-135m/{name}")).domain, instruction="")
        rows = domain.load(split)
        return [question(prompt) for prompt in rows[: min(most, len(rows))]["prompt"]]

    categories = {name: read_recipe(find_recipe(f"smollm2-135m/{name}")).domain.description for name in NAMES}
    train = [asked(name, "train", PROMPTS) for name in NAMES]
    held_out = [
        asked(name, "validation", options.per_domain) + asked(name, "test", options.per_domain) for name in NAMES
    ]
    questions = [text for own in held_out for text in own]
    labels = torch.tensor([k for k, own in enumerate(held_out) for _ in own])
    small_talk = [" ".join(text.split()) for text in SMALL_TALK.split("|")]
    strange = {"BoolQ": asked("boolq", "validation", 200), "small talk": small_talk}
    print({name: len(own) for name, own in zip([*NAMES, *strange], [*held_out, *strange.values()], strict=True)})

    columns = ("right", *NAMES, "kept", *(f"{name} to the base" for name in strange))
    table = Table("", *columns, title=f"n = {len(questions)}")
    report = {}
    for name, dispatcher in dispatchers(options.classifier, categories, train).items():
        mixture: Mixture = dispatcher(questions)
        kept = mixture.weights.any(1)
        right = kept & (mixture.weights.argmax(1) == labels)
        own = [right[labels == k].float().mean().item() for k in range(len(NAMES))]
        away = [1 - dispatcher(texts).weights.any(1).float().mean().item() for texts in strange.values()]
        accuracy = Accuracy(int(right.sum()), len(right))
        share = kept.float().mean().item()
        table.add_row(name, str(accuracy), *(f"{x:.1%}" for x in own), f"{share:.1%}", *(f"{x:.1%}" for x in away))
        report[name] = {"accuracy": accuracy.value, "interval": accuracy.interval, "n": accuracy.n, "own": own}
        report[name] |= {"kept": share, "to_the_base": dict(zip(strange, away, strict=True))}
        print(name, accuracy, flush=True)
    Console(width=180).print(table)
    write_json(options.output, report)


if __name__ == "__main__":
    main()
