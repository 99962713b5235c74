"""End-to-end training: what a batch is, what the loss is, and that a run learns, stops and resumes."""

from __future__ import annotations

import os
import signal
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from transformers import TrainerCallback

from experts.outside.errors import UserError
from experts.text_to_lora.examples import PromptStyle, Rounds, make_example, pad_examples, token_losses
from experts.text_to_lora.network import LoraOutput, SvfOutput
from experts.text_to_lora.run import Learning, Passes, train_network
from experts.text_to_lora.supervised import AnswerLoss, Collator, Supervised, training_items, validation_items
from experts.text_to_lora.tasks import Instance, Task
from experts.text_to_lora.writer import TextToAdapter
from experts.training.run import Interrupted, Result, Run
from experts.training.trainer import Diverged

STYLE = PromptStyle(with_definition=False, max_prompt_tokens=24, max_answer_tokens=8)
SMALL = LoraOutput(size="S")
OPTIONS = Supervised(
    steps=6, learning_rate=1e-3, tasks_per_step=4, validate_every=2, validation_instances=2, prompt=STYLE
)


def letter_tasks(names: str) -> list[Task]:
    """The answer is always the letter that the description names, whatever the input."""
    return [
        Task(
            letter,
            "train",
            f"Write {letter * 5}.",
            tuple(Instance(f"{letter}{i}", f"input {i}", (letter * 3,)) for i in range(8)),
            descriptions=(f"Write {letter * 5}.", f"Say {letter * 6}!"),
        )
        for letter in names
    ]


@pytest.fixture
def train(tiny_model: Any, tiny_tokenizer: Any, make_writer: Any, tmp_path: Path) -> Any:
    """`train(name, options)` trains a fresh network for the tiny base into `tmp_path/name`."""

    def train(
        name: str,
        options: Supervised,
        output: Any = SMALL,
        dropout: float = 0.05,
        *,
        resume: bool = False,
        callbacks: Any = (),
    ) -> Result:
        torch.manual_seed(options.seed)
        writer = make_writer(output, dropout=dropout)
        tasks = letter_tasks("abcdef")
        return train_network(
            writer,
            Learning(
                AnswerLoss(tiny_model, writer.network, options),
                training_items(tasks, tiny_tokenizer, writer.encoder, options),
                validation_items(letter_tasks("gh"), tiny_tokenizer, writer.encoder, options),
                Collator(tiny_tokenizer.pad_token_id),
                "It learned letters.",
            ),
            options,
            Run(tmp_path / name, {"name": "letters"}, resume),
            callbacks=callbacks,
        )

    return train


def test_an_example_ends_the_answer_and_keeps_the_end_of_the_prompt(tiny_tokenizer: Any) -> None:
    style = PromptStyle(max_prompt_tokens=20, max_answer_tokens=4)
    task = letter_tasks("a")[0]
    example = make_example(tiny_tokenizer, style, style.chat(task, task.instances[0]), "yes, sir")
    assert tiny_tokenizer.decode(example.answer) == "yes<|im_end|>"
    assert len(example.prompt) == 20
    assert tiny_tokenizer.decode(example.prompt).endswith("<|im_end|>\n<|im_start|>assistant\n")
    assert style.chat(task, task.instances[0])[0]["content"] == "Write aaaaa.\n\ninput 0"
    assert replace(style, with_definition=False).chat(task, task.instances[0])[0]["content"] == "input 0"


def test_the_loss_of_a_row_is_the_mean_over_its_answer_whatever_the_padding(
    tiny_model: Any, tiny_tokenizer: Any
) -> None:
    def example(prompt: str, answer: str) -> Any:
        return make_example(tiny_tokenizer, PromptStyle(), [{"role": "user", "content": prompt}], answer)

    examples = [example("short", "yes"), example("a much longer prompt", "certainly not")]
    with torch.no_grad():
        losses, tokens = token_losses(tiny_model, pad_examples(examples, 0))
        for row, one in enumerate(examples):
            logits = tiny_model(torch.tensor([one.prompt + one.answer])).logits[0]
            wanted = F.cross_entropy(logits[len(one.prompt) - 1 : -1], torch.tensor(one.answer))
            torch.testing.assert_close(losses[row], wanted, atol=1e-4, rtol=1e-4)
    assert tokens.tolist() == [4, 14]


