"""What this package does on one card in six minutes, on shapes of 8 and 4 billion parameters with random weights.

python benchmarks/gpu.py [--output gpu.md] [--minutes 6] [--base FOLDER] [--small]

Of the packages that `selfadapt` depends on, it needs torch, transformers, peft, trl and safetensors with their own
dependencies, and bitsandbytes for the part in four bits. Nothing is downloaded. The last part trains `stories` on the
built-in base, from where `load_base` has kept it or from `--base`. Each part is written to the output as soon as it
ends; if one fails, the output says so and the next begins. None begins after `--minutes`. `--small` is for CPUs: the
shapes are tiny, and the figures mean nothing.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import date
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import yaml
from fits import BASES, Needs, Step, needs
from memory import size
from peft import LoraConfig, PeftConfig, get_peft_model
from sidebyside import in_turns, rows
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from trainers import stock
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedTokenizerFast
from transformers.trainer_callback import PrinterCallback

from experts.domains.word_problems import WordProblems
from experts.outside.files import cache_folder
from experts.svf import SVFConfig, SVFLinear
from experts.training.evaluation import Problems, held_out_scores
from experts.training.reinforce import Reinforce
from experts.training.statistics import accuracy
from experts.training.token_logps import Headless, head_of, token_logps
from experts.training.trainer import LoadedBase
from experts.training.trl_glue import make_trainer
from selfadapt import load_base

MLP = r".*\.mlp\.(gate|up|down)_proj"
STORIES = Path(__file__).parent.parent / "configs" / "smollm2-135m" / "stories.yaml"
TINY = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
TINY |= {"num_key_value_heads": 2, "head_dim": 16, "vocab_size": 512}


STEP = Step(tokens=812, micro_batch=4, checkpointing=True)


@dataclass(frozen=True)
class Sizes:
    """How much is done."""

    rank: int = 64
    step: Step = STEP
    rows: int = 16
    """The answers written at once."""
    new_tokens: int = 64
    prompts: int = 8
    rounds: int = 3
    steps: int | None = None
    """The steps of `stories`; None means the recipe's."""
    problems: int = 256


SMALL = Sizes(rank=8, step=Step(24, 2, True), rows=3, new_tokens=4, prompts=2, rounds=1, steps=1, problems=4)


@dataclass
class Card:
    """The card everything runs on, and the base that is on it."""

    place: torch.device
    sizes: Sizes
    configs: dict[str, PreTrainedConfig]
    built_in: Path
    """The folder of the built-in base, if there is one."""
    folder: Path
    """A folder for what a part writes."""
    _held: dict[str, Any] = field(default_factory=dict)

    @property
    def svf(self) -> SVFConfig:
        return SVFConfig(target_modules=MLP, rank=self.sizes.rank)

    def base(self, name: str) -> Any:
        """A base of the named shapes, in bfloat16; the last one asked for is kept."""
        if name not in self._held:
            self.clear()
            torch.manual_seed(0)
            with self.place:
                base = AutoModelForCausalLM.from_config(self.configs[name], dtype=torch.bfloat16).eval()
            base.generation_config.pad_token_id = 0
            self._held[name] = base
        return self._held[name]

    def clear(self) -> None:
        self._held.clear()
        gc.collect()
        if self.place.type == "cuda":
            torch.cuda.empty_cache()

    def ids(self, base: Any, count: int, length: int) -> torch.Tensor:
        return torch.randint(3, base.config.vocab_size, (count, length), device=self.place)

    def wait(self) -> None:
        """Waits until the card has done what it was asked to do."""
        if self.place.type == "cuda":
            torch.cuda.synchronize()

    def peak(self, run: Callable[[], object]) -> int | None:
        """The most bytes that the card holds during `run`; None on a CPU."""
        if self.place.type != "cuda":
            return None
        torch.cuda.reset_peak_memory_stats()
        run()
        self.wait()
        return torch.cuda.max_memory_allocated()


