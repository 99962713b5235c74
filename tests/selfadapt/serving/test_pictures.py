"""A base that sees looks at the pictures of a request, and at no others."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

from PIL import Image

from experts.engine import NativeEngine, Sampling
from experts.engine.continuous import ContinuousBatch
from experts.mixture import Mixture
from selfadapt.serving.served import Served
from tests.selfadapt.serving.conftest import running


def asked(url: str) -> list[dict[str, Any]]:
    return [
        {
            "role": "user",
            "content": [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What?"}],
        }
    ]


def in_the_request(colour: str) -> str:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def test_pictures(seeing: Any, tmp_path: Path) -> None:
    engine = NativeEngine(*seeing)
    batch = ContinuousBatch(engine)
    on_disk = tmp_path / "red.png"
    Image.new("RGB", (8, 8), "red").save(on_disk)
    said = set()
    with running(Served(engine, None, "none", "tiny", batch)) as server:
        for colour in ("red", "blue"):
            for sampling in ({"temperature": 0}, {"temperature": 1.0, "seed": 3}):
                chat: Any = asked(in_the_request(colour))
                answer = server.openai.chat.completions.create(model="tiny", messages=chat, max_tokens=8, **sampling)  # type: ignore[call-overload]
                (wanted,) = engine.generate(
                    [chat], max_new_tokens=8, mixture=Mixture.of({}), sampling=Sampling(**sampling)
                )
                assert answer.choices[0].message.content == wanted
                said.add(wanted)
        assert len(said) > 2
        for url in (
            str(on_disk),
            f"file://{on_disk}",
            "http://127.0.0.1/x.png",
            "data:text/plain,x",
            "data:image/png;base64,x",
        ):
            refused = server.http.post("/v1/chat/completions", json={"messages": asked(url)})
            assert refused.status_code == 400
            assert "picture" in refused.json()["error"]["message"]
        refused = server.http.post("/v1/completions", json={"prompt": "What?"})
        assert (refused.status_code, "answers only chats" in refused.text) == (400, True)
