"""What a program may not do, each way of shutting it in that works on this machine; as root, or as an ordinary user."""

from __future__ import annotations

import os
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import get_args

import pytest

from experts.domains import sandbox
from experts.domains.sandbox import OUTPUT, PROCESSES, Run, Way, run_python
from experts.outside.errors import UserError

ROOT = os.getuid() == 0


@pytest.fixture(params=get_args(Way))
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Way:
    """Programs are allowed, and run this way."""
    probe = sandbox._run(sandbox.PROBE, request.param, 5)
    if probe.output != "ready\n":
        pytest.skip(f"{request.param} does not work here: {' '.join(probe.output.split()[-10:])}")
    monkeypatch.setattr(sandbox, "way", lambda: request.param)
    monkeypatch.setenv("SELFADAPT_RUN_CODE", "1")
    return request.param


def survivors(mark: float) -> list[str]:
    """The processes of a run with this time limit, which is on their command lines.

    A namespace goes down with its first process, but bubblewrap does not wait for it.
    """
    for _ in range(100):
        if not (found := processes(mark)):
            break
        time.sleep(0.05)
    return found


def processes(mark: float) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_text()
        except OSError:
            continue
        if f'"seconds": {mark},' in command:
            found.append(command)
    return found


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        ("print('hello')", Run("hello\n", 0)),
        ("import sys; print('oh', file=sys.stderr); sys.exit(3)", Run("oh\n", 3)),
        ("import sys; sys.exit()", Run("", 0)),
        ("import sys; sys.exit('no')", Run("no\n", 1)),
        ("print(__name__, input())", None),
        ("def (", None),
        ("import os; os.kill(os.getpid(), 9)", Run("", 137)),
        ("from dataclasses import dataclass\n@dataclass\nclass A:\n x: int\nprint(A(1))", Run("A(x=1)\n", 0)),
        ("print('\udcff')", None),
    ],
)
def test_what_a_program_prints_and_how_it_ends(way: Way, program: str, expected: Run | None) -> None:
    run = run_python(program)
    if expected is None:
        assert run.exit_code == 1 or "?" in run.output
        assert "Error" in run.output or "?" in run.output
    else:
        assert run == expected


def test_it_is_off_unless_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("", "0", "true"):
        monkeypatch.setenv("SELFADAPT_RUN_CODE", value)
        with pytest.raises(UserError, match="SELFADAPT_RUN_CODE=1"):
            run_python("print(1)")


def test_a_way_is_found_and_logged_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("SELFADAPT_RUN_CODE", "1")
    sandbox.way.cache_clear()
    with caplog.at_level("INFO", "experts.domains.sandbox"), ThreadPoolExecutor(4) as pool:
        runs = pool.map(run_python, [f"print({number})" for number in range(8)])
        assert [run.output for run in runs] == [f"{number}\n" for number in range(8)]
    assert len([record for record in caplog.records if record.name == "experts.domains.sandbox"]) == 1


def test_no_way_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SELFADAPT_RUN_CODE", "1")
    monkeypatch.setattr(sandbox, "_run", lambda *_: Run("it said no", 1))
    sandbox.way.cache_clear()
    with pytest.raises(UserError, match=r"no sandbox works here \(bubblewrap: it said no; namespaces: it said no"):
        run_python("print(1)")


def test_the_limits_way_says_what_it_leaves_open(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sandbox, "_run", lambda program, way, seconds: Run("ready\n" * (way == "limits"), 0))
    sandbox.way.cache_clear()
    assert sandbox.way() == "limits"
    sandbox.way.cache_clear()
    assert "files and the network are not isolated" in caplog.text


def test_a_fork_bomb_is_small_and_leaves_nobody_behind(way: Way) -> None:
    bomb = """
import os, time
started = 0
for _ in range(300):
    try:
        if os.fork() == 0:
            os.setsid()
            time.sleep(30)
            os._exit(0)
        started += 1
    except OSError:
        break
print(started)
"""
    run = run_python(bomb, seconds=6.03125)
    assert 0 < int(run.output) <= PROCESSES
    assert survivors(6.03125) == []


def test_a_fork_bomb_takes_no_processes_from_its_neighbours(way: Way) -> None:
    if way == "limits" and not ROOT:
        pytest.skip("without rights, resource limits alone leave programs with one user, and its processes")
    bomb = """
import os, time
while True:
    try:
        if os.fork() == 0:
            time.sleep(30)
    except OSError:
        print("full", flush=True)
        time.sleep(30)
"""
    neighbour = """
import os, time
for _ in range(20):
    time.sleep(0.1)
    if os.fork() == 0:
        os._exit(0)
    os.wait()
print("done")
"""
    with ThreadPoolExecutor() as pool:
        first = pool.submit(run_python, neighbour)
        time.sleep(0.3)  # it has its limit before the bomb goes off
        second = pool.submit(run_python, bomb, seconds=2.53125)
        assert first.result() == Run("done\n", 0)
        assert "full" in second.result().output
    assert survivors(2.53125) == []