LARGE, MIDDLE = "Llama-3.1-8B-Instruct", "Qwen3-4B"
Rows = Iterator[tuple[str, ...]]


def decomposition(card: Card) -> Rows:
    """All MLP matrices."""
    yield "", "seconds"
    for name in (MIDDLE, LARGE):  # the next part uses the large base, too
        base = card.base(name)
        for when in ("computed", "from the cache"):
            start = time.perf_counter()
            base = get_peft_model(base, card.svf).unload()
            card.wait()
            yield f"{name}, rank {card.sizes.rank}, {when}", f"{time.perf_counter() - start:.1f}"


def training_step(card: Card) -> Rows:
    """Forward and backward of a micro-batch with gradient checkpointing, on the MLP matrices, one adapter after the
    other on one base."""
    base = card.base(LARGE)
    lora = LoraConfig(r=16, lora_alpha=32, target_modules=MLP)
    yield from _steps(card, base, {"PEFT LoRA r=16": lora, f"SVF rank {card.sizes.rank}": card.svf})


def memory(card: Card) -> Rows:
    """A training step's, against the arithmetic of docs/scale.md."""
    yield from _memory(card, card.base(LARGE), needs(card.configs[LARGE], card.sizes.rank, card.sizes.step))


def reinforce(card: Card) -> Rows:
    """A whole REINFORCE step, one trainer after the other on one base: prompts, samples and lengths are the same."""
    sizes, domain = card.sizes, WordProblems("stories", "", instruction="Answer with a number only.")
    options = Reinforce(
        learning_rate=1e-4,
        steps=1,
        prompts_per_step=sizes.prompts,
        max_new_tokens=sizes.new_tokens,
        micro_batch_size=sizes.step.micro_batch,
        gradient_checkpointing=True,
    )
    tokenizer, seconds = byte_tokenizer(), {}
    makers: dict[str, Callable[[LoadedBase, Path], Any]] = {
        "plain TRL, LoRA r=16 on q and v": lambda base, folder: stock(base, domain, options, folder),
        f"ours, SVF rank {sizes.rank} on the MLP": lambda base, folder: make_trainer(
            base, domain, card.svf, options, folder
        ),
    }
    for name, make in makers.items():
        trainer = make(LoadedBase(card.base(MIDDLE), tokenizer, MIDDLE), card.folder / name[:4])
        trainer.remove_callback(PrinterCallback)
        seconds |= in_turns({name: lambda trainer=trainer: (trainer.train(), card.wait())}, sizes.rounds)
        del trainer
        card.clear()  # the trainer has put its adapter into the base
    yield from _ratios(seconds, next(iter(makers)))


def rollouts(card: Card) -> Rows:
    """Sampling under an expert in training, against its base."""
    model: Any = get_peft_model(card.base(MIDDLE), card.svf)
    ids = card.ids(model, card.sizes.rows, 48)

    def alone() -> None:
        with model.disable_adapter():
            _generate(card, model, ids, do_sample=True)

    alternatives = {"base": alone, "SVF, in training": lambda: _generate(card, model, ids, do_sample=True)}
    yield from _ratios(in_turns(alternatives, card.sizes.rounds), "base")
    model.unload()


def mixed_rows(card: Card) -> Rows:
    """Rows that have an expert each, against their base."""
    names = [f"expert{row}" for row in range(card.sizes.rows)]
    model: Any = get_peft_model(card.base(MIDDLE), card.svf, adapter_name=names[0]).eval()
    for name in names[1:]:
        model.add_adapter(name, card.svf)
    for layer in model.modules():
        if isinstance(layer, SVFLinear):
            for z in layer.svf_z.values():
                z.data.add_(0.05 * torch.randn_like(z))
    ids = card.ids(model, card.sizes.rows, 8)

    def alone() -> None:
        with model.disable_adapter():
            _generate(card, model, ids)

    alternatives = {"base": alone, "an expert a row": lambda: _generate(card, model, ids, adapter_names=names)}
    yield from _ratios(in_turns(alternatives, card.sizes.rounds), "base")
    model.unload()


