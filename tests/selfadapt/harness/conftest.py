from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from peft import get_peft_model
from transformers import AutoModelForCausalLM

from experts import ExpertLibrary
from experts.svf import SVFConfig
from experts.svf.fingerprint import fingerprint

QUESTIONS = [f"{kind} {'x' * (n % 5)}{n}" for n in range(6) for kind in ("red", "blue", "grey")]


@pytest.fixture
def library(tiny_folder: Path, tmp_path: Path) -> ExpertLibrary:
    # What a checkpoint wants of decoding is part of lm-eval's numbers.
    settings = json.loads((tiny_folder / "generation_config.json").read_text())
    (tiny_folder / "generation_config.json").write_text(json.dumps({**settings, "repetition_penalty": 1.3}))
    base = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)
    library = ExpertLibrary.create(tmp_path / "library", str(tiny_folder), fingerprint(base))
    for seed, name in enumerate(("a", "b")):
        model = get_peft_model(base, SVFConfig(base_fingerprint=library.fingerprint))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.7 * torch.randn(parameter.shape, generator=generator))
        model.save_pretrained(str(tmp_path / name), save_embedding_layers=False)
        base = model.unload()
        library.add(tmp_path / name)
    return library


@pytest.fixture
def task_folder(tmp_path: Path) -> Path:
    """Three tasks on one local file: a multiple choice, a generation and a rolling log-likelihood."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    rows = [{"question": q, "choices": ["yes", "no", "maybe so"], "answer": n % 3} for n, q in enumerate(QUESTIONS)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "rows.jsonl")}},
        "test_split": "test",
        "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_target": "{{answer}}",
    }
    of_each = {
        "choice": {"output_type": "multiple_choice", "doc_to_choice": "choices", "metric_list": [{"metric": "acc"}]},
        "writing": {
            "output_type": "generate_until",
            "generation_kwargs": {"until": ["\n"], "max_gen_toks": 6},
            "metric_list": [{"metric": "exact_match"}],
        },
        "reading": {
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "",
            "doc_to_target": "{{question}} and so on",
            "metric_list": [{"metric": "byte_perplexity"}],
        },
    }
    for name, own in of_each.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({**common, **own, "task": name}))
    return folder
