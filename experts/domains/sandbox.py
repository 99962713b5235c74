"""Runs programs that a model wrote, where they can do little harm.

Programs are Python. A program runs in a process of its own with limits on CPU time, memory, file size, open files and
processes, an empty environment, an empty home that is also its working folder, nothing on standard input, a time limit
and a bound on its output. When it ends or its time is up, everything it started is killed. How far it is shut in beyond
that depends on the machine; the first of these ways that works is taken, and logged once:

bubblewrap
    `bwrap`: it sees only the machine's system libraries, Python and its installed packages, read-only; no network and
    no other process.
namespaces
    The same with our own namespaces, if the kernel lets this user have them.
limits
    None of that. Under root, programs can read, write and reach on the network whatever everybody may. Under an
    ordinary user they can do what that user can: read and delete the user's files, open connections, signal the user's
    processes, and outlive us if they kill their supervisor.

Under root, in all three, each running program has its own user, who owns nothing else. Python, its packages and this
file may lie anywhere, even below /tmp or in a home that is closed to that user. Nothing here protects against holes in
the kernel, or against a program that uses up its share of CPU and memory: 32 processes of 512 MB each are allowed.
Running programs is off unless the environment says `SELFADAPT_RUN_CODE=1`.
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

from experts.outside.errors import UserError

logger = logging.getLogger(__name__)

Way = Literal["bubblewrap", "namespaces", "limits"]
CHILD = Path(__file__).with_name("sandbox_child.py")
# Nobody's: systemd's table of user ids leaves these free, and a container that maps 16 bits of them has them too.
USERS = range(60600, 61100)
# What Python needs to run; its own folders are added to these.
SYSTEM = ("/usr", "/bin", "/lib", "/lib32", "/lib64")
LIBRARIES = ("lib", "lib64")

CPU_SECONDS = 5
WALL_SECONDS = 8.0
MEMORY = 512 * 2**20  # address space of one process, in bytes
FILE_SIZE = 16 * 2**20
DISK = 64 * 2**20
PROCESSES = 32
OUTPUT = 2**16

# Libraries that start a thread for each core would break the limit on processes.
ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}

# Under root, a program runs as a user who may not read what was installed for root alone.
PROBE = """
import heapq, math, os, sys
for folder in sys.path:
    try:
        entries = list(os.scandir(folder))
    except (FileNotFoundError, NotADirectoryError):
        continue
    for entry in entries:
        if entry.name.isidentifier() and not os.access(entry, os.R_OK | os.X_OK):
            sys.exit(f"not every user can read the installed {entry.name}")
print("ready")
"""


@dataclass(frozen=True)
class Run:
    """What a program printed (the first 64 KiB, standard error included), and how it ended."""

    output: str
    exit_code: int
    """As in a shell: 128 + n after signal n, and 124 if its time was up."""


def run_python(program: str, *, seconds: float = WALL_SECONDS) -> Run:
    """Runs a program as a module that is not `__main__`, for at most `seconds`.

    Raises:
        UserError: if running programs is not allowed or not possible; never for what the program does.
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
    """The first way of shutting programs in that works here; it is logged when found.

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
                    "model-written programs run with resource limits only: files and the network are not isolated "
                    "here; install bubblewrap, or allow user namespaces"
                )
            else:
                logger.info("model-written programs are isolated by %s", each)
            return each
        failures.append(f"{each}: {' '.join(run.output.split()[-12:]) or f'exit code {run.exit_code}'}")
    raise UserError(f"no sandbox works here ({'; '.join(failures)})")


def _run(program: str, way: Way, seconds: float) -> Run:
    with _user() as user, _home(user) as home:
        command = _command(way, home, seconds, user)
        if not (executable := shutil.which(command[0])):
            return Run(f"{command[0]} is not installed", 127)
        process = subprocess.Popen(
            command,
            executable=executable,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=_environment(home if way == "limits" else _home_inside(home)),
            cwd=home,
            start_new_session=True,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        # The supervisor inside keeps the time; this is in case it does not start or is killed.
        deadline = time.monotonic() + seconds + 2
        try:
            try:
                process.stdin.write(program.encode(errors="replace"))
                process.stdin.close()
            except BrokenPipeError:
                pass
            output = _read(process.stdout.fileno(), deadline)
            process.stdout.close()  # a program that keeps printing gets an error
            code = process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            code = 124
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        return Run(output.decode(errors="replace"), code if code >= 0 else 128 - code)


@contextmanager
def _home(user: int) -> Iterator[str]:
    """An empty folder that the user owns and can reach by its path."""
    places = [tempfile.gettempdir(), "/tmp", "/var/tmp", "/dev/shm"]
    if user != os.getuid():
        places = [place for place in places if _open_to_all(place)] or places
    with tempfile.TemporaryDirectory(prefix="selfadapt-", dir=places[0], ignore_cleanup_errors=True) as home:
        if user != os.getuid():
            os.chown(home, user, user)
        yield os.path.realpath(home)


def _open_to_all(folder: str) -> bool:
    path = Path(folder).resolve()
    return path.is_dir() and all(each.stat().st_mode & 0o001 for each in (path, *path.parents))


def _home_inside(home: str) -> str:
    """The path of a program's home in its own file system, which has an empty /tmp; the name is unique."""
    return f"/tmp/{os.path.basename(home)}"


