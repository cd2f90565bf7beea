"""The arguments of ``dibs report``; loads nothing that takes time."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

_HELP = """\
Figures and one HTML page from run folders, or folders of them: finished, unfinished or damaged.

Writes FOLDER/index.html, which needs nothing but itself, and FOLDER/figures. Runs that differ in the
seed only are one arm, with intervals over seeds."""


def add_report(commands: Any, json_help: str) -> None:
    """Add the command to argparse's ``commands``: runs, out, watch (None without it) and json."""
    report = commands.add_parser(
        "report",
        help="figures and one HTML page from run folders",
        description=_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    report.add_argument("runs", metavar="RUN", type=Path, nargs="+")
    report.add_argument(
        "--out",
        metavar="FOLDER",
        type=Path,
        help="where to write (default: RUN/report; of several: report)",
    )
    report.add_argument(
        "--watch",
        metavar="SECONDS",
        type=_seconds,
        nargs="?",
        const=10.0,
        help="write anew every so many seconds (default: 10) until all runs are finished",
    )
    report.add_argument("--json", action="store_true", help=json_help)


def _seconds(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number; put --watch after RUN") from None
