"""Chats with pictures: what is text in them, and pictures that do not load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from experts.outside.chats import tokenize
from experts.outside.errors import UserError
from experts.outside.pictures import load_pictures, words


def chat(*parts: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"role": "system", "content": "Look."}, {"role": "user", "content": list(parts)}]


def test_words_are_the_parts_of_text() -> None:
    assert words("One.") == "One."
    assert words(None) == words([{"type": "image", "image": "1.png"}]) == ""
    assert (
        words([{"type": "text", "text": "One."}, {"type": "image"}, {"type": "text", "text": "Two."}]) == "One.\nTwo."
    )


def test_a_picture_may_be_a_file(tmp_path: Path) -> None:
    picture = Image.new("RGB", (4, 4), "red")
    picture.save(tmp_path / "1.png")
    text = {"type": "text", "text": "What is it?"}
    asked = chat({"type": "image", "image": str(tmp_path / "1.png")}, text)
    system, user = load_pictures(asked)
    assert system["content"] == "Look."
    assert user["content"][0]["image"].tobytes() == picture.tobytes()
    assert user["content"][1] == text
    assert isinstance(asked[1]["content"][0]["image"], str)  # what the user holds stays as it was


@pytest.mark.parametrize("picture", ["nowhere.png", "broken.png", None, 5])
def test_a_picture_that_does_not_load_is_one_line(
    seeing: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, picture: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("broken.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=f"a picture cannot be loaded: {picture!r}") as refusal:
        tokenize(seeing[1], [chat({"type": "image", "image": picture})])
    assert "\n" not in str(refusal.value)


def test_a_base_that_reads_text_alone_refuses_pictures(tiny_tokenizer: Any) -> None:
    with pytest.raises(UserError, match="reads only text"):
        tokenize(tiny_tokenizer, [chat({"type": "image", "image": Image.new("RGB", (4, 4))})])
