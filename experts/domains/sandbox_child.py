"""The inside of `experts.domains.sandbox`: a script that shuts itself in, then runs the program it reads.

There are three nested processes: the first makes the namespaces; the second supervises (as process 1 of its namespace,
so that nothing inside outlives it); the third gives up all rights and becomes the program. The script imports only the
standard library, and nothing from this package.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import struct
import sys
import time
import traceback
import types
from typing import Any, NoReturn

TIME_IS_UP = 124

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x00020000, 0x04000000, 0x08000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
MS_NOSUID, MS_NODEV, MS_BIND, MS_REC, MS_PRIVATE = 0x2, 0x4, 0x1000, 0x4000, 0x40000
MNT_DETACH = 2
SYS_MOUNT_SETATTR, AT_FDCWD, AT_RECURSIVE = 442, -100, 0x8000
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID = 0x1, 0x2
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 1, 4, 36, 38
CAPABILITY_VERSION = 0x20080522

libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    settings = json.loads(sys.argv[1])
    program = sys.stdin.read()
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.closerange(3, 256)
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    os.umask(0o022)  # the user that the program runs as must be able to enter the folders made here
    if settings["way"] == "namespaces":
        enter_namespaces(settings["home"], settings["readable"], settings["disk"])
        make_home(settings["home_inside"], settings["user"])
        if first := os.fork():
            os._exit(shell_code(os.waitpid(first, 0)[1]))
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    else:
        prctl(PR_SET_CHILD_SUBREAPER, 1)
    if child := os.fork():
        supervise(child, settings["seconds"], alone=settings["way"] == "limits")
    sys.path[:] = filter(os.path.exists, sys.path + settings["packages"])
    folders = {path: os.open(path, os.O_PATH) for path in sys.path if os.path.isdir(path)}
    give_up_rights(settings["user"], settings["limits"])
    reach(folders)
    run(program)


def enter_namespaces(root: str, readable: list[str], disk: int) -> None:
    """Enters new namespaces of every kind, with a file system that holds `readable` and an empty /tmp."""
    user, group = os.getuid(), os.getgid()
    spaces = CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWPID | CLONE_NEWNET
    call("unshare", spaces | (CLONE_NEWUSER if user else 0))
    if user:
        for file, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
            with open(f"/proc/self/{file}", "w") as handle:
                handle.write(text)
    mount(None, "/", None, MS_REC | MS_PRIVATE)
    mount("tmpfs", root, "tmpfs", MS_NOSUID | MS_NODEV, "size=1m,mode=755")
    # Before the bound folders, which may lie below it.
    os.mkdir(root + "/tmp")
    mount("tmpfs", root + "/tmp", "tmpfs", MS_NOSUID | MS_NODEV, f"size={disk},mode=1777")
    for path in (*readable, "/dev/null", "/dev/zero", "/dev/random", "/dev/urandom"):
        os.makedirs(os.path.dirname(root + path), exist_ok=True)
        if os.path.islink(path):
            os.symlink(os.readlink(path), root + path)
            continue
        if os.path.isdir(path):
            os.mkdir(root + path)
        else:
            os.close(os.open(root + path, os.O_CREAT))
        mount(path, root + path, None, MS_BIND | MS_REC)
        read_only(root + path, AT_RECURSIVE)
    read_only(root, 0)
    os.chdir(root)
    call("pivot_root", b".", b".")
    call("umount2", b".", MNT_DETACH)


def make_home(path: str, user: int) -> None:
    os.mkdir(path, 0o700)
    if os.getuid() == 0:
        os.chown(path, user, user)
    os.chdir(path)


def read_only(path: str, flags: int) -> None:
    """Makes the mount at the path read-only, or with AT_RECURSIVE all mounts at and below it."""
    attributes = struct.pack("4Q", MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID, 0, 0, 0)
    call("syscall", SYS_MOUNT_SETATTR, AT_FDCWD, os.fsencode(path), flags, attributes, len(attributes))


def supervise(child: int, seconds: float, alone: bool) -> NoReturn:
    """Waits for the program, at most `seconds`, and ends the way it ended.

    Whatever it leaves behind dies with process 1 of its namespace; `alone`, without a namespace, we have to kill it.
    """
    deadline = time.monotonic() + seconds
    code = TIME_IS_UP
    while time.monotonic() < deadline:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == child:
            code = shell_code(status)
            break
        if pid == 0:
            time.sleep(0.002)
    if alone:
        kill_descendants()
    os._exit(code)


def kill_descendants() -> None:
    """Kills all descendants: a process that loses its parent becomes our child, and is killed next."""
    while True:
        with open(f"/proc/self/task/{os.getpid()}/children") as children:
            for pid in children.read().split():
                os.kill(int(pid), signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def give_up_rights(user: int, limits: dict[str, int]) -> None:
    if os.getuid() == 0:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # changing the user has cleared it
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    # An ordinary user has all rights in its own user namespace, including mounting and unmounting.
    call("capset", struct.pack("Ii", CAPABILITY_VERSION, 0), bytes(24))
    for name, value in limits.items():
        _, most = resource.getrlimit(getattr(resource, name))
        value = value if most == resource.RLIM_INFINITY else min(value, most)
        resource.setrlimit(getattr(resource, name), (value, value))


def reach(folders: dict[str, int]) -> None:
    """Keeps Python and its packages reachable if they lie in a folder that is now closed to us, such as root's home.

    A handle opened earlier leads to them, and to nothing else that is not readable by everybody.
    """
    prctl(PR_SET_DUMPABLE, 1)  # changing the user has made /proc/self root's
    closed = {}
    for path, handle in folders.items():
        door = f"/proc/self/fd/{handle}"
        if not os.access(path, os.X_OK) and os.access(door, os.X_OK):
            closed[path] = door
        else:
            os.close(handle)

    def now(path: str) -> str:
        above = max((each for each in closed if f"{path}/".startswith(f"{each}/")), key=len, default="")
        return closed.get(above, "") + path[len(above) :]

    sys.path[:] = map(now, sys.path)
    for module in list(sys.modules.values()):
        if paths := getattr(module, "__path__", None):
            module.__path__ = list(map(now, paths))


def run(program: str) -> NoReturn:
    module = types.ModuleType("program")
    sys.modules["program"] = module  # dataclasses look for it there
    sys.argv = ["program"]
    code = 1
    try:
        exec(compile(program, "program.py", "exec", dont_inherit=True), module.__dict__)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if code and code is not end.code:
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    try:
        sys.stdout.flush()
    finally:
        os._exit(code & 0xFF)


def shell_code(status: int) -> int:
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def mount(source: str | None, target: str, kind: str | None, flags: int, data: str = "") -> None:
    texts = [None if text is None else os.fsencode(text) for text in (source, target, kind)]
    call("mount", *texts, ctypes.c_ulong(flags), data.encode())


def prctl(option: int, value: int) -> None:
    call("prctl", option, *map(ctypes.c_ulong, (value, 0, 0, 0)))


def call(name: str, *arguments: Any) -> None:
    if getattr(libc, name)(*arguments) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{name}: {os.strerror(error)}")


if __name__ == "__main__":
    main()
