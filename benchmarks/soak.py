"""A day of mishaps in minutes: a run that is killed, starved of disk and robbed of its verifiers.

The same small run is trained twice: left alone, and disturbed. The second one is killed (SIGKILL) once
in every `--kill-every` steps, a worker of its verifier is killed once in every `--verifier-every` steps,
and its disk is full `--full-disks` times, all at random moments; it goes on with --resume each time. It
must end as the first one did, byte for byte. Memory and open files must stay as they are, and no
process may be left. The disk is a tmpfs in a namespace of its own, where the system allows that; else
the run's files are limited in size. Exit status: 1 where something does not hold.

    python benchmarks/soak.py [--steps 2000] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table
from shared import positive
from soak_processes import (
    Disk,
    Seen,
    enter_namespace,
    family,
    gone_within,
    last_step,
    memory,
    open_files,
    started,
)

KEYS = {
    "policy.model": "arithmetic-easy",
    "policy.threads": "1",
    "policy.device": "cpu",
    "data.train": "arithmetic-easy",
    "data.size": "64",
    "data.eval_size": "4",
    "sampling.max_completion_length": "12",
    "verify.verifier": "math",
    "verify.answer_from": "anywhere",
    "verify.workers": "2",
    "estimate.mode": "online",
    "allocate.num_generations": "2",
    "train.prompts_per_step": "4",
    "update.updates_per_step": "1",
    "update.learning_rate": "1e-4",
    "variance.interval": "20",
    "evaluate.interval": "200",
    "evaluate.num_generations": "2",
    "checkpoint.interval": "10",
    "tracking.samples_interval": "25",
}
SMALL_POLICY = {"hidden_size": 48, "heads": 2, "layers": 1, "batch_size": 64}
LINES = ("metrics.jsonl", "allocations.jsonl", "samples.jsonl")
FROM = 200
"""The step after which memory must be flat."""
WINDOW = 100
"""Steps over which memory is looked at together."""
FLAT = 0.05
LOOK = 0.2
"""Least seconds between two looks at memory."""
YOUNG = 30
"""Steps after a start that are not looked at in a run that starts often."""
STUCK = 600.0
"""Seconds without a step after which a run counts as stuck."""
LEAVE = 20.0
"""Seconds that children of a killed run may take to end: an alarm ends them at the latest."""


@dataclass
class Sample:
    """What the processes of a run held after a step: bytes, and open files of the main one.

    ``age``: how many steps its processes had made.
    """

    step: int
    age: int
    total: int
    main: int
    files: int


@dataclass
class Course:
    """What happened to a run.

    ``lives``: how often it was started. ``said``: what it printed last. ``left``: processes that were
    there after it ended. ``faults``: what should not have been.
    """

    samples: list[Sample] = field(default_factory=list)
    events: dict[str, int] = field(default_factory=dict)
    lives: int = 0
    left: int = 0
    seconds: float = 0.0
    faults: list[str] = field(default_factory=list)

    def count(self, event: str) -> None:
        """Note that it happened."""
        self.events[event] = self.events.get(event, 0) + 1


Event = tuple[int, float, str]
"""A step, the seconds after its end, and what happens then."""


def planned(args: argparse.Namespace) -> list[Event]:
    """All that happens to the disturbed run, in the order of steps."""
    chance = random.Random(args.seed)

    def moments(what: str, every: int) -> list[Event]:
        starts = range(0, args.steps - every + 1, every)
        # In the first half, so that the run does not end before the last of them.
        return [
            (chance.randint(start + 1, start + max(every // 2, 1)), chance.uniform(0, 0.2), what)
            for start in starts
        ]

    events = moments("kill", args.kill_every) + moments("verifier", args.verifier_every)
    if args.full_disks:
        events += moments("disk", args.steps // args.full_disks)
    return sorted(events)


class Soak:
    """Runs in one folder: one that is left alone, and one that is disturbed."""

    def __init__(self, folder: Path, args: argparse.Namespace) -> None:
        self.folder = folder
        self.disk = Disk(folder / "disk", megabytes=64)
        self.more = {
            "train.steps": args.steps,
            "policy.warm_start.updates": args.warm_start_updates,
            **{f"policy.warm_start.{key}": value for key, value in SMALL_POLICY.items()},
        }

    def run(self, name: str, events: Sequence[Event]) -> Course:
        """Train to the end, as often as that has to begin."""
        course, began = Course(), time.monotonic()
        waiting = list(events)
        while not (self.out(name) / "summary.json").exists() and not course.faults:
            course.lives += 1
            self._live(name, waiting, course)
        course.seconds = time.monotonic() - began
        return course

    def out(self, name: str) -> Path:
        """The folder of a run."""
        return self.disk.folder / name

    def _live(self, name: str, waiting: list[Event], course: Course) -> None:
        """Start or resume a run, disturb it, and wait until it ends."""
        keys = {**KEYS, **self.more, "output_dir": self.out(name), "resume": "auto"}
        words = [f"--{key}={value}" for key, value in keys.items()]
        everyone: set[Seen] = set()
        expected = 0
        with started(words, self.folder) as (process, said):
            moved, looked = time.monotonic(), 0.0
            seen_step, age = last_step(self.out(name) / LINES[0]), 0
            while process.poll() is None:
                now = time.monotonic()
                step = last_step(self.out(name) / LINES[0])
                if step != seen_step:
                    age += max(0, step - seen_step)
                    seen_step, moved = step, now
                    if now - looked > LOOK:
                        looked = now
                        sample, members = look(process.pid, step, age)
                        course.samples.append(sample)
                        everyone |= members
                elif now - moved > STUCK:
                    course.faults.append(f"no step for {STUCK:g} s after step {step}")
                    break
                if waiting and step >= waiting[0][0] and expected == 0:
                    time.sleep(waiting[0][1])
                    everyone |= look(process.pid, step, age)[1]
                    expected = self._disturb(process, waiting, course)
                time.sleep(0.02)
        self.disk.empty()
        course.left += len(gone_within(everyone, LEAVE))
        self._judge(process.returncode, expected, "".join(said), course)

    def _disturb(self, process: subprocess.Popen[str], waiting: list[Event], course: Course) -> int:
        """Let the next event happen; the exit status that is due then, 0 where the run goes on."""
        what = waiting[0][2]
        if what == "verifier":
            # Workers are the children of the server that forks them, which is a child of the run.
            workers = family(process.pid).get(2, [])
            if not workers:  # not started yet
                return 0
            os.kill(workers[0].pid, signal.SIGKILL)
        elif what == "disk":
            self.disk.fill(process.pid)
        else:
            process.kill()
        waiting.pop(0)
        course.count(what)
        return {"verifier": 0, "disk": 2, "kill": -signal.SIGKILL}[what]

    def _judge(self, status: int, expected: int, said: str, course: Course) -> None:
        """Note an end of a run that was not the expected one."""
        finished = status == 0 and expected != 2  # a kill may come a moment too late
        plain = " ".join(said.split())
        if status != expected and not finished:
            course.faults.append(f"exit status {status} instead of {expected}: {said[-2000:]}")
        elif expected == 2 and ("Traceback" in plain or "go on with --resume" not in plain):
            course.faults.append(f"a full disk ends it without advice: {said[-2000:]}")


def look(root: int, step: int, age: int) -> tuple[Sample, set[Seen]]:
    """What a run holds now, and its processes."""
    members = {each for generation in family(root).values() for each in generation}
    held = {each.pid: memory(each.pid) for each in members}
    sample = Sample(step, age, sum(held.values()), held.get(root, 0), open_files(root))
    return sample, members


def result(out: Path) -> list[object]:
    """All that must not depend on what happened."""
    lines = [
        {key: value for key, value in json.loads(line).items() if "second" not in key}
        for name in LINES
        for line in (out / name).read_text(encoding="utf-8").split("\n")
        if line
    ]
    return [(out / "model/model.safetensors").read_bytes(), lines]


def windows(samples: Sequence[Sample], key: str, least_age: int = 0) -> list[float]:
    """Medians over windows of steps after ``FROM``, of samples that are old enough."""
    medians = []
    last = max((sample.step for sample in samples), default=0)
    for start in range(FROM, last, WINDOW):
        inside = [
            getattr(sample, key)
            for sample in samples
            if start < sample.step <= start + WINDOW and sample.age >= least_age
        ]
        medians += [median(inside)] if inside else []
    return medians


def growth(values: Sequence[float]) -> float | None:
    """By how much the highest window is above the first; None where there are not two."""
    return max(values) / values[0] - 1 if len(values) > 1 else None


@dataclass(frozen=True)
class Check:
    """One thing that must hold: what was found, what is allowed, and whether that is so."""

    name: str
    found: str
    bound: str
    holds: bool | None


def checks(soak: Soak, alone: Course, disturbed: Course) -> list[Check]:
    """All that must hold."""
    ended = not (alone.faults or disturbed.faults)
    same = ended and result(soak.out("alone")) == result(soak.out("disturbed"))
    leftovers = list(soak.disk.folder.rglob(".unfinished*"))
    left = alone.left + disturbed.left
    found = [
        Check("both runs finish", "yes" if ended else "no", "yes", ended),
        Check("they end the same", "yes" if same else "no", "yes", same),
        Check("processes left", str(left), "0", not left),
        Check("half-written files left", str(len(leftovers)), "0", not leftovers),
    ]
    for name, course, least_age in (("alone", alone, 0), ("disturbed", disturbed, YOUNG)):
        for key, what in (("total", "memory, all processes"), ("main", "memory, main process")):
            value = growth(windows(course.samples, key, least_age))
            holds = None if value is None else value <= FLAT
            shown = "-" if value is None else f"{value:+.1%}"
            found.append(Check(f"{what}, {name}", shown, f"{FLAT:+.0%}", holds))
        files = windows(course.samples, "files", least_age)
        more = max(files) - files[0] if len(files) > 1 else None
        holds = None if more is None else more <= 4
        found.append(
            Check(f"open files, {name}", "-" if more is None else f"{more:+.0f}", "+4", holds)
        )
    return found


def report(soak: Soak, courses: Mapping[str, Course], found: Sequence[Check]) -> dict[str, Any]:
    """What is printed, as one JSON object."""
    return {
        "steps": soak.more["train.steps"],
        "full_disk": soak.disk.kind,
        "runs": {
            name: {
                "seconds": course.seconds,
                "lives": course.lives,
                "events": course.events,
                "megabytes": [round(v / 2**20, 1) for v in windows(course.samples, "total")],
                "faults": course.faults,
            }
            for name, course in courses.items()
        },
        "checks": [vars(check) for check in found],
        "holds": all(check.holds is not False for check in found),
    }


def show(whole: Mapping[str, Any]) -> None:
    """Print the tables."""
    console = Console()
    runs = Table("run", "seconds", "starts", "kills", "full disks", "verifier kills", box=None)
    for name, run in whole["runs"].items():
        counts = [str(run["events"].get(what, 0)) for what in ("kill", "disk", "verifier")]
        runs.add_row(name, f"{run['seconds']:.0f}", str(run["lives"]), *counts)
        for fault in run["faults"]:
            console.print(fault, markup=False)
    console.print(runs)
    table = Table("check", "found", "allowed", "holds", box=None)
    for check in whole["checks"]:
        holds = {True: "yes", False: "NO", None: "too short"}[check["holds"]]
        table.add_row(check["name"], check["found"], check["bound"], holds)
    console.print(table)
    console.print(f"{whole['steps']} steps; a full disk was {whole['full_disk']}")


def main() -> None:
    """Run both, and print tables or one JSON object."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=positive, default=2000, help="training steps of each run")
    parser.add_argument("--kill-every", type=positive, default=100, help="steps from kill to kill")
    parser.add_argument(
        "--verifier-every", type=int, default=50, help="steps between kills of a verifier's worker"
    )
    parser.add_argument("--full-disks", type=int, default=2, help="how often the disk is full")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument(
        "--warm-start-updates", type=int, default=400, help="of the policy; fewer for a quick try"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args()
    enter_namespace()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that its run ends with it
    with tempfile.TemporaryDirectory(prefix="soak-", ignore_cleanup_errors=True) as folder:
        soak = Soak(Path(folder), args)
        try:
            alone = soak.run("alone", [])
            disturbed = soak.run("disturbed", planned(args))
            found = checks(soak, alone, disturbed)
            whole = report(soak, {"alone": alone, "disturbed": disturbed}, found)
        finally:
            soak.disk.close()
    if args.json:
        print(json.dumps(whole, indent=1))
    else:
        show(whole)
    sys.exit(0 if whole["holds"] else 1)


if __name__ == "__main__":
    main()
