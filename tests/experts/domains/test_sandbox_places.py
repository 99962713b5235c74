"""Programs run wherever Python, its packages and the checkout lie: here in copies of their own, at unusual places."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

from experts.domains import sandbox
from experts.domains.sandbox import Way

UNNEEDED = ("site-packages", "dist-packages", "test", "idlelib", "lib2to3", "pydoc_data", "tkinter", "config-*")
# What a program sees of a package, of a module that Python loads late, of its home, and of the checkout.
PROGRAM = """
import os, statistics, tempfile, thing
"x".encode("mac-roman")
print(thing.VALUE, os.listdir("."), os.path.samefile(".", os.path.expanduser("~")))
with tempfile.TemporaryFile("w") as one, open("two", "w") as two:
    print("written", file=one)
    print("written", file=two)
try:
    open(thing.__file__, "a")
    print("may write")
except OSError:
    pass
print(os.path.exists({secret!r}))
"""
ASK = """
import json, sys
from experts.domains import sandbox
print(json.dumps(vars(sandbox._run(sys.argv[1], sys.argv[2], 8))))
"""


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A folder of this user's alone below /tmp, with a Python, an environment, a link to it, and a checkout."""
    with tempfile.TemporaryDirectory(prefix="ein Klön ", dir="/tmp") as name:
        place = Path(name)
        _copy_python(place / "home")
        python = place / "home" / "bin" / "python3"
        subprocess.run([python, "-m", "venv", "--without-pip", place / "home" / "ümwelt"], check=True)
        (place / "link").symlink_to("home/ümwelt")
        for packages in (place / "home" / "ümwelt" / "lib").glob("python3.*/site-packages"):
            (packages / "thing.py").write_text("VALUE = 7\n")
        experts, checkout = Path(sandbox.__file__).parents[1], place / "home" / "check out" / "experts"
        for file in ("domains/sandbox.py", "domains/sandbox_child.py", "outside/errors.py"):
            copy = checkout / file
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(experts / file, copy)
        (place / "home" / "secret").write_text("hush")
        yield place


def _copy_python(prefix: Path) -> None:
    real = Path(os.path.realpath(sys.base_prefix))
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    (prefix / "bin").mkdir(parents=True)
    shutil.copy(os.path.realpath(sys._base_executable), prefix / "bin" / "python3")  # type: ignore[attr-defined]
    shutil.copytree(
        real / "lib" / version, prefix / "lib" / version, symlinks=True, ignore=shutil.ignore_patterns(*UNNEEDED)
    )
    for library in (real / "lib").glob("libpython3*"):
        shutil.copy(library, prefix / "lib", follow_symlinks=False)


def run(place: Path, way: Way, program: str, **environment: str) -> tuple[str, int]:
    checkout = place / "home" / "check out"
    result = subprocess.run(
        [place / "link" / "bin" / "python", "-c", ASK, program, way],
        env={
            "PATH": os.environ["PATH"],
            "LD_LIBRARY_PATH": str(place / "home" / "lib"),
            "PYTHONPATH": str(checkout),
            **environment,
        },
        cwd=checkout,
        capture_output=True,
        text=True,
        check=True,
    )
    run = json.loads(result.stdout)
    return run["output"], run["exit_code"]


@pytest.fixture(params=get_args(Way))
def way(request: pytest.FixtureRequest) -> Way:
    if (probe := sandbox._run(sandbox.PROBE, request.param, 8)).output != "ready\n":
        pytest.skip(f"{request.param} does not work here: {' '.join(probe.output.split()[-10:])}")
    return request.param


@pytest.mark.parametrize("case", ["", "umask 077", "temporary folder inside", "locale C", "a link to /tmp"])
def test_programs_run_and_see_their_packages(place: Path, way: Way, case: str, tmp_path: Path) -> None:
    environment = {}
    if case == "temporary folder inside":
        environment["TMPDIR"] = str(place / "home" / "lib")
    elif case == "locale C":
        environment["LC_ALL"] = "C"
    elif case == "a link to /tmp":
        (tmp_path / "link").symlink_to("/tmp")
        environment["TMPDIR"] = str(tmp_path / "link")
    program = PROGRAM.format(secret=str(place / "home" / "secret"))
    umask = os.umask(0o077 if case == "umask 077" else 0o022)
    try:
        output, exit_code = run(place, way, program, **environment)
    finally:
        os.umask(umask)
    seen, *rest = output.splitlines()
    assert (seen, exit_code) == ("7 [] True", 0), output
    mine = way == "limits" and os.getuid() != 0  # then a program may do what its user may
    assert rest == (["may write", "True"] if mine else ["False"])


@pytest.mark.skipif(os.getuid() != 0, reason="an ordinary user's programs may read what the user may")
@pytest.mark.parametrize("name", ["site-packages/private", "site-packages"])
def test_packages_that_root_alone_may_read_are_no_way_to_run_programs(place: Path, way: Way, name: str) -> None:
    (packages,) = (place / "home" / "ümwelt" / "lib").glob("python3.*/site-packages")
    closed = packages.parent / name
    closed.mkdir(exist_ok=True)
    closed.chmod(0o700)
    try:
        output, exit_code = run(place, way, sandbox.PROBE)
    finally:
        closed.chmod(0o755)
    assert exit_code == 1
    assert "not every user can read the installed private" in output or "Permission denied" in output