def test_smoothing_and_noise_change_the_loss(tiny_model: Any, tiny_tokenizer: Any) -> None:
    batch = pad_examples([make_example(tiny_tokenizer, STYLE, [{"role": "user", "content": "x"}], "yes")] * 2, 0)
    with torch.no_grad():
        plain, _ = token_losses(tiny_model, batch)
        smooth, _ = token_losses(tiny_model, batch, label_smoothing=0.5)
        noisy, _ = token_losses(tiny_model, batch, neftune_alpha=5.0)
    assert plain[0] == plain[1]
    assert not torch.isclose(smooth[0], plain[0])
    assert not torch.isclose(noisy[0], noisy[1])


def test_a_round_meets_every_task_once_and_items_depend_on_nothing_else() -> None:
    rounds = Rounds(5, 23, seed=1, make=lambda task, chance: (task, chance.random()))
    items = [rounds[i] for i in range(len(rounds))]
    for start in range(0, 20, 5):
        assert sorted(task for task, _ in items[start : start + 5]) == [0, 1, 2, 3, 4]
    assert len({chance for _, chance in items}) == 23
    assert rounds[17] == items[17]
    assert [task for task, _ in items[:5]] != [task for task, _ in items[5:10]]
    assert items != [Rounds(5, 23, seed=2, make=lambda task, chance: (task, chance.random()))[i] for i in range(23)]


def test_items_draw_instances_and_descriptions(tiny_tokenizer: Any, encoder: Any) -> None:
    tasks = letter_tasks("abcdef")
    items = training_items(tasks, tiny_tokenizer, encoder, replace(OPTIONS, steps=30))
    known = {tuple(encoder([text])[0].tolist()) for task in tasks for text in task.descriptions}
    seen = Counter(tuple(items[i].task.tolist()) for i in range(len(items)))
    assert set(seen) == known
    assert len({tuple(items[i].example.prompt) for i in range(len(items))}) == 8


@pytest.mark.parametrize("output", [LoraOutput(), LoraOutput(size="S"), SvfOutput(rank=8)], ids=str)
def test_it_learns_to_follow_descriptions(
    output: Any, train: Any, tiny_model: Any, tiny_tokenizer: Any, encoder: Any, tmp_path: Path
) -> None:
    options = replace(OPTIONS, steps=60, learning_rate=1e-2, tasks_per_step=6, validate_every=20, neftune_alpha=0.0)
    result = train("network", options, output)
    assert result.validations[20] < result.validations[0]
    writer = TextToAdapter.from_pretrained(tmp_path / "network", encoder=encoder)
    loss = AnswerLoss(tiny_model, writer.network, options)
    collate = Collator(tiny_tokenizer.pad_token_id)
    items = validation_items(letter_tasks("abcdef"), tiny_tokenizer, encoder, options)
    with torch.no_grad():
        right = loss(writer.network, collate(items))
        others = [replace(a, task=b.task) for a, b in zip(items, items[2:] + items[:2], strict=True)]
        wrong = loss(writer.network, collate(others))
    assert right < wrong - 0.1


def test_the_folder_tells_what_it_is(train: Any, tmp_path: Path) -> None:
    result = train("network", OPTIONS)
    assert {path.name for path in (tmp_path / "network").iterdir()} == {
        "network.json",
        "network.safetensors",
        "training_log.jsonl",
        "README.md",
    }
    assert not (tmp_path / "network.unfinished").exists()
    assert sorted(result.validations) == [0, 2, 4, 6]
    assert f"{result.parameters:,} parameters" in (tmp_path / "network" / "README.md").read_text()
    with pytest.raises(UserError, match="exists already"):
        train("network", OPTIONS)


