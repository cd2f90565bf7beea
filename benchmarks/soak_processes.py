"""What benchmarks/soak.py sees and does of processes, memory and disks; Linux only."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Thread

_IN_NAMESPACE = "DIBS_SOAK_NAMESPACE"
_BLOCK = 2**16


def enter_namespace() -> None:
    """Begin this process anew where it may mount, if the system lets it; the mounts end with it."""
    prefix = ["unshare", "--user", "--map-root-user", "--mount"]
    if _IN_NAMESPACE in os.environ or shutil.which("unshare") is None:
        return
    if subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode == 0:
        os.environ[_IN_NAMESPACE] = "1"
        sys.stdout.flush()
        os.execvp(prefix[0], [*prefix, sys.executable, *sys.argv])


class Disk:
    """A folder on a file system of its own that can be filled; where that may not be, a size limit."""

    def __init__(self, folder: Path, megabytes: int) -> None:
        folder.mkdir()
        self.folder = folder
        self._ballast = folder / "ballast"
        self.mounted = False
        if _IN_NAMESPACE in os.environ:
            mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "dibs-soak", str(folder)]
            self.mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0

    @property
    def kind(self) -> str:
        """What a full disk is here."""
        return "a tmpfs filled up" if self.mounted else "a limit on the size of files"

    def fill(self, pid: int) -> None:
        """Leave no room for what a process writes."""
        if not self.mounted:
            _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (512, hard))
            return
        with self._ballast.open("ab", buffering=0) as file:
            block = _BLOCK
            while block:
                try:
                    file.write(b"\0" * block)
                except OSError:
                    block //= 2

    def empty(self) -> None:
        """Make room again. A limit went with its process."""
        self._ballast.unlink(missing_ok=True)

    def close(self) -> None:
        """Take the file system away, with all that it holds."""
        if self.mounted:
            subprocess.run(["umount", str(self.folder)], check=False)


@dataclass(frozen=True)
class Seen:
    """A process as /proc shows it: its number, its parent's, and when it started, in clock ticks."""

    pid: int
    parent: int
    started: int


def seen(pid: int) -> Seen | None:
    """A process; None where it is gone, also where only its exit status is left."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    state, parent, *fields = text.rpartition(")")[2].split()
    return None if state in "ZX" else Seen(pid, int(parent), int(fields[17]))


def family(root: int) -> dict[int, list[Seen]]:
    """A process and its descendants by their distance from it."""
    everyone = [
        each for name in os.listdir("/proc") if name.isdigit() and (each := seen(int(name)))
    ]
    found = {0: [each for each in everyone if each.pid == root]}
    while found[max(found)]:
        parents = {each.pid for each in found[max(found)]}
        found[max(found) + 1] = [each for each in everyone if each.parent in parents]
    return found


def alive(those: set[Seen]) -> set[Seen]:
    """Those that still run."""
    return {each for each in those if (now := seen(each.pid)) and now.started == each.started}


def memory(pid: int) -> int:
    """Bytes of a process, with its part of what it shares; 0 where it is gone."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)


def open_files(pid: int) -> int:
    """How many files, pipes and sockets a process has open; 0 where it is gone."""
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return 0


def last_step(path: Path) -> int:
    """The step of the last whole line of metrics.jsonl; -1 for none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _BLOCK))
            lines = file.read().split(b"\n")[:-1]
    except OSError:
        return -1
    head = lines[-1].partition(b",")[0].rpartition(b":")[2] if lines else b""
    return int(head) if head.strip().isdigit() else -1


@contextmanager
def started(
    words: Sequence[str], temporary: Path
) -> Iterator[tuple[subprocess.Popen[str], deque[str]]]:
    """``dibs train`` with these words, and the lines that it says last; it ends with the block.

    It says them to a pipe, since a file of them would run out of room as well.
    """
    said: deque[str] = deque(maxlen=100)
    process = subprocess.Popen(
        [sys.executable, "-m", "dibs", "train", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "TMPDIR": str(temporary), "OMP_NUM_THREADS": "1"},
    )
    assert process.stdout is not None
    reader = Thread(target=said.extend, args=(process.stdout,), daemon=True)
    reader.start()
    try:
        yield process, said
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        process.wait()
        reader.join(timeout=5)  # children that are left hold the pipe open


def gone_within(those: set[Seen], seconds: float) -> set[Seen]:
    """Those that still run after so many seconds."""
    deadline = time.monotonic() + seconds
    while (left := alive(those)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return left