def four_bits(card: Card) -> Rows:
    """The training step, and its memory, on a base in NF4."""
    if find_spec("bitsandbytes") is None:
        yield ("left out: bitsandbytes is not installed",)
        return
    folder = card.folder / "dense"
    card.base(MIDDLE).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    card.clear()
    base, _ = load_base(folder, dtype="bfloat16", device=card.place, quantization="nf4")
    lora = LoraConfig(r=16, lora_alpha=32, target_modules=MLP)
    yield from _steps(card, base, {"QLoRA r=16": lora, f"SVF rank {card.sizes.rank}": card.svf})
    yield from _memory(card, base, needs(card.configs[MIDDLE], card.sizes.rank, card.sizes.step, quantization="nf4"))


def stories(card: Card) -> Rows:
    """`configs/smollm2-135m/stories.yaml` on the built-in base, to its last step; no step is chosen by validation."""
    if not (card.built_in / "config.json").exists():
        yield (f"left out: the built-in base is not in {card.built_in}",)
        return
    recipe = yaml.safe_load(STORIES.read_text(encoding="utf-8"))
    recipe["domain"].pop("kind")
    domain, adapter = WordProblems(**recipe["domain"]), SVFConfig(**recipe["adapt"])
    sizes = card.sizes
    less = {} if sizes.steps is None else {"steps": sizes.steps, "prompts_per_step": sizes.prompts}
    options = Reinforce(**recipe["training"] | less)
    base, tokenizer = load_base(card.built_in, device=card.place)
    test = domain.load("test")
    problems = Problems(domain, test.select(range(min(sizes.problems, len(test)))), options.max_new_tokens)
    before = held_out_scores(base, tokenizer, problems)
    trainer = make_trainer(LoadedBase(base, tokenizer, "smollm2-135m"), domain, adapter, options, card.folder / "run")
    trainer.remove_callback(PrinterCallback)
    start = time.perf_counter()
    trainer.train()
    card.wait()
    seconds = time.perf_counter() - start
    model: Any = trainer.model
    after = held_out_scores(model, tokenizer, problems)
    yield "", f"{options.steps} steps, seed {options.seed}"
    pairs = [*zip(after, before, strict=True)]
    yield "base, held-out problems", str(accuracy(before))
    yield "expert", str(accuracy(after))
    yield "problems gained and lost", f"{sum(a > b for a, b in pairs)}, {sum(a < b for a, b in pairs)}"
    yield "seconds of training", f"{seconds:.1f}"


PARTS = {
    "Decomposition": decomposition,
    "Training step": training_step,
    "Memory": memory,
    "REINFORCE step": reinforce,
    "Rollouts": rollouts,
    "Rows with experts of their own": mixed_rows,
    "Four bits": four_bits,
    "Stories": stories,
}


def _generate(card: Card, model: Any, ids: torch.Tensor, **options: Any) -> None:
    length = {"min_new_tokens": card.sizes.new_tokens, "max_new_tokens": card.sizes.new_tokens}
    with torch.inference_mode():
        model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **length, **options)
    card.wait()


def _step(card: Card, model: Any) -> Callable[[], None]:
    """A function that runs a micro-batch forward and backward, with the logits piece by piece, as in training."""
    model.train()
    base = model.get_base_model()
    base.gradient_checkpointing_enable()
    base.enable_input_require_grads()
    head = head_of(base)
    assert head is not None
    ids = card.ids(base, card.sizes.step.micro_batch, card.sizes.step.tokens)

    def run() -> None:
        states = Headless(model, head)(input_ids=ids, use_cache=False).logits  # [B, T, d]
        logps, _ = token_logps(head, states[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), 1.0)
        logps.mean().backward()
        model.zero_grad()
        card.wait()

    return run


