"""Colors, each with one meaning, and the look by which an arm is known in every figure and table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.colors import LinearSegmentedColormap, ListedColormap
from matplotlib.markers import MarkerStyle

INK = "#1c2127"
"""Color of lines and text. The page replaces it by the color of its text."""
COLORS = (
    "#0072b2",
    "#d55e00",
    "#008f68",
    "#b8629a",
    "#7a6fd0",
    "#8a7a00",
    "#c63bc6",
    "#5d8c0f",
    "#dd3b3b",
    "#3f8fdc",
)
"""Colors of arms; their contrast is 3:1 or more on white and on the page's dark background."""
PART_COLORS = ("#5b7f95", "#8c7355", "#b06a6a", "#7b838c")
"""Colors of what rollouts are spent on. No arm has one of them, nor any other thing but arms theirs."""
STEPS = LinearSegmentedColormap.from_list("steps", ["#3f8f9a", "#8f7a86", "#c04b6e"])
"""Colors of steps, early to late, which can be seen on both backgrounds too."""
SHARES = (0.0, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0)
"""Ends of the classes of shares that the map of accept rates tells apart."""
_SHADES = len(SHARES) - 1
SHARE_COLORS = ListedColormap(
    [
        (*(int(INK[i : i + 2], 16) / 255 for i in (1, 3, 5)), k / (_SHADES - 1))
        for k in range(_SHADES)
    ],
    "shares",
)
"""Ink, the more opaque the larger a share is, so that both backgrounds shine through small ones."""
STYLE: dict[Any, Any] = {
    "text.parse_math": False,  # names of folders and allocators are no formulas
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "axes.titlesize": 10,
    "figure.titlesize": 10,
}
_MARKERS = "osD^vP*"


@dataclass(frozen=True)
class Look:
    """Color and marker of an arm. ``marker``: as matplotlib names it."""

    color: str
    marker: str

    @property
    def outline(self) -> str:
        """The marker as the path of an SVG element whose view box is -1 -1 2 2."""
        style = MarkerStyle(self.marker)
        path = style.get_path().transformed(style.get_transform())
        corners = np.asarray(path.to_polygons()[0], dtype=float)
        corners *= np.array([0.95, -0.95]) / np.abs(corners).max()
        return "M" + "L".join(f"{x:.2f} {y:.2f}" for x, y in corners) + "Z"


def looks(count: int) -> Sequence[Look]:
    """Return the looks of so many arms. Only after 70 of them does a look come again."""
    return [Look(COLORS[i % len(COLORS)], _MARKERS[i % len(_MARKERS)]) for i in range(count)]
