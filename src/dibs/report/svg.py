"""A matplotlib figure as an SVG element of an HTML page: it takes the page's text colour and width."""

from __future__ import annotations

import io
from typing import Any
from xml.etree import ElementTree

from matplotlib import rc_context
from matplotlib.figure import Figure

from dibs.report.panels import INK

_SVG = "http://www.w3.org/2000/svg"
_LINK = "{http://www.w3.org/1999/xlink}href"
_RC: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "dibs"}
_KEPT_ID = "step-"
"""Ids of groups that the page's script looks for; they become classes."""


def svg_bytes(figure: Figure) -> bytes:
    """The figure as an SVG file, the same bytes every time."""
    buffer = io.BytesIO()
    with rc_context(_RC):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def inline_svg(figure: Figure, name: str, description: str) -> str:
    """The figure as an ``<svg>`` element without a ground, in the colour of the text around it.

    ``name`` keeps its ids apart from those of other figures of the page; ``description`` is what a
    screen reader says.
    """
    ElementTree.register_namespace("", _SVG)
    ElementTree.register_namespace("xlink", _LINK[1:].partition("}")[0])
    buffer = io.BytesIO()
    with rc_context(_RC):
        figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    root = ElementTree.fromstring(buffer.getvalue())
    for child in root.findall(f"{{{_SVG}}}metadata"):
        root.remove(child)
    for element in root.iter():
        _adapt(element, name)
    for size in ("width", "height"):
        root.attrib.pop(size, None)
    root.set("role", "img")
    root.set("aria-label", description)
    return ElementTree.tostring(root, encoding="unicode")


def _adapt(element: ElementTree.Element, name: str) -> None:
    used = element.tag in {f"{{{_SVG}}}{tag}" for tag in ("path", "clipPath", "image")}
    for key, value in list(element.attrib.items()):
        if key == "id" and value.startswith(_KEPT_ID):
            element.set("class", value)
            del element.attrib[key]
        elif key == "id" and used:
            element.set(key, f"{name}-{value}")
        elif key == "id":
            del element.attrib[key]
        elif key == _LINK and value.startswith("#"):
            element.set(key, f"#{name}-{value[1:]}")
        else:
            coloured = value.replace(INK, "currentColor")
            element.set(key, coloured.replace("url(#", f"url(#{name}-"))
