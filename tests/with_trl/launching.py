"""``training.py`` in processes of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

SCRIPT = Path(__file__).with_name("training.py")


def launched(
    settings: dict[str, Any], processes: int, timeout: float = 240
) -> list[dict[str, Any]]:
    """What each process tells; an empty list where the run did not end well."""
    folder = Path(settings["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    told, given = folder / "told.json", folder / "settings.json"
    for old in folder.glob("told.json.*"):
        old.unlink()
    given.write_text(json.dumps(settings), encoding="utf-8")
    command = [str(SCRIPT), str(given), str(told)]
    if processes > 1:
        start = ["-m", "torch.distributed.run", "--nproc_per_node", str(processes)]
        command = [*start, "--standalone", *command]
    with (folder / "stderr.txt").open("w+") as errors:
        process = subprocess.Popen(
            [sys.executable, *command],
            stdout=subprocess.DEVNULL,
            stderr=errors,
        )
        try:
            status = process.wait(timeout)
        except subprocess.TimeoutExpired:
            # torchrun that is asked to end takes its workers with it.
            process.terminate()
            status = process.wait(60)
        if status:
            errors.seek(0)
            sys.stderr.write(errors.read()[-4000:])
            return []
    found = [json.loads(Path(f"{told}.{rank}").read_text()) for rank in range(processes)]
    assert [each["processes"] for each in found] == [processes] * processes
    return found
