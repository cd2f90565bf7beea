"""Runs as one self-contained HTML page: figures, tables, completions and configurations."""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from dibs import __version__
from dibs.report.arms import Arm, differing_keys
from dibs.report.completions import Completions
from dibs.report.figures import PageFigure
from dibs.report.svg import inline_svg
from dibs.report.tables import session_rows

_ENVIRONMENT = Environment(
    loader=PackageLoader("dibs.report", "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_CAPTIONS = {
    "accuracy-steps": "Arms are at equal optimizer updates here if their steps have equally many.",
    "accuracy-rollouts": "Completions sampled in training, pilots included, evaluation left out.",
    "accuracy-tokens": "Completion tokens sampled in training, pilots included.",
    "accuracy-seconds": "Time without evaluation and without the variance meter. It depends on what "
    "else the machine did.",
    "log-accept-rate": "Mean over held-out prompts of ln p_i, which log_likelihood raises. p_i is "
    "(accepted + 1/2) / (n + 1). Intervals are over seeds only.",
    "budget": "Only mode pilot throws pilots away. If a baseline is subtracted, a group that is all "
    "accepted or all rejected has no gradient. Rollouts learned from have an advantage other than 0.",
    "counts": "A dot is a prompt in a step: how many completions it got, against its accept rate. The "
    "rate is that of the pilots if there are any. Rates of exactly 0 and 1 are in the gray strips, "
    "early steps on the left, and above stands their share of all dots. The slider shows single steps.",
    "accept-rates": "Each column is a step and shows how its prompts spread over five bins of accept "
    "rates: the darker against the page, the more. In a long run several steps share a column.",
    "spending": "The same parts as in the figure of the whole budget, for each step; means over seeds.",
    "variance": "Below 1 the gradient is less noisy than under uniform counts. Measurements come from "
    "the step's own completions and have a 95% interval, over seeds if there are several.",
}


@dataclass(frozen=True)
class Contents:
    """Everything that the page shows.

    ``verdict``: lines that the page opens with. ``arm_rows`` and ``run_rows``: rows of
    :mod:`dibs.report.tables`. ``figures``: results of :func:`figure_context`.
    """

    verdict: Sequence[str]
    arms: Sequence[Arm]
    arm_rows: Sequence[Mapping[str, Any]]
    run_rows: Sequence[Mapping[str, Any]]
    figures: Sequence[Mapping[str, Any]]
    completions: Completions


def figure_context(figure: PageFigure) -> dict[str, Any]:
    """Convert a figure to the values that the template shows."""
    kind = figure.name.rstrip("0123456789").rstrip("-")
    subject = figure.subject if figure.arm is None else f"{figure.subject}: {figure.arm}"
    return {
        "name": figure.name,
        "title": figure.subject,
        "caption": _CAPTIONS[kind],
        "arm": figure.arm,
        "steps": list(figure.steps),
        "svg": Markup(inline_svg(figure.figure, figure.name, subject)),
    }


def render_page(contents: Contents, refresh: float | None = None) -> str:
    """Return the page as text.

    Args:
        contents: what it shows.
        refresh: seconds between two reloads of the page; None never reloads it.
    """
    script = _source("page.js")
    arms = contents.arms
    page = _ENVIRONMENT.get_template("page.html").render(
        version=__version__,
        generated=time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime()),
        style=Markup(_source("page.css")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        refresh=refresh,
        verdict=contents.verdict,
        swatches={arm.label: _swatch(arm) for arm in arms},
        arms=contents.arm_rows,
        runs=contents.run_rows,
        figures=[figure for figure in contents.figures if figure["arm"] is None],
        of_arms=[
            (arm.label, [figure for figure in contents.figures if figure["arm"] == arm.label])
            for arm in arms
        ],
        completions=contents.completions,
        completions_json=Markup(contents.completions.json),
        differing=differing_keys(arms),
        configurations=[
            (arm.label, str(run.path), yaml.safe_dump(dict(run.config), sort_keys=False))
            for arm in arms
            for run in arm.runs
        ],
        sessions=session_rows([run for arm in arms for run in arm.runs]),
    )
    return page.encode("utf-8", errors="backslashreplace").decode("utf-8")


def _swatch(arm: Arm) -> Markup:
    """The marker and color by which the figures show an arm."""
    return Markup(
        '<svg class="swatch" viewBox="-1 -1 2 2" aria-hidden="true"><path fill="{}" d="{}"/></svg>'
    ).format(arm.look.color, arm.look.outline)


def _source(name: str) -> str:
    loader = _ENVIRONMENT.loader
    assert loader is not None
    return loader.get_source(_ENVIRONMENT, name)[0]


def _whole(value: Any) -> str:
    return f"{value:,.0f}" if isinstance(value, int | float) else "–"  # noqa: RUF001


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else f"{value:{form}}"  # noqa: RUF001


def _share(value: float | None, total: float) -> str:
    return "–" if value is None or not total else f"{100 * value / total:.0f}%"  # noqa: RUF001


def _plain(value: Any) -> str:
    return "null" if value is None else str(value)


_ENVIRONMENT.filters.update(whole=_whole, number=_number, share=_share, plain=_plain)