def _steps(card: Card, base: Any, adapters: dict[str, PeftConfig]) -> Rows:
    seconds = {}
    for name, config in adapters.items():
        model: Any = get_peft_model(base, config)
        seconds |= in_turns({name: _step(card, model)}, card.sizes.rounds)
        base = model.unload()
    yield from _ratios(seconds, next(iter(adapters)))


def _memory(card: Card, base: Any, wanted: Needs) -> Rows:
    model: Any = get_peft_model(base, card.svf)
    layers = [layer for layer in model.modules() if isinstance(layer, SVFLinear)]
    factors = sum(size(layer.svf_u, layer.svf_s, layer.svf_vt) for layer in layers)
    stays = torch.cuda.memory_allocated() if card.place.type == "cuda" else None
    peak = card.peak(_step(card, model))
    model.unload()
    yield "", "bytes, measured", "by arithmetic"
    yield "factors", f"{factors:,}", f"{wanted.factors:,}"
    yield "base and factors", _bytes(stays), f"{wanted.stays:,}"
    yield "peak of a step", _bytes(peak), f"{wanted.stays + wanted.backward:,}"


def _bytes(count: int | None) -> str:
    return "no card" if count is None else f"{count:,}"


def _ratios(seconds: dict[str, list[float]], against: str) -> Rows:
    yield "", "seconds (median)", f"× {against} (median)", "smallest to largest"
    for name, texts in rows(seconds, against).items():
        yield name, *texts


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer whose tokens are bytes, so that there is nothing to download."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(special + alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    template = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    pad, begin, end = special
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=pad,
        bos_token=begin,
        eos_token=end,
        padding_side="left",
        chat_template=template,
    )


def table(found: list[tuple[str, ...]]) -> str:
    """The rows in Markdown; a row that begins with an empty cell is the head of a table."""
    lines = []
    for row in found:
        if row[0] == "":
            lines += ["", f"| {' | '.join(row)} |", "|---" * len(row) + "|"]
        else:
            lines.append(f"| {' | '.join(row)} |" if len(row) > 1 else row[0])
    return "\n".join(lines).strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("gpu.md"))
    parser.add_argument("--minutes", type=float, default=6)
    parser.add_argument("--base", type=Path, default=cache_folder() / "bases" / "smollm2-135m")
    parser.add_argument("--small", action="store_true")
    options = parser.parse_args()
    if not (options.small or torch.cuda.is_available()):
        sys.exit("torch finds no GPU; use --small to try everything on a CPU, with tiny shapes")
    place = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    configs = {name: BASES[name] for name in (LARGE, MIDDLE)}
    if options.small:
        configs = {name: type(config)(**TINY) for name, config in configs.items()}
    what = "a CPU, with tiny shapes"
    if place.type == "cuda":
        card_memory = torch.cuda.get_device_properties(place).total_memory
        what = f"{torch.cuda.get_device_name(place)}, {card_memory / 1e9:.0f} GB"
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "peft", "trl"))
    page = [f"# {what}\n\n`python {' '.join(sys.argv)}`, {date.today()}, {versions}. Random weights, bfloat16.\n"]
    begun, failed = time.perf_counter(), []
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SELFADAPT_CACHE"] = folder  # nobody needs decompositions of random weights later
        card = Card(place, SMALL if options.small else Sizes(), configs, options.base, Path(folder))
        for title, part in PARTS.items():
            start, found, said = time.perf_counter(), [], ""
            if start - begun > 60 * options.minutes:
                found.append(("left out: the time is up",))
            else:
                print(f"{title} …", file=sys.stderr)
                try:
                    found.extend(part(card))
                except Exception as error:
                    traceback.print_exc()
                    failed.append(title)
                    said = f"failed: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
                    card.clear()
            page.append(f"## {title}\n\n{' '.join((part.__doc__ or '').split())}\n")
            page += [each + "\n" for each in (table(found), said, f"{time.perf_counter() - start:.0f} s.") if each]
            options.output.write_text("\n".join(page), encoding="utf-8")
    print(options.output.read_text(encoding="utf-8"))
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
