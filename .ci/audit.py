"""Looks for known holes in the versions of constraints.txt, and for secrets in the repository's files.

Exits with 1 if anything is found. What cannot be looked up here is said, and is no failure.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
# Checksums and anchors look like secrets to the plugins that measure entropy. Where another plugin is
# wrong, the line has the comment "pragma: allowlist secret".
_WITHOUT = ("Base64HighEntropyString", "HexHighEntropyString")


def holes() -> list[str]:
    """One line for each known hole; prints how many versions could be looked up."""
    command = [
        BIN / "pip-audit",
        "-r",
        "constraints.txt",
        "--no-deps",
        "--disable-pip",
        "-f",
        "json",
    ]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300
    )
    try:
        packages = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        print(f"SKIPPED: pip-audit cannot ask for known holes here: {done.stderr.strip()[-200:]}")
        return []
    known = [each for each in packages if "vulns" in each]
    note = "" if known else "SKIPPED: the list of known holes cannot be had here; "
    print(f"{note}{len(known)} of {len(packages)} versions looked up")
    return [
        f"{each['name']} {each['version']}: {hole['id']}, mended in {', '.join(hole['fix_versions'])}"
        for each in known
        for hole in each["vulns"]
    ]


def secrets() -> list[str]:
    """One line for each secret in a file that git tracks."""
    without = [word for name in _WITHOUT for word in ("--disable-plugin", name)]
    # The name of a test, such as test_self_normalized_weighs_accepted_..., may look like a token.
    command = [BIN / "detect-secrets", "scan", *without, "--exclude-lines", "^def test_"]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=300
    )
    found = json.loads(done.stdout)["results"]
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    print(f"{len(tracked.stdout.splitlines())} files searched for secrets")
    return [
        f"{path}:{each['line_number']}: {each['type']}"
        for path, all_ in found.items()
        for each in all_
    ]


def main() -> int:
    """Print what was found."""
    found = holes() + secrets()
    for line in found:
        print(line)
    print(f"audit: {len(found)} found")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