class Interrupt(TrainerCallback):
    """Presses Ctrl-C during a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.step - 1:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize(("step", "learning_rate"), [(3, 1e-3), (6, 0.1)])
def test_an_interrupted_run_resumes_to_the_same_network(
    train: Any, encoder: Any, tmp_path: Path, step: int, learning_rate: float
) -> None:
    options = replace(OPTIONS, micro_batch_size=2, learning_rate=learning_rate)
    whole = train("whole", options)
    assert (whole.best_step == 6) == (step == 3)  # so that the best is not always the last
    with pytest.raises(Interrupted, match=f"step {step}"):
        train("parts", options, callbacks=[Interrupt(step)])
    assert not (tmp_path / "parts").exists()
    checkpoint = tmp_path / "parts.unfinished" / f"checkpoint-{step}"
    network = TextToAdapter.from_pretrained(checkpoint, encoder=encoder).network  # as it is after that step
    for name, weights in load_file(checkpoint / "model.safetensors").items():
        assert torch.equal(network.state_dict()[name], weights)
    with pytest.raises(UserError, match="continue it with --resume"):
        train("parts", options)
    train("parts", options, resume=True)
    files = [tmp_path / name / "network.safetensors" for name in ("whole", "parts")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_it_stops_early_and_keeps_the_best(train: Any) -> None:
    result = train("network", replace(OPTIONS, steps=40, learning_rate=0.2, warmup=0.0, patience=2, validate_every=1))
    assert max(result.validations) < 40
    assert result.validations[result.best_step] == min(loss for step, loss in result.validations.items() if step)


def test_nan_stops_the_run_and_keeps_the_best_network(train: Any, tmp_path: Path) -> None:
    class Poison(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
            if state.global_step == 2:
                next(p for p in model.parameters() if p.requires_grad).data.fill_(float("nan"))

    with pytest.raises(Diverged, match="step 3"):
        train("network", replace(OPTIONS, validate_every=1), callbacks=[Poison()])
    tensors = load_file(tmp_path / "network" / "network.safetensors").values()
    assert all(torch.isfinite(tensor).all() for tensor in tensors)


def test_micro_batches_do_not_change_a_step(train: Any) -> None:
    # Without dropout and noise, whose random numbers depend on the shapes that ask for them.
    options = replace(OPTIONS, steps=4, neftune_alpha=0.0)
    results = [train(f"by {size}", replace(options, micro_batch_size=size), dropout=0.0) for size in (4, 3, 2, 1)]
    assert results[0].validations[4] != pytest.approx(results[0].validations[0], abs=0.01)
    for result in results[1:]:
        assert result.validations == pytest.approx(results[0].validations, abs=1e-4)


@pytest.mark.parametrize("output", [SMALL, SvfOutput(rank=8)], ids=str)
@pytest.mark.parametrize("at_most", [8, 3])
def test_a_step_of_short_and_long_prompts_pads_less_and_learns_the_same(
    output: Any, at_most: int, make_writer: Any, tiny_model: Any, tiny_tokenizer: Any
) -> None:
    options = replace(OPTIONS, neftune_alpha=0.0, penalty=0.1, prompt=replace(STYLE, max_prompt_tokens=512))
    writer = make_writer(output, trained=True, dropout=0.0)
    tasks = [replace(own, instances=own.instances[:1]) for own in letter_tasks("abcdefgh")]
    for place in (1, 6):
        tasks[place] = replace(tasks[place], instances=(Instance("long", "input " * 60, ("yes, it is",)),))
    items = validation_items(tasks, tiny_tokenizer, writer.encoder, options)
    collate = Collator(tiny_tokenizer.pad_token_id)
    together = collate(items)
    passes = Passes(collate, lambda item: item.example.length, tiny_model.device, at_most)(items)
    (one,) = Passes(collate, lambda item: item.example.length, torch.device("meta"))(items)  # a pass costs more there
    assert all(torch.equal(one[name], tensor) for name, tensor in together.items())  # in the items' own order

    def padding(batch: dict[str, Any]) -> int:
        return int((batch["attention_mask"] == 0).sum())

    assert len(passes) == (2 if at_most == 8 else 3)
    assert max(len(batch["tasks"]) for batch in passes) <= at_most
    assert sum(map(padding, passes)) * 10 < padding(together)
    assert sum(int(batch["attention_mask"].sum()) for batch in passes) == together["attention_mask"].sum()

    loss, network = AnswerLoss(tiny_model, writer.network, options), writer.network.train()
    wanted = loss(network, together)
    parts = [batch["share"] * loss(network, batch) for batch in passes]
    torch.testing.assert_close(sum(parts), wanted, atol=1e-5, rtol=1e-5)
    weights = [p for p in network.parameters() if p.requires_grad]
    gradients = [torch.autograd.grad(total, weights) for total in (sum(parts), wanted)]
    for own, other in zip(*gradients, strict=True):
        torch.testing.assert_close(own, other, atol=1e-5 * float(other.abs().max()) + 1e-7, rtol=1e-3)


def test_numbers_below_one_are_refused() -> None:
    with pytest.raises(UserError, match="at least 1"):
        Supervised(steps=0)