def _environment(home: str) -> dict[str, str]:
    # Some Pythons find their own library only through this.
    libraries = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
    return {**ENVIRONMENT, **libraries, "HOME": home}


@contextmanager
def _user() -> Iterator[int]:
    """The user a program runs as: ourselves or, under root, a user that no other program of any of our processes has.

    The limit on processes counts per user, so programs of one user would take them from each other.
    """
    if os.getuid() != 0:
        yield os.getuid()
        return
    for user in USERS:
        with socket.socket(socket.AF_UNIX) as taken:
            try:
                taken.bind(f"\0selfadapt-sandbox-{user}")  # an abstract socket: no file, and free again when closed
            except OSError:
                continue
            yield user
            return
    raise UserError(f"more than {len(USERS)} model-written programs are running at once; wait until some have finished")


def _read(pipe: int, deadline: float) -> bytes:
    """Reads from the pipe until it ends, the bound is reached, or the time is up."""
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
    # In its own user namespace, processes count from zero; otherwise all of the user's processes count.
    others = 0 if way != "limits" and not root else _threads_of(user)
    settings = {
        "way": way,
        "seconds": seconds,
        "home": _text(home),
        "home_inside": _text(_home_inside(home)),
        "disk": DISK,
        "readable": list(map(_text, _readable())),
        "packages": list(map(_text, _packages())),
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
    return [*_bubblewrap(root, _home_inside(home)), _python(), *child] if way == "bubblewrap" else [_python(), *child]


def _text(path: str) -> str:
    """The path as the program's Python sees it: its file names are UTF-8, whatever ours are."""
    return os.fsencode(path).decode(errors="surrogateescape")


def _bubblewrap(root: bool, home: str) -> list[str]:
    command = ["bwrap", "--die-with-parent", "--new-session", "--unshare-pid", "--unshare-net", "--unshare-ipc"]
    command += ["--unshare-uts", "--dev", "/dev"]
    # Under root, to become the user: a user of the namespace would still be root to the limit on processes.
    command += ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"] if root else ["--unshare-user"]
    # Before the bound folders, which may lie below it.
    command += ["--perms", "1777", "--size", str(DISK), "--tmpfs", "/tmp", "--perms", "0777", "--dir", home]
    for path in _readable():
        for folder in reversed(Path(path).parents[:-1]):
            if str(folder) not in ("/tmp", "/dev"):
                command += ["--perms", "0755", "--dir", str(folder)]  # readable for that user, too
        link = os.path.islink(path)
        command += ["--symlink", os.readlink(path), path] if link else ["--ro-bind", path, path]
    command += ["--ro-bind", str(CHILD), "/child.py"]
    # The other file systems that bubblewrap makes have no bound on their size.
    return [*command, "--remount-ro", "/dev", "--remount-ro", "/", "--chdir", home]


def _python() -> str:
    """The interpreter itself, not a virtual environment's link or copy."""
    return os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)


def _readable() -> list[str]:
    """What a program may see: files, folders and links; no path lies inside another."""
    links = [path for path in SYSTEM if os.path.islink(path)]
    libraries = [os.path.join(prefix, lib) for prefix in (sys.base_prefix, sys.base_exec_prefix) for lib in LIBRARIES]
    paths: list[str] = []
    for path in sorted({os.path.realpath(path) for path in (*SYSTEM, _python(), *libraries, *_packages())}):
        if os.path.exists(path) and not any(Path(path).is_relative_to(above) for above in paths):
            paths.append(path)
    return links + paths


def _packages() -> list[str]:
    """The folders of installed packages such as numpy; a checkout on the path is not for programs."""
    return [path for path in map(os.path.realpath, sys.path) if Path(path).name in ("site-packages", "dist-packages")]


def _threads_of(user: int) -> int:
    """How many threads the user has now; a limit on processes counts these."""
    threads = 0
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            fields = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
        except OSError:  # it has ended
            continue
        if int(fields["Uid"].split()[0]) == user:
            threads += int(fields["Threads"])
    return threads
