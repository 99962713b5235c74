"""lm-eval judges the server to the figures that it has of the library itself."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import Any

import lm_eval
import pytest
import yaml
from lm_eval.tasks import TaskManager

from experts import ExpertLibrary
from tests.selfadapt.serving.conftest import Running

pytest.importorskip("tenacity")

COMMON = {
    "dataset_path": "json",
    "test_split": "test",
    "doc_to_text": "Question: {{question}}\nAnswer:",
    "doc_to_target": "{{answer}}",
}
TASKS: dict[str, dict[str, Any]] = {
    "choice": {"output_type": "multiple_choice", "doc_to_choice": "choices", "metric_list": [{"metric": "acc"}]},
    "writing": {
        "output_type": "generate_until",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 6},
        "metric_list": [{"metric": "exact_match"}],
    },
}


@pytest.fixture
def tasks(tmp_path: Path) -> TaskManager:
    rows = [
        {"question": f"{'x' * (n % 5)}{n}", "choices": ["yes", "no", "maybe so"], "answer": n % 3} for n in range(12)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = {"dataset_kwargs": {"data_files": {"test": str(tmp_path / "rows.jsonl")}}}
    (tmp_path / "tasks").mkdir()
    for name, own in TASKS.items():
        (tmp_path / "tasks" / f"{name}.yaml").write_text(yaml.safe_dump({**COMMON, **files, **own, "task": name}))
    return TaskManager(include_path=str(tmp_path / "tasks"), include_defaults=False)


def judged(judge: str, tasks: TaskManager, names: list[str], chat: bool, **arguments: Any) -> dict[str, list[Any]]:
    """What each sample was answered with: likelihoods, or text."""
    found = lm_eval.simple_evaluate(
        model=judge,
        model_args=arguments,
        tasks=names,
        task_manager=tasks,
        apply_chat_template=chat,
        bootstrap_iters=0,
        log_samples=True,
    )
    assert found is not None
    return {name: [sample["filtered_resps"] for sample in own] for name, own in found["samples"].items()}


@pytest.mark.long
def test_likelihoods_and_answers(
    start: Callable[..., Running], library: ExpertLibrary, tasks: TaskManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    server = start(ends=[2])
    ours = {"library": str(library.folder), "dispatch": "b"}
    theirs: dict[str, Any] = {"model": "b", "tokenizer": library.base, "num_concurrent": 4, "max_retries": 1}
    theirs["tokenizer_backend"] = "huggingface"
    wanted = judged("selfadapt", tasks, ["choice", "writing"], False, **ours)
    found = judged(
        "local-completions", tasks, ["choice", "writing"], False, base_url=f"{server.url}/v1/completions", **theirs
    )
    assert found["writing"] == wanted["writing"]
    for own, other in zip(found["choice"], wanted["choice"], strict=True):
        assert [greedy for _, greedy in own] == [greedy for _, greedy in other]
        assert [logp for logp, _ in own] == pytest.approx([logp for logp, _ in other], abs=1e-3)
    wanted = judged("selfadapt", tasks, ["writing"], True, **ours)
    found = judged(
        "local-chat-completions", tasks, ["writing"], True, base_url=f"{server.url}/v1/chat/completions", **theirs
    )
    assert found == wanted


DATA = Path(os.environ.get("SELFADAPT_DATA", ""))
REAL: dict[str, dict[str, Any]] = {
    "arc": {
        "output_type": "multiple_choice",
        "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_choice": "{{choices.text}}",
        "doc_to_target": "{{choices.label.index(answerKey)}}",
        "metric_list": [{"metric": "acc"}],
    },
    "gsm8k": {
        "output_type": "generate_until",
        "doc_to_text": "{{question}}\nAnswer with a number only.",
        "doc_to_target": "{{answer.split('#### ')[1]}}",
        "generation_kwargs": {"until": ["\n\n"], "max_gen_toks": 32},
        "metric_list": [{"metric": "exact_match"}],
    },
}


@pytest.mark.slow
@pytest.mark.skipif(not (DATA / "gsm8k").is_dir(), reason="SELFADAPT_DATA names no folder with ARC-Easy and GSM8K")
def test_real_questions(smollm2_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ARC-Easy by likelihood and GSM8K as chats, 60 and 24 questions, under an expert of the built-in base."""
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    with gzip.open(DATA / "gsm8k" / "train.jsonl.gz", "rt") as file:
        texts = {"gsm8k": [next(file) for _ in range(24)]}
    with (DATA / "arc_easy" / "validation.jsonl").open() as file:
        texts["arc"] = [next(file) for _ in range(60)]
    (tmp_path / "tasks").mkdir()
    for name, own in REAL.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(texts[name]))
        task = {"task": name, "dataset_path": "json", "test_split": "test", **own}
        task["dataset_kwargs"] = {"data_files": {"test": str(tmp_path / f"{name}.jsonl")}}
        (tmp_path / "tasks" / f"{name}.yaml").write_text(yaml.safe_dump(task))
    tasks = TaskManager(include_path=str(tmp_path / "tasks"), include_defaults=False)
    wanted_arc = judged("selfadapt", tasks, ["arc"], False, dispatch="sums", batch_size=8)["arc"]
    wanted_gsm8k = judged("selfadapt", tasks, ["gsm8k"], True, dispatch="sums", batch_size=8)["gsm8k"]
    command = [sys.executable, "-m", "selfadapt", "serve", "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr is not None
            url = next(line.split(" at ")[1].strip() for line in server.stderr if line.startswith("serving "))
            Thread(target=server.stderr.read, daemon=True).start()
            ours: dict[str, Any] = {"model": "sums", "tokenizer": str(smollm2_folder), "num_concurrent": 8}
            ours["tokenizer_backend"] = "huggingface"
            arc = judged("local-completions", tasks, ["arc"], False, base_url=f"{url}/completions", **ours)["arc"]
            gsm8k = judged(
                "local-chat-completions", tasks, ["gsm8k"], True, base_url=f"{url}/chat/completions", **ours
            )["gsm8k"]
        finally:
            server.terminate()
    for own, other in zip(arc, wanted_arc, strict=True):
        assert [logp for logp, _ in own] == pytest.approx([logp for logp, _ in other], abs=1e-2)
    assert sum(own == other for own, other in zip(gsm8k, wanted_gsm8k, strict=True)) >= 23  # rounding breaks ties
