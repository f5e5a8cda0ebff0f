"""Start a command that can write only in certain folders, as can all that it starts.

    python sandbox.py FOLDER [FOLDER ...] -- COMMAND [ARGUMENT ...]

Linux does it with Landlock (kernel 5.13 or newer), macOS with `sandbox-exec`; both are there for
every user. On Windows there is neither. What the command reads, and its network, stay as they are.
Where the system allows it (Linux from 6.12 on, macOS), the command may end only processes that it
started. It may still change the permissions of your files: Landlock has no rule for that.
Where Linux lets a user do that, the command gets a /dev/shm of its own, empty, which goes with it:
programs leave files there for each other, and need the right to remove them.

It is a script of its own, with only the standard library: Landlock holds for the process that asks
for it, and the command must then take that process's place.
"""

import ctypes
import os
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

SANDBOX_EXEC = Path("/usr/bin/sandbox-exec")
DEVICES = ("null", "zero", "full", "random", "urandom", "tty", "ptmx", "pts", "shm")
GPUS = ("nvidia*", "dri", "kfd")

# From linux/landlock.h. The system calls have these numbers on every kind of machine.
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
VERSION_FLAG, PATH_BENEATH = 1, 1
WRITE_FILE, REFER, TRUNCATE = 1 << 1, 1 << 13, 1 << 14
CHANGES = WRITE_FILE | sum(1 << bit for bit in range(4, 13))  # remove and make, of every kind
SCOPE_SIGNAL = 1 << 1
NO_NEW_PRIVILEGES = 38  # for prctl
# From linux/sched.h and linux/mount.h.
NEW_MOUNTS, NEW_USER = 0x20000, 0x10000000
NO_SET_UID, NO_DEVICES, RECURSIVE, PRIVATE = 1 << 1, 1 << 2, 1 << 14, 1 << 18
SHARED_MEMORY = "/dev/shm"


class _Ruleset(ctypes.Structure):
    _fields_ = (("files", ctypes.c_uint64), ("net", ctypes.c_uint64), ("scoped", ctypes.c_uint64))


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed", ctypes.c_uint64), ("folder", ctypes.c_int32))


def wrapped(command: list[str], *folders: Path) -> list[str]:
    """The command as it must be started so that it writes only in these folders.

    Where the system cannot hold it, the command is unchanged; `works` tells which is the case.
    """
    if not works():
        return command
    return _wrapped(command, *folders)


