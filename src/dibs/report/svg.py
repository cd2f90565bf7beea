"""A matplotlib figure as an SVG element of an HTML page: it takes the page's text color and width."""

from __future__ import annotations

import io
from typing import Any
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from matplotlib import rc_context
from matplotlib.figure import Figure

from dibs.report.panels import INK

_SVG = "http://www.w3.org/2000/svg"
_LINK = "{http://www.w3.org/1999/xlink}href"
_RC: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "dibs"}
_STEP = "step-"
"""Ids of groups that the page's script looks for; they become classes."""


def svg_bytes(figure: Figure, transparent: bool = False) -> bytes:
    """The figure as an SVG file, the same bytes every time."""
    buffer = io.BytesIO()
    with rc_context(_RC):
        figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=transparent)
    return buffer.getvalue()


def inline_svg(figure: Figure, name: str, description: str) -> str:
    """The figure as an ``<svg>`` element without a ground, in the color of the text around it.

    ``name`` keeps its ids apart from those of other figures of the page; ``description`` is what a
    screen reader says.
    """
    ElementTree.register_namespace("", _SVG)
    root = ElementTree.fromstring(svg_bytes(figure, transparent=True))
    for parent in list(root.iter()):
        for child in list(parent):
            if _kind(child) in ("metadata", "style"):  # the page's style sheet has the latter
                parent.remove(child)
        _share_style(parent)
        _adapt(parent, name)
    for size in ("width", "height"):
        root.attrib.pop(size, None)
    root.set("role", "img")
    root.set("aria-label", description)
    return ElementTree.tostring(root, encoding="unicode")


def _share_style(group: Element) -> None:
    """Dots that are alike get their style from the group around them: a third of the page, otherwise."""
    dots = [child for child in group if _kind(child) == "use"]
    if len({dot.get("style") for dot in dots}) == 1 and len(dots) == len(group):
        group.set("style", dots[0].get("style", ""))
        for dot in dots:
            dot.attrib.pop("style", None)
            for key in ("x", "y"):
                dot.set(key, f"{float(dot.get(key, 0)):.2f}")


def _adapt(element: Element, name: str) -> None:
    """Colors, ids and references that fit into the page; no room for white space between elements."""
    if _kind(element) != "text":
        element.text = (element.text or "").strip()
    element.tail = (element.tail or "").strip()
    kept = _kind(element) in ("path", "clipPath", "image")
    for key, value in list(element.attrib.items()):
        if key == "id":
            del element.attrib[key]
            if value.startswith(_STEP):
                element.set("class", value)
            elif kept:
                element.set(key, f"{name}-{value}")
        elif key == _LINK:
            del element.attrib[key]
            element.set("href", f"#{name}-{value[1:]}" if value.startswith("#") else value)
        else:
            colored = value.replace(INK, "currentColor")
            element.set(key, colored.replace("url(#", f"url(#{name}-"))


def _kind(element: Element) -> str:
    return element.tag.rpartition("}")[2]
