"""The lm-eval model: the base is lm-eval's own `hf` to the last digit, and every mixture answers its own requests."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from copy import copy
from pathlib import Path
from typing import Any

import lm_eval
import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import CacheHook, CachingLM
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from experts import ExpertLibrary, Mixture
from experts.engine import mixed
from experts.outside.chats import Chat
from experts.outside.errors import UserError
from selfadapt import SelfAdaptiveModel
from selfadapt.harness import SelfAdaptiveLM

QUESTIONS = [f"{kind} {'x' * (n % 5)}{n}" for n in range(6) for kind in ("red", "blue", "grey")]
FEW = ["choice", "writing", "reading"]


class ByColour:
    """A dispatcher for the tests: red questions are for "a", blue ones for "b" and half of "a", grey ones for the base.

    Remembers what it was shown.
    """

    def __init__(self) -> None:
        self.seen: list[str] = []

    def __call__(self, prompts: Sequence[str | Chat]) -> Mixture:
        self.seen.extend(map(str, prompts))
        rows = [[1.0, 0.0] if "red" in p else [0.5, 1.0] if "blue" in p else [0.0, 0.0] for p in map(str, prompts)]
        return Mixture(("a", "b"), torch.tensor(rows).view(len(rows), 2))


@pytest.fixture
def adaptive(library: ExpertLibrary) -> SelfAdaptiveModel:
    model = SelfAdaptiveModel.from_pretrained(library=library)
    return SelfAdaptiveModel(model.model, model.tokenizer, ByColour())


def judged(model: Any, folder: Path, tasks: Sequence[str] = FEW, **options: Any) -> dict[str, Any]:
    manager = TaskManager(include_path=folder, include_defaults=False)
    options = {"batch_size": 4, "device": "cpu", "bootstrap_iters": 10, **options}
    return lm_eval.simple_evaluate(model=model, tasks=list(tasks), task_manager=manager, **options)


def responses(results: dict[str, Any]) -> dict[str, Any]:
    return {task: [sample["resps"] for sample in samples] for task, samples in results["samples"].items()}


def requests(kind: str, questions: Sequence[str], *continuations: Any) -> list[Instance]:
    return [
        Instance(kind, {}, (q, *((c,) if c is not None else ())), i, ("task", doc, 1))
        for doc, q in enumerate(questions)
        for i, c in enumerate(continuations)
    ]


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.long
def test_the_base_has_the_numbers_of_hf(library: ExpertLibrary, task_folder: Path, batch_size: int) -> None:
    hf = judged("hf", task_folder, model_args={"pretrained": library.base}, batch_size=batch_size)
    empty = ExpertLibrary.create(library.folder.with_name("empty"), library.base, library.fingerprint)
    for arguments in (
        f"pretrained={library.base},dispatch=none",
        f"pretrained={library.base},library={empty.folder},dispatch=none",
        f"library={library.folder}",
    ):
        ours = judged("selfadapt", task_folder, model_args=arguments, batch_size=batch_size)
        assert ours["results"] == hf["results"]
        assert responses(ours) == responses(hf)
        assert ours["mixture"]["abstained"] == 1
    expert = judged("selfadapt", task_folder, model_args=f"library={library.folder},dispatch=a", batch_size=batch_size)
    assert all(responses(expert)[task] != of_hf for task, of_hf in responses(hf).items())


def value(answer: Any) -> Any:
    """The log-likelihood in an answer, or the text."""
    return answer[0] if isinstance(answer, tuple) else answer


@pytest.mark.parametrize(("batch_size", "exact"), [(4, True), (64, False), ("auto", False)])
@pytest.mark.long
def test_mixed_requests_are_answered_as_each_mixture_alone(
    adaptive: SelfAdaptiveModel, batch_size: int | str, exact: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    mixtures_at_a_time = set()

    def noting(model: Any, mixture: Mixture) -> Any:
        mixtures_at_a_time.add(len(set(mixture.groups())))
        return mixed(model, mixture)

    monkeypatch.setattr("selfadapt.harness.lm.mixed", noting)
    together = SelfAdaptiveLM(adaptive, batch_size=batch_size, max_batch_size=8, max_length=64)
    alone = SelfAdaptiveLM(adaptive, batch_size=4, max_length=64)
    for kind, continuations in {
        "generate_until": [{"until": ["\n"], "max_gen_toks": 6}],
        "loglikelihood": [" yes", " no", " n", " maybe so"],
        "loglikelihood_rolling": [None],
    }.items():
        everything = requests(kind, QUESTIONS, *continuations)
        mixtures_at_a_time.clear()
        answers = getattr(together, kind)(everything)
        if batch_size != "auto":
            assert (max(mixtures_at_a_time) > 1) == (batch_size == 64 and kind != "loglikelihood_rolling")
        for colour in ("red", "blue", "grey"):
            got = [a for a, request in zip(answers, everything, strict=True) if colour in request.args[0]]
            wanted = getattr(alone, kind)(requests(kind, [q for q in QUESTIONS if colour in q], *continuations))
            if exact or kind == "generate_until":
                assert got == wanted
            else:
                assert [value(a) for a in got] == pytest.approx([value(a) for a in wanted], abs=1e-3)


def test_each_context_is_dispatched_once_and_a_question_has_one_mixture(adaptive: SelfAdaptiveModel) -> None:
    lm = SelfAdaptiveLM(adaptive, batch_size=2)
    lm.loglikelihood(requests("loglikelihood", ["red 1", "blue 1", "red 1"], " yes", " no"))
    assert adaptive.dispatcher.seen == ["red 1", "blue 1"]  # type: ignore[attr-defined]
    # Choices with contexts of their own, and mutual information's empty one, go with the first of their question.
    question = [
        Instance("loglikelihood", {}, (c, " yes"), i, ("task", 0, 1)) for i, c in enumerate(["red", "blue", ""])
    ]
    another = Instance("loglikelihood", {}, ("blue", " yes"), 0, ("task", 1, 1))
    _, under_red, of_nothing, under_blue = map(value, lm.loglikelihood([*question, another]))

    def under_a(prompts: Sequence[str | Chat]) -> Mixture:
        return Mixture.of({"a": 1.0}, len(prompts))

    fixed = SelfAdaptiveLM(SelfAdaptiveModel(adaptive.model, adaptive.tokenizer, under_a))
    wanted = [value(answer) for answer in fixed.loglikelihood(question[1:])]
    assert [under_red, of_nothing] == pytest.approx(wanted, abs=1e-3)
    assert under_red != pytest.approx(under_blue, abs=1e-3)


def test_one_input_under_two_mixtures(adaptive: SelfAdaptiveModel) -> None:
    pairs = [("A red", "dish blue one"), ("A reddish blue", " one"), ("A", " reddish blue one")]

    class BySplit:
        def __call__(self, prompts: Sequence[str | Chat]) -> Mixture:
            weights = {"A red": [1.0, 0.0], "A reddish blue": [0.0, 1.0], "A": [0.0, 0.0]}
            return Mixture(("a", "b"), torch.tensor([weights[str(p)] for p in prompts]))

    model = SelfAdaptiveModel(adaptive.model, adaptive.tokenizer, BySplit())
    items = [Instance("loglikelihood", {}, pair, 0, ("task", doc, 1)) for doc, pair in enumerate(pairs)]
    together = SelfAdaptiveLM(model, batch_size=8).loglikelihood(items)
    for item, answer in zip(items, together, strict=True):
        assert value(answer) == pytest.approx(value(SelfAdaptiveLM(model).loglikelihood([item])[0]), abs=1e-3)


def test_the_dispatcher_sees_the_question(adaptive: SelfAdaptiveModel, task_folder: Path) -> None:
    dispatcher: Any = adaptive.dispatcher
    lm = SelfAdaptiveLM(adaptive)
    judged(lm, task_folder, ["choice"], num_fewshot=1, limit=2)
    assert all(prompt.count("Question:") == 2 for prompt in dispatcher.seen)  # lm-eval's context as it is
    dispatcher.seen.clear()
    judged(lm, task_folder, ["choice", "writing"], num_fewshot=1, limit=2, apply_chat_template=True)
    assert set(dispatcher.seen) == {f"Question: {q}\nAnswer:" for q in QUESTIONS[:2]}
    dispatcher.seen.clear()
    lm.loglikelihood_rolling(requests("loglikelihood_rolling", ["red " + "z" * 1000], None))
    assert dispatcher.seen == ["z" * lm.max_length]  # no more than the model could read


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (None, "no chat template"),
        (
            "{{ raise_exception('No questions, please') }}",
            "does not accept the chat of a question: No questions, please",
        ),
        ("{{ messages[0]['content'] + 3 }}", "TypeError: "),
        ("{{ messages", "TemplateSyntaxError: "),
    ],
)
def test_a_chat_template_that_fails_is_one_line(
    adaptive: SelfAdaptiveModel, task_folder: Path, template: str | None, said: str
) -> None:
    tokenizer: Any = copy(adaptive.tokenizer)
    adaptive.engine.tokenizer = tokenizer
    tokenizer.chat_template = template
    with pytest.raises(UserError, match=re.escape(said)) as caught:
        judged(SelfAdaptiveLM(adaptive), task_folder, ["choice"], limit=2, apply_chat_template=True)
    assert "\n" not in str(caught.value)


def test_samples_and_results_say_who_answered(adaptive: SelfAdaptiveModel, task_folder: Path) -> None:
    first = judged(SelfAdaptiveLM(adaptive), task_folder)
    for samples in first["samples"].values():
        wanted = [{"red": {"a": 1.0}, "blue": {"a": 0.5, "b": 1.0}}.get(q.split()[0], {}) for q in QUESTIONS]
        assert [sample["mixture"] for sample in samples] == wanted
    assert first["mixture"] == {"weights": pytest.approx({"a": 0.5, "b": 1 / 3}), "abstained": pytest.approx(1 / 3)}
    assert set(first["seconds"]) == {"dispatch", "answer"}
    assert min(first["seconds"].values()) > 0
    assert "samples" not in judged(SelfAdaptiveLM(adaptive), task_folder, limit=1, log_samples=False)


def test_a_cache_of_responses_answers_only_what_made_them(library: ExpertLibrary, tmp_path: Path) -> None:
    asked = requests("generate_until", QUESTIONS[:3], {"until": ["\n"], "max_gen_toks": 6})
    mix = tmp_path / "MIX.json"

    def ask(dispatch: Any = str(mix), **options: Any) -> tuple[list[str], int]:
        """The answers with a cache that all share, and how often the model was called for them."""
        lm = SelfAdaptiveLM(library=library.folder, dispatch=dispatch, batch_size=4, **options)
        calls: list[int] = []
        lm.model.get_input_embeddings().register_forward_pre_hook(lambda *_: calls.append(1))
        answers = CachingLM(lm, str(tmp_path / "responses.db")).generate_until(asked)
        made = len(calls)
        lm.set_cache_hook(CacheHook(None))
        assert answers == lm.generate_until(asked)  # what the cache says is what the model would
        return answers, made

    Mixture.of({"a": 0.5}).write(mix)
    first, calls = ask()
    assert calls > 0
    assert ask() == (first, 0)
    Mixture.of({"a": 1.2}).write(mix)
    second, calls = ask()
    assert calls > 0
    assert second != first
    Mixture.of({"a": 0.5}).write(mix)
    assert ask() == (first, 0)
    for options in ({"dtype": "bfloat16"}, {"max_length": 24}, {"dispatch": "none"}, {"dispatch": "b"}):
        assert ask(**options)[1] > 0

    library.expert("b").write(tmp_path / "trained")
    library.remove("a")
    library.add(tmp_path / "trained", "a")
    third, calls = ask()
    assert calls > 0
    assert third != first
    assert ask("a")[1] == 0  # it has become the same as b


@pytest.mark.long
def test_a_cache_knows_the_weights_of_the_base(library: ExpertLibrary, task_folder: Path, tmp_path: Path) -> None:
    cache = str(tmp_path / "responses")
    before = judged("selfadapt", task_folder, FEW[:1], model_args={"pretrained": library.base}, use_cache=cache)
    base = AutoModelForCausalLM.from_pretrained(library.base)
    with torch.no_grad():
        base.get_input_embeddings().weight.mul_(1.5)  # no part of the fingerprint
    base.save_pretrained(library.base)
    after = judged("selfadapt", task_folder, FEW[:1], model_args={"pretrained": library.base}, use_cache=cache)
    wanted = judged("selfadapt", task_folder, FEW[:1], model_args={"pretrained": library.base})
    assert responses(after) == responses(wanted) != responses(before)


def test_one_request_of_two_questions_is_kept_for_each(adaptive: SelfAdaptiveModel, tmp_path: Path) -> None:
    # Mutual information asks for a choice after nothing, under the mixture of its question.
    questions = [("red", 0), ("", 0), ("blue", 1), ("", 1)]
    items = [
        Instance("loglikelihood", {}, (c, " yes"), i % 2, ("task", doc, 1)) for i, (c, doc) in enumerate(questions)
    ]
    lm = SelfAdaptiveLM(adaptive, batch_size=4)
    wanted = lm.loglikelihood(items)
    assert value(wanted[1]) != pytest.approx(value(wanted[3]), abs=1e-3)
    cached = CachingLM(lm, str(tmp_path / "responses.db"))
    cached.loglikelihood([items[0], items[2]])
    for _ in range(2):  # the first of each question is there already, and still decides about the second
        got = cached.loglikelihood(items)
        assert [value(answer) for answer in got] == pytest.approx([value(answer) for answer in wanted], abs=1e-3)


def test_contexts_that_lm_eval_has_kept_are_dispatched_by_their_question(
    adaptive: SelfAdaptiveModel, task_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lm_eval.caching.cache.PATH", str(tmp_path / "requests"))
    dispatcher: Any = adaptive.dispatcher
    for _ in range(2):
        dispatcher.seen.clear()
        judged(
            SelfAdaptiveLM(adaptive), task_folder, ["writing"], limit=2, apply_chat_template=True, cache_requests=True
        )
        assert dispatcher.seen == [f"Question: {q}\nAnswer:" for q in QUESTIONS[:2]]


@pytest.mark.long
def test_rolling_loglikelihoods_do_not_depend_on_the_batch_size(
    adaptive: SelfAdaptiveModel, library: ExpertLibrary
) -> None:
    # Windows of a text that repeats itself are alike, but for where they begin.
    texts = [f"{kind} {piece * 20}" for kind in ("red", "blue", "grey") for piece in ("a", "ab", "xyz ", "a b c d e ")]
    asked = requests("loglikelihood_rolling", [*texts, "red", texts[0]], None)
    alone = [SelfAdaptiveLM(adaptive, max_length=16).loglikelihood_rolling([each])[0] for each in asked]
    for batch_size in (1, 2, 3, 7, 64, "auto"):
        lm = SelfAdaptiveLM(adaptive, max_length=16, batch_size=batch_size, max_batch_size=5)
        assert lm.loglikelihood_rolling(asked) == pytest.approx(alone, abs=1e-3)
    hf = HFLM(library.base, batch_size=1, max_length=16, device="cpu")
    base = SelfAdaptiveLM(library.base, batch_size=1, max_length=16)
    assert base.loglikelihood_rolling(asked) == hf.loglikelihood_rolling(asked)


@pytest.mark.parametrize("batch_size", [1, 7, "auto"])
@pytest.mark.long
def test_answers_do_not_depend_on_batches_or_order(adaptive: SelfAdaptiveModel, batch_size: int | str) -> None:
    questions = [*QUESTIONS, *QUESTIONS[:4], "red", "a" * 100]
    for kind, continuations in {
        "generate_until": [{"until": ["\n"], "max_gen_toks": 6}],
        "loglikelihood": [" yes", " no", " n", " yes", "x"],
    }.items():
        asked = requests(kind, questions, *continuations)
        wanted = [getattr(SelfAdaptiveLM(adaptive, max_length=64), kind)([each])[0] for each in asked]
        lm = SelfAdaptiveLM(adaptive, max_length=64, batch_size=batch_size, max_batch_size=5)
        order = torch.randperm(len(asked), generator=torch.Generator().manual_seed(0)).tolist()
        got = dict(zip(order, getattr(lm, kind)([asked[index] for index in order]), strict=True))
        if kind == "generate_until":
            assert [got[index] for index in range(len(asked))] == wanted
        else:
            values = [value(got[index]) for index in range(len(asked))]
            assert values == pytest.approx([value(answer) for answer in wanted], abs=1e-3)


def test_importing_selfadapt_announces_the_model_and_loads_little() -> None:
    script = (
        "import sys, selfadapt\n"
        "from lm_eval.api.registry import model_registry\n"
        "assert {'selfadapt', 'hf'} <= set(model_registry), list(model_registry)\n"
        "assert not {'torch', 'lm_eval.evaluator', 'selfadapt.harness'} & set(sys.modules)\n"
    )
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0


def test_arguments_that_would_be_ignored_are_refused(tiny_tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(UserError, match="did you mean 'library'"):
        SelfAdaptiveLM(libary="x")
    with pytest.raises(UserError, match="'revision'"):
        SelfAdaptiveLM(revision="x")