@cache
def works() -> bool:
    """Whether this system holds a command to its folders: tried once, not guessed."""
    with tempfile.TemporaryDirectory(prefix="course-") as folder:
        inside, outside = Path(folder).resolve() / "inside", Path(folder).resolve() / "outside"
        inside.mkdir()
        code = f"open({str(inside / 'a')!r}, 'w'); open({str(outside)!r}, 'w')"
        command = _wrapped([sys.executable, "-I", "-S", "-c", code], inside)
        try:
            subprocess.run(command, capture_output=True, timeout=60, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return False
        return (inside / "a").exists() and not outside.exists()


@cache
def hides_shared_memory() -> bool:
    """Whether a command gets a /dev/shm of its own: tried once, not guessed."""
    if sys.platform != "linux" or not works():
        return False
    try:
        with tempfile.NamedTemporaryFile(dir=SHARED_MEMORY, prefix="course-") as file:
            code = f"import os; os._exit(os.path.exists({file.name!r}))"
            with tempfile.TemporaryDirectory(prefix="course-") as folder:
                command = _wrapped([sys.executable, "-I", "-S", "-c", code], Path(folder).resolve())
                done = subprocess.run(command, capture_output=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def _wrapped(command: list[str], *folders: Path) -> list[str]:
    if sys.platform == "darwin":
        return [str(SANDBOX_EXEC), "-p", macos_profile(*folders), *command]
    if sys.platform == "linux":
        start = [sys.executable, "-I", "-S", str(Path(__file__).resolve())]
        return [*start, *map(str, folders), "--", *command]
    return command


def macos_profile(*folders: Path) -> str:
    """The rules for `sandbox-exec`, in its own language."""
    quoted = (str(f.resolve()).replace("\\", "\\\\").replace('"', '\\"') for f in folders)
    places = " ".join(f'(subpath "{folder}")' for folder in (*quoted, "/dev"))
    return (
        "(version 1) (allow default) (deny file-write*) "
        f"(allow file-write* {places}) (deny signal) (allow signal (target same-sandbox))"
    )


def own_shared_memory(*folders: Path) -> None:
    """Give this process, and all that it starts, an empty /dev/shm, where the system allows it.

    Not if what they need, such as these folders, is itself in /dev/shm.
    """
    needed = (*folders, Path.cwd(), Path(sys.executable), Path(__file__))
    if any(path.resolve().is_relative_to(SHARED_MEMORY) for path in needed):
        return
    child = os.fork()  # tried in another process first: a half-done change cannot be undone
    if child == 0:
        try:
            _mount_shared_memory()
        except OSError:
            os._exit(1)
        os._exit(0)
    if os.waitpid(child, 0)[1] == 0:
        _mount_shared_memory()


def _mount_shared_memory() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    user, group = os.geteuid(), os.getegid()
    if libc.unshare(NEW_MOUNTS):  # only the system's administrator may; others as follows
        _checked(libc.unshare(NEW_USER | NEW_MOUNTS))
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    flags = ctypes.c_ulong(RECURSIVE | PRIVATE)
    _checked(libc.mount(b"none", b"/", None, flags, None))
    flags = ctypes.c_ulong(NO_SET_UID | NO_DEVICES)
    _checked(libc.mount(b"tmpfs", SHARED_MEMORY.encode(), b"tmpfs", flags, b"mode=1777"))


def _checked(answer: int) -> None:
    if answer:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def restrict_to(*folders: Path) -> None:
    """Let this process, and all that it starts, write only there. Linux; raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    version = _call(libc, CREATE_RULESET, None, ctypes.c_size_t(0), VERSION_FLAG)
    changes = CHANGES | (REFER if version >= 2 else 0) | (TRUNCATE if version >= 3 else 0)
    # An older kernel refuses a longer structure than the one it knows.
    size = 8 if version < 4 else 16 if version < 6 else 24
    wanted = _Ruleset(changes, 0, SCOPE_SIGNAL if version >= 6 else 0)
    ruleset = _call(libc, CREATE_RULESET, ctypes.byref(wanted), ctypes.c_size_t(size), 0)
    devices = [Path("/dev", name) for name in DEVICES]
    devices += [path for name in GPUS for path in Path("/dev").glob(name)]
    for path in (*folders, *filter(Path.exists, devices)):
        allowed = changes if path.is_dir() else changes & (WRITE_FILE | TRUNCATE)
        folder = os.open(path, os.O_PATH | os.O_CLOEXEC)
        rule = _PathBeneath(allowed, folder)
        _call(libc, ADD_RULE, ruleset, PATH_BENEATH, ctypes.byref(rule), 0)
        os.close(folder)
    if libc.prctl(NO_NEW_PRIVILEGES, *map(ctypes.c_ulong, (1, 0, 0, 0))):
        raise OSError(ctypes.get_errno(), "prctl failed")
    _call(libc, RESTRICT_SELF, ruleset, 0)
    os.close(ruleset)


def _call(libc: ctypes.CDLL, *arguments: object) -> int:
    answer = libc.syscall(*arguments)
    if answer < 0:
        raise OSError(ctypes.get_errno(), "Landlock is not available")
    return answer


if __name__ == "__main__":
    end = sys.argv.index("--")
    places = list(map(Path, sys.argv[1:end]))
    own_shared_memory(*places)  # before Landlock, which lets nobody mount
    restrict_to(*places)
    os.execvp(sys.argv[end + 1], sys.argv[end + 1 :])
