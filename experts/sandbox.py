"""Running programs that a model wrote, where they can do little harm.

A program is Python. It runs in a process of its own with limits on CPU time, memory, file size, open files and
processes, with an empty environment, an empty home that is also its working folder, nothing on standard input, a
wall clock, and a bound on its output. When it ends, or its time does, everything it started is killed. How far it is
shut in beyond that depends on the machine; the first of these that works is taken, and logged once:

bubblewrap
    `bwrap`: of the machine's files it sees only system libraries, Python and its installed packages, read-only; no
    network; no other process.
namespaces
    The same by namespaces of our own, where the kernel lets this user have them.
limits
    None of that. As root, what everybody may read, write or reach on the network is open to them. As an ordinary user
    they can do what that user can: read and delete the user's files, open connections, signal the user's processes, and
    outlive us if they kill their supervisor.

As root, each running program has in all three a user of its own, who owns nothing else. Nothing here protects against
holes in the kernel, nor against a program that uses up its share of CPU and memory: 32 processes of 512 MB each are
allowed. It is off unless the environment says `SELFADAPT_RUN_CODE=1`.
"""

from __future__ import annotations

import json
import logging
import os
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Literal

from experts.errors import UserError

logger = logging.getLogger(__name__)

Way = Literal["bubblewrap", "namespaces", "limits"]
CHILD = Path(__file__).with_name("sandbox_child.py")
# Nobody's: systemd's table of user ids leaves these free, and a container that maps 16 bits of them has them, too.
USERS = range(60600, 61100)
# What Python needs to run: its own folder is added to these.
SYSTEM = ("/usr", "/bin", "/lib", "/lib32", "/lib64")

CPU_SECONDS = 5
WALL_SECONDS = 8.0
MEMORY = 512 * 2**20  # address space of one process, in bytes
FILE_SIZE = 16 * 2**20
DISK = 64 * 2**20
PROCESSES = 32
OUTPUT = 2**16

# Libraries that start a thread for each core would break the limit on processes.
ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}

PROBE = "import heapq, math\nprint('ready')"


@dataclass(frozen=True)
class Run:
    """What a program printed (the first 64 KiB, standard error included), and how it ended."""

    output: str
    exit_code: int
    """As a shell has it: 128 + n after signal n, and 124 when its time was up."""


def run_python(program: str, *, seconds: float = WALL_SECONDS) -> Run:
    """Runs a program as a module that is not `__main__`, for at most `seconds`.

    Raises:
        UserError: if running programs is not allowed, or not possible; never for what the program does.
    """
    if os.environ.get("SELFADAPT_RUN_CODE") != "1":
        raise UserError(
            "this runs programs that a model wrote, in a sandbox; allow it with the environment variable "
            "SELFADAPT_RUN_CODE=1 (what the sandbox covers: docs/domains.md)"
        )
    with _finding:
        found = way()
    return _run(program, found, seconds)


_finding = Lock()  # the first programs come from several threads at once


@cache
def way() -> Way:
    """The first way of shutting programs in that works here; logged when it is found.

    Raises:
        UserError: if there is none.
    """
    ways: tuple[Way, ...] = ("bubblewrap", "namespaces", "limits")
    failures = []
    for each in ways:
        run = _run(PROBE, each, WALL_SECONDS)
        if run.output == "ready\n":
            if each == "limits":
                logger.warning(
                    "model-written programs run with resource limits only: files and network are not shut off here; "
                    "install bubblewrap, or allow user namespaces"
                )
            else:
                logger.info("model-written programs run shut in by %s", each)
            return each
        failures.append(f"{each}: {' '.join(run.output.split()[-12:]) or f'exit code {run.exit_code}'}")
    reachable = f"; every user must be able to read {sys.base_prefix}" if os.getuid() == 0 else ""
    raise UserError(f"no sandbox works here ({'; '.join(failures)}){reachable}")


def _run(program: str, way: Way, seconds: float) -> Run:
    with _user() as user, tempfile.TemporaryDirectory(prefix="selfadapt-", ignore_cleanup_errors=True) as home:
        if user != os.getuid():
            os.chown(home, user, user)
        command = _command(way, home, seconds, user)
        if not (executable := shutil.which(command[0])):
            return Run(f"there is no {command[0]}", 127)
        process = subprocess.Popen(
            command,
            executable=executable,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**ENVIRONMENT, "HOME": home if way == "limits" else "/tmp"},
            cwd=home,
            start_new_session=True,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        # The supervisor inside keeps the time; this is for the case that it does not start, or is killed.
        deadline = time.monotonic() + seconds + 2
        try:
            try:
                process.stdin.write(program.encode(errors="replace"))
                process.stdin.close()
            except BrokenPipeError:
                pass
            output = _read(process.stdout.fileno(), deadline)
            process.stdout.close()  # a program that goes on printing gets an error
            code = process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            code = 124
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        return Run(output.decode(errors="replace"), code if code >= 0 else 128 - code)


