"""Verification in worker processes: completions that mean harm, and workers that die."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from pebble import ProcessExpired

from answer_pairs import EQUAL, boxed
from dibs.config import VerifyConfig
from dibs.rollouts.verify.pool import VerifierPool, _LostError
from dibs.rollouts.verify.verifiers import build_verifier


def pool(**options) -> VerifierPool:
    verifier = build_verifier(VerifyConfig(workers=2, **options), "some.jsonl")
    assert isinstance(verifier, VerifierPool)
    return verifier


@pytest.fixture(scope="module")
def math():
    verifier = pool(timeout=30)
    yield verifier
    verifier.close()


def statuses(verifier, items) -> list[str]:
    return [verdict.status for verdict in verifier.verdicts(items)]


def test_gold_answers_accept_themselves_and_not_each_other(math):
    """Of every pair of golds that are not equal in value, as far as the pairs tell."""
    golds = list(dict.fromkeys(gold for gold, _ in EQUAL))
    assert set(statuses(math, [(gold, boxed(gold)) for gold in golds])) == {"accepted"}
    kinds = [
        r"\text{Evelyn}",
        "7",
        r"\frac{3}{4}",
        "x^2+2x+1",
        "(0,1]",
        r"\{1,2,3\}",
        "(1,2)",
        "3+4i",
    ]
    wrong = [(one, boxed(other)) for one in kinds for other in kinds if one != other]
    assert set(statuses(math, wrong)) == {"rejected"}


HARMFUL = [
    # (gold, completion, statuses that are right)
    ("7", boxed("9^{9^{9^{9}}}"), {"rejected"}),
    ("7", boxed("2^{2^{2^{2^{2^{2}}}}}"), {"rejected"}),
    ("7", boxed("10^{10^{10}}!"), {"rejected"}),
    ("7", boxed("100000000!"), {"rejected"}),
    ("7", boxed("(" * 3000 + "1" + ")" * 3000), {"timeout", "error", "rejected"}),
    ("7", boxed("{" * 4000 + "}" * 4000), {"timeout", "error", "rejected"}),
    ("7", "{" * 10**6, {"no_answer"}),
    ("7", "{" * 10**6 + r"\boxed{7}", {"accepted"}),
    ("7", r"\boxed{" * 10**6, {"no_answer"}),
    ("7", r"\boxed{" * 1000 + "7" + "}" * 1000, {"accepted", "rejected"}),
    ("7", "x" * 50_000_000, {"no_answer"}),
    ("7", "x" * 50_000_000 + boxed("7"), {"accepted"}),
    ("7", boxed("7") + "x" * 50_000_000, {"no_answer"}),
    ("7", "\0" * 1000 + boxed("7"), {"accepted"}),
    ("7", boxed("\0" * 10), {"rejected"}),
    ("7", boxed("7\0"), {"rejected", "accepted"}),
    ("7", boxed(":(){ :|:& };:"), {"rejected"}),
    ("7", boxed("__import__('os').system('touch /tmp/dibs-harmed')"), {"rejected"}),
    ("7", boxed(r"\input{/etc/passwd}"), {"rejected"}),
    ("7", boxed("import os; os.abort()"), {"rejected"}),
    ("7", boxed("7") + boxed("8"), {"rejected"}),
    ("8", "Maybe " + boxed("7") + " No, wait. " + boxed("8"), {"accepted"}),
    ("7", " or ".join(boxed(str(i)) for i in range(1, 8)), {"rejected"}),
    ("6", " or ".join(boxed(str(i)) for i in range(1, 8)), {"rejected"}),
    ("7", ", ".join(rf"\boxed{{{i}}}" for i in range(1, 8)), {"rejected"}),
    ("7", "\n".join(rf"$\boxed{{{i}}}$" for i in range(1, 8)), {"rejected"}),
    ("7", boxed(", ".join(map(str, range(1000)))), {"rejected"}),
    ("7", boxed(" or ".join(map(str, range(20)))), {"rejected"}),
    ("B", boxed("A, B, C, D, E"), {"rejected"}),
    ("B", boxed("ABCDE"), {"rejected"}),
    ("7", boxed("1=2=3=4=5=6=7"), {"rejected"}),
    ("7", boxed(r"\mathbb{R}"), {"rejected"}),
    ("7", boxed(r"x \in \mathbb{R}"), {"rejected"}),
    ("7", boxed(r"(-\infty, \infty)"), {"rejected"}),
    ("7", boxed("x"), {"rejected"}),
    ("7", boxed("?"), {"rejected"}),
    ("7", boxed(""), {"no_answer"}),
    ("7", boxed(" \n\t "), {"no_answer"}),
    ("7", boxed(r"\frac{7}{0}"), {"rejected"}),
    ("7", boxed(r"\frac{0}{0}"), {"rejected"}),
    ("7", boxed(r"\sqrt{" * 300 + "2" + "}" * 300), {"rejected", "timeout", "error"}),
    ("7", boxed("+".join(["1"] * 6000)), {"rejected", "timeout", "error"}),
    ("7", boxed("x^" * 2000 + "2"), {"rejected", "timeout", "error"}),
    ("7", boxed("\U0001f600" * 1000), {"rejected"}),
    ("7", boxed("\u202e7"), {"rejected", "accepted"}),
    ("7", boxed("\uff17"), {"rejected", "accepted"}),
    ("7", boxed(r"\sum_{k=1}^{10^{12}} \frac{1}{k^2}"), {"rejected", "timeout", "error"}),
    ("7", boxed(r"\begin{pmatrix} " * 500), {"rejected", "timeout", "error", "no_answer"}),
    ("7", boxed("%s%s%n{0.__class__}"), {"rejected"}),
    ("7", "\ud800" + boxed("7"), {"accepted", "error"}),
    ("9^{9^{9^{9}}}", boxed("7"), {"rejected"}),
]


def memory_in_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE") / 2**20


def descendants() -> set[int]:
    """Processes that come of this one: the server that forks workers, and the workers."""
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents[int(stat.parent.name)] = int(fields[1])
    found, known = set(), {os.getpid()}
    while known:
        known = {child for child, parent in parents.items() if parent in known}
        found |= known
    return found


def test_harmful_completions_do_no_harm():
    before, standing = memory_in_mb(), descendants()
    # What has an end is given the time it takes on a busy machine; what has none is cut off soon.
    endless = [item for item in HARMFUL if "timeout" in item[2]]
    finite = [item for item in HARMFUL if "timeout" not in item[2]]
    wrong = []
    for items, timeout in [(endless, 2), (finite, 60)]:
        verifier = pool(timeout=timeout)
        started = time.monotonic()
        told = statuses(verifier, [(gold, text) for gold, text, _ in items])
        spent = time.monotonic() - started
        verifier.close()
        assert spent < timeout * len(items)  # every item within its deadline, on two workers
        wrong += [
            (gold, text[:60], got)
            for (gold, text, right), got in zip(items, told, strict=True)
            if got not in right
        ]
    assert wrong == []
    assert len(HARMFUL) >= 40
    assert not Path("/tmp/dibs-harmed").exists()
    assert memory_in_mb() < before + 300
    time.sleep(0.5)
    # The server that forks workers stays, and Python's tracker of resources; the workers are gone.
    assert len(descendants() - standing) <= 2


def test_a_users_function_with_faults_of_every_kind():
    verifier = pool(verifier="own_verifiers:sleepy", timeout=2, accept_threshold=0.5)
    texts = ["right", "wrong", "die", "right", "raise", "half", "eat", "sleep 60", "right"]
    texts += ["exit", "interrupt", "nan"]
    verdicts = list(verifier.verdicts([(os.devnull, text) for text in texts]))
    verifier.close()
    assert [v.status for v in verdicts] == [
        *("accepted", "rejected", "error", "accepted", "error", "accepted", "error", "timeout"),
        *("accepted", "error", "error", "error"),
    ]
    assert verdicts[9].reason == "SystemExit: 1"
    assert verdicts[11].reason == "the reward is nan"
    assert verdicts[5].reward == 0.5
    assert "died" in verdicts[2].reason
    assert verdicts[4].reason == "RuntimeError: I do not know"
    assert verdicts[6].reason == "out of memory"
    assert "within 2 s" in verdicts[7].reason


def read_pid(note: Path) -> int:
    while not note.exists() or not note.read_text():
        time.sleep(0.05)
    return int(note.read_text())


def test_a_worker_killed_from_outside_costs_no_verdict(tmp_path):
    verifier = pool(verifier="own_verifiers:sleepy", timeout=30)
    note = tmp_path / "pid"
    items = [(str(note), text) for text in ["right", "slow once", *["right"] * 50]]
    killer = threading.Thread(target=lambda: os.kill(read_pid(note), signal.SIGKILL))
    killer.start()
    told = statuses(verifier, items)
    killer.join()
    verifier.close()
    assert told == ["accepted"] * 52


def test_an_item_that_is_judged_again_waits_for_all_before_it(tmp_path, monkeypatch):
    """Its place is behind all others, which take longer together than workers may stand still."""
    verifier = pool(verifier="own_verifiers:sleepy", timeout=2)
    assert statuses(verifier, [(os.devnull, "right")] * 2) == ["accepted"] * 2
    monkeypatch.setattr("dibs.rollouts.verify.pool._START", 0.0)
    first, note = verifier._pool, tmp_path / "pid"
    killer = threading.Thread(target=lambda: os.kill(read_pid(note), signal.SIGKILL))
    killer.start()
    items = [(str(note), "slow once"), *[(os.devnull, "sleep 0.25")] * 40]
    assert statuses(verifier, items)[0] == "accepted"
    killer.join()
    assert verifier._pool is first  # it was at work all the time
    verifier.close()


def test_lost_workers_are_no_deaths_of_an_item(monkeypatch):
    """Two losses in a row cost nothing; from the third on, each costs one verdict."""
    verifier = pool(verifier="own_verifiers:sleepy", timeout=30)
    verdict, losses = verifier._verdict, iter([True, True, False, True, True, True, True])

    def lossy(item):
        if next(losses, False):
            raise _LostError("they stand still")
        return verdict(item)

    monkeypatch.setattr(verifier, "_verdict", lossy)
    monkeypatch.setattr(verifier, "_note", lambda future: None)
    items = [(os.devnull, "right")] * 4
    assert statuses(verifier, items[:1]) == ["accepted"]
    verifier._losses = 0  # as a verdict leaves it
    assert statuses(verifier, items) == ["error", "error", "accepted", "accepted"]
    verifier.close()


def test_a_worker_that_dies_between_losses_is_judged_again(monkeypatch):
    verifier = pool(verifier="own_verifiers:sleepy", timeout=30)
    verdict, faults = verifier._verdict, iter([ProcessExpired("gone"), _LostError("lost")])

    def faulty(item):
        for fault in faults:
            raise fault
        return verdict(item)

    monkeypatch.setattr(verifier, "_verdict", faulty)
    assert statuses(verifier, [(os.devnull, "right")]) == ["accepted"]
    verifier.close()


def workers_of(verifier: Any) -> list[int]:
    return list(verifier._pool._pool_manager.worker_manager.workers)


def test_idle_workers_killed_from_outside_are_replaced():
    """And nothing is left of them: no process, no open file."""
    verifier = pool(verifier="own_verifiers:sleepy", timeout=5)
    items = [(os.devnull, text) for text in ("right", "wrong")]
    files = []
    for killed in (0, 1, 2, 1, 2):
        assert statuses(verifier, items) == ["accepted", "rejected"]
        files.append(len(os.listdir("/proc/self/fd")))
        for pid in workers_of(verifier)[:killed]:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.5)
    assert statuses(verifier, items) == ["accepted", "rejected"]
    assert max(files) - min(files) <= 2
    verifier.close()


@pytest.mark.slow
def test_workers_that_stand_still_are_replaced(monkeypatch):
    """One was killed while it held the lock that all of them share."""
    monkeypatch.setattr("dibs.rollouts.verify.pool._START", 5.0)
    verifier = pool(verifier="own_verifiers:sleepy", timeout=10)
    items = [(os.devnull, text) for text in ("right", "wrong") * 20]
    expected = ["accepted", "rejected"] * 20
    assert statuses(verifier, items) == expected
    manager: Any = verifier._pool
    channel = manager._pool_manager.worker_manager.workers_channel
    assert channel.mutex.acquire()
    started = time.monotonic()
    assert statuses(verifier, items) == expected
    assert 25 <= time.monotonic() - started < 120  # twice the time of an item, and that of a start
    verifier.close()


def test_verdicts_come_while_items_are_still_made():
    verifier = pool(verifier="own_verifiers:sleepy", timeout=5)
    made = []

    def items():
        for i in range(4200):
            made.append(i)
            yield os.devnull, "right"

    verdicts = verifier.verdicts(items())
    assert next(verdicts).status == "accepted"
    assert len(made) < 4200  # no more than a window ahead
    assert sum(1 for _ in verdicts) == 4199
    verifier.close()


@pytest.mark.slow
def test_what_nobody_waits_for_is_dropped():
    verifier = pool(verifier="own_verifiers:sleepy", timeout=5)
    items = [(os.devnull, text) for text in ["right", *["sleep 4"] * 20]]
    assert next(verifier.verdicts(items)).status == "accepted"
    started = time.monotonic()
    assert statuses(verifier, [(os.devnull, "right")]) == ["accepted"]
    assert time.monotonic() - started < 30  # undropped, they take 40
    verifier.close()


def test_workers_do_not_outlive_a_killed_parent(tmp_path):
    note = tmp_path / "pid"
    code = (
        "import sys; sys.path.insert(0, sys.argv[2])\n"
        "from dibs.config import VerifyConfig\n"
        "from dibs.rollouts.verify.verifiers import build_verifier\n"
        "if __name__ == '__main__':\n"
        "    v = build_verifier(VerifyConfig(verifier='own_verifiers:sleepy', timeout=0.5), 'x')\n"
        "    list(v.verdicts([(sys.argv[1], 'stuck')]))\n"
    )
    script = tmp_path / "script.py"
    script.write_text(code)
    parent = subprocess.Popen([sys.executable, script, note, Path(__file__).parents[1]])
    while not note.exists() or not note.read_text():
        assert parent.poll() is None, "the script ended before its worker started"
        time.sleep(0.01)
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 20  # the alarm comes after 2 x 0.5 + 5 s
    while Path(f"/proc/{note.read_text()}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)
