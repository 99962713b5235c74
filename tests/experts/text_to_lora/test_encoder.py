from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model

from experts.outside.errors import UserError
from experts.svf import SVFConfig
from experts.text_to_lora.encoder import LastTokenEncoder, SentenceEncoder, tidy


def test_the_built_in_encoder_brings_like_descriptions_together() -> None:
    encode = SentenceEncoder()
    vectors = encode(["Add two numbers", "Compute the sum of two integers.", "Write a poem about the sea."])
    assert vectors.shape == (3, encode.size)
    assert vectors.dtype == torch.float32
    torch.testing.assert_close(vectors.norm(dim=1), torch.full((3,), encode.size**0.5))
    near, far = vectors[0] @ vectors[1], vectors[0] @ vectors[2]
    assert near > far + 0.2 * encode.size
    torch.testing.assert_close(encode(["Add two numbers."])[0], vectors[0])  # the full stop is put there


def test_the_last_token_of_the_base(tiny_model: Any, tiny_tokenizer: Any) -> None:
    encode = LastTokenEncoder(tiny_model, tiny_tokenizer)
    texts = ["Add.", "Translate into French."]
    vectors = encode(texts)
    assert vectors.shape == (2, 32)
    torch.testing.assert_close(vectors.norm(dim=1), torch.full((2,), 32**0.5))
    for row, text in enumerate(texts):  # whatever the padding
        torch.testing.assert_close(encode([text])[0], vectors[row], atol=1e-4, rtol=1e-4)
    model = get_peft_model(tiny_model, SVFConfig())
    for name, z in model.named_parameters():
        if "svf_z" in name:
            z.data.fill_(2.0)
    torch.testing.assert_close(LastTokenEncoder(model, tiny_tokenizer)(texts), vectors)  # without the experts


def test_descriptions_are_tidied() -> None:
    assert tidy([" Add two numbers \n", "Why?"]) == ["Add two numbers.", "Why?"]
    with pytest.raises(UserError, match="a description holds half a character"):
        tidy(["Add \ud83d"])


def test_an_unknown_encoder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown text encoder 'all-minilm-l6'; did you mean 'all-MiniLM-L6-v2'"):
        SentenceEncoder("all-minilm-l6")
    with pytest.raises(UserError, match="no text encoder"):
        SentenceEncoder(str(tmp_path))  # an empty folder
