from __future__ import annotations

import torch
from datasets import Dataset
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from experts.domains.jsonl import Jsonl
from experts.engine import NativeEngine
from experts.library import ExpertLibrary
from experts.mixture import Mixture
from experts.training.evaluation import Problems, held_out_scores


def test_each_row_is_answered_under_its_own_mixture(
    tiny_model: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerBase, library: ExpertLibrary
) -> None:
    model = library.load(tiny_model)
    prompts = ["Who?", "What is it?", "Why?"]
    mixture = Mixture(("a", "b"), torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]]))
    answers = NativeEngine(model, tiny_tokenizer).generate(prompts, max_new_tokens=6, mixture=mixture)
    assert answers != NativeEngine(model, tiny_tokenizer).generate(prompts, max_new_tokens=6, mixture=Mixture.of({}, 3))
    rows = Dataset.from_dict(
        {
            "prompt": [[{"role": "user", "content": prompt}] for prompt in prompts],
            "answer": answers,
            "choices": [None] * 3,
        }
    )
    domain = Jsonl(name="own", description="", path="", judged_by="exact")

    def scores(mixture: Mixture) -> list[float]:
        return held_out_scores(model, tiny_tokenizer, Problems(domain, rows, 6), batch_size=2, mixture=mixture)

    assert scores(mixture) == [1.0] * 3
    assert scores(Mixture.of({}, 3)) != [1.0] * 3