def test_programs_at_once_have_users_of_their_own(way: Way) -> None:
    program = "import os, time; time.sleep(0.5); print(os.getuid(), os.getgid())"
    with ThreadPoolExecutor(3) as pool:
        users = [run.output for run in pool.map(run_python, [program] * 3)]
    assert len(set(users)) == (3 if ROOT else 1)


def test_installed_packages_are_there_to_read(way: Way) -> None:
    program = """
import numpy
print(numpy.linalg.inv(numpy.eye(300) * 2).trace())
try:
    open(numpy.__file__, "a")
    print("writable")
except OSError:
    pass
"""
    found, *writable = run_python(program).output.split()
    assert found == "150.0"
    assert not writable or (way == "limits" and not ROOT)


def test_a_daemon_does_not_outlive_its_program(way: Way) -> None:
    daemon = """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        for fd in range(3):
            os.close(fd)
        time.sleep(30)
    os._exit(0)
"""
    assert run_python(daemon, seconds=5.03125).exit_code == 0
    assert survivors(5.03125) == []


def test_killing_the_supervisor_ends_the_program(way: Way) -> None:
    run_python("import os, time; os.kill(os.getppid(), 9); time.sleep(30)", seconds=1.03125)
    assert survivors(1.03125) == []


def test_a_memory_bomb(way: Way) -> None:
    run = run_python("print('begun', flush=True); b = bytearray(2**32); print(len(b))")
    assert "begun" in run.output
    assert "MemoryError" in run.output
    assert run.exit_code == 1


@pytest.mark.parametrize(
    "loop", ["while True: pass", "import time; time.sleep(60)", "import os; os.close(1); os.close(2)\nwhile True: pass"]
)
def test_an_infinite_loop(way: Way, loop: str) -> None:
    assert run_python(loop, seconds=0.78125).exit_code == 124
    assert survivors(0.78125) == []


def test_cpu_time_is_limited_apart_from_the_clock(way: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "CPU_SECONDS", 1)
    assert run_python("while True: pass", seconds=30).exit_code in (128 + 9, 128 + 24)


def test_printing_gigabytes(way: Way) -> None:
    run = run_python("for _ in range(10**6): print('x' * 10**6)", seconds=5)
    assert run.output == "x" * OUTPUT
    assert run.exit_code != 0


def test_a_huge_file(way: Way) -> None:
    run = run_python("with open('f', 'wb') as f:\n for _ in range(1000): f.write(bytes(10**6))\nprint('written')")
    assert "written" not in run.output


def test_files_outside_stay_as_they_are(way: Way, tmp_path: Path) -> None:
    if way == "limits" and not ROOT:
        pytest.skip("resource limits alone leave a user's files open to the user's programs")
    mine = tmp_path / "mine.txt"
    mine.write_text("precious")
    vandal = f"""
import os, shutil
for attempt in (
    lambda: os.remove({str(mine)!r}),
    lambda: open({str(mine)!r}, "w").write("spoilt"),
    lambda: shutil.rmtree({str(tmp_path)!r}),
    lambda: open({sandbox.__file__!r}, "a"),
    lambda: open("/usr/vandal", "w"),
    lambda: open("/vandal", "w"),
    lambda: os.chmod({str(tmp_path)!r}, 0),
):
    try:
        attempt()
        print("done")
    except OSError:
        pass
print("end")
"""
    assert run_python(vandal).output == "end\n"
    assert mine.read_text() == "precious"


def test_its_home_is_empty_writable_and_gone_afterwards(
    way: Way, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = (
        "import os; print(os.listdir('.'), os.path.samefile('.', os.path.expanduser('~')))\nopen('f', 'w').write('x')"
    )
    for _ in range(2):
        assert run_python(program) == Run("[] True\n", 0)


def test_the_environment_is_not_for_reading(way: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_SECRET", "hush")
    reader = """
import glob, os
print(sorted(os.environ))
for path in ("/proc/self/environ", "/proc/1/environ", f"/proc/{os.getppid()}/environ"):
    try:
        print(open(path).read())
    except OSError:
        pass
"""
    output = run_python(reader).output
    assert "PATH" in output
    assert "hush" not in output
    assert "SELFADAPT" not in output


def test_there_is_no_network(way: Way) -> None:
    if way == "limits":
        pytest.skip("resource limits alone leave the network open")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        caller = f"""
import socket
import time
try:
    socket.create_connection(("127.0.0.1", {port}), timeout=1)
    print("connected")
except OSError as error:
    print("no")
"""
        assert run_python(caller).output == "no\n"


def test_it_has_no_rights(way: Way) -> None:
    program = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
print(os.getuid(), os.getgroups(), libc.mount(None, b"/", None, 32 | 4096, None), libc.chroot(b"."))
try:
    os.setuid(0)
    print("root")
except OSError:
    pass
"""
    words = run_python(program).output.split()
    assert int(words[0]) in (sandbox.USERS if ROOT else [os.getuid()])
    assert words[-2:] == ["-1", "-1"]
    if ROOT:
        assert words[1] == "[]"