@contextmanager
def _user() -> Iterator[int]:
    """Who a program runs as: ourselves, or as root a user whom no other program has, of whatever process of ours.

    The limit on processes counts those of a user, so that programs of one user would take them from each other.
    """
    if os.getuid() != 0:
        yield os.getuid()
        return
    for user in USERS:
        with socket.socket(socket.AF_UNIX) as taken:
            try:
                taken.bind(f"\0selfadapt-sandbox-{user}")  # a name without a file, free again when it is closed
            except OSError:
                continue
            yield user
            return
    raise UserError(f"more than {len(USERS)} programs at once")


def _read(pipe: int, deadline: float) -> bytes:
    """What comes through the pipe until it ends, the bound is reached, or the time is up."""
    output = b""
    with selectors.DefaultSelector() as selector:
        selector.register(pipe, selectors.EVENT_READ)
        while len(output) < OUTPUT and selector.select(max(0.0, deadline - time.monotonic())):
            chunk = os.read(pipe, OUTPUT - len(output))
            if not chunk:
                break
            output += chunk
    return output


def _command(way: Way, home: str, seconds: float, user: int) -> list[str]:
    root = os.getuid() == 0
    # In a user namespace of its own a process counts from nought; otherwise all of the user's count.
    others = 0 if way != "limits" and not root else _threads_of(user)
    settings = {
        "way": way,
        "seconds": seconds,
        "home": home,
        "disk": DISK,
        "readable": _readable(),
        "packages": _packages(),
        "user": user,
        "limits": {
            "RLIMIT_CPU": CPU_SECONDS,
            "RLIMIT_AS": MEMORY,
            "RLIMIT_FSIZE": FILE_SIZE,
            "RLIMIT_NPROC": PROCESSES + others,
            "RLIMIT_NOFILE": 64,
            "RLIMIT_CORE": 0,
        },
    }
    child = ["-I", "-S", "-X", "utf8", "/child.py" if way == "bubblewrap" else str(CHILD), json.dumps(settings)]
    python = os.path.realpath(sys.executable)
    return [*_bubblewrap(root), python, *child] if way == "bubblewrap" else [python, *child]


def _bubblewrap(root: bool) -> list[str]:
    command = ["bwrap", "--die-with-parent", "--new-session", "--unshare-pid", "--unshare-net", "--unshare-ipc"]
    command += ["--unshare-uts", "--dev", "/dev"]
    # As root, to become the user: a namespace's own would still be root to the limit on processes.
    command += ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"] if root else ["--unshare-user"]
    for path in _readable():
        for folder in reversed(Path(path).parents[:-1]):
            command += ["--perms", "0755", "--dir", str(folder)]  # readable for that user, too
        link = os.path.islink(path)
        command += ["--symlink", os.readlink(path), path] if link else ["--ro-bind", path, path]
    command += ["--ro-bind", str(CHILD), "/child.py", "--perms", "1777", "--size", str(DISK), "--tmpfs", "/tmp"]
    # The rest of what bubblewrap makes is without a bound on its size.
    return [*command, "--remount-ro", "/dev", "--remount-ro", "/", "--chdir", "/tmp"]


def _readable() -> list[str]:
    paths = [path for path in SYSTEM if os.path.exists(path)]
    for path in (os.path.realpath(sys.base_prefix), *_packages()):
        if not any(Path(path).is_relative_to(above) for above in paths):
            paths.append(path)
    return paths


def _packages() -> list[str]:
    """The folders of installed packages, numpy's for one; a checkout that is on the path is none of the program's."""
    return [path for path in map(os.path.realpath, sys.path) if Path(path).name in ("site-packages", "dist-packages")]


def _threads_of(user: int) -> int:
    """How many threads the user has now, which is what a limit on processes counts."""
    threads = 0
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            fields = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
        except OSError:  # it has ended
            continue
        if int(fields["Uid"].split()[0]) == user:
            threads += int(fields["Threads"])
    return threads
