"""A matplotlib figure as an SVG element that takes the text color and width of an HTML page."""

from __future__ import annotations

import io
from typing import Any
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from matplotlib import rc_context
from matplotlib.figure import Figure

from dibs.report.looks import INK

_SVG = "http://www.w3.org/2000/svg"
_LINK = "{http://www.w3.org/1999/xlink}href"
_RC: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "dibs"}
_CLASSES = ("step-", "ink-")
"""Beginnings of the ids that become classes, since the page's script and style look for those."""


def svg_bytes(figure: Figure, transparent: bool = False) -> bytes:
    """Return the figure as an SVG file. The same figure has the same bytes every time."""
    buffer = io.BytesIO()
    with rc_context(_RC):
        figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=transparent)
    return buffer.getvalue()


def inline_svg(figure: Figure, name: str, description: str) -> str:
    """Return the figure as an ``<svg>`` element with a transparent background.

    Args:
        figure: lines and text take the color of the text around the element.
        name: prefix of its ids, which must differ from those of other figures of the page.
        description: text for screen readers.
    """
    ElementTree.register_namespace("", _SVG)
    root = ElementTree.fromstring(svg_bytes(figure, transparent=True))
    for parent in list(root.iter()):
        for child in list(parent):
            if _kind(child) in ("metadata", "style"):  # the page has a style sheet of its own
                parent.remove(child)
        _share_style(parent)
        _adapt(parent, name)
    for size in ("width", "height"):
        root.attrib.pop(size, None)
    root.set("role", "img")
    root.set("aria-label", description)
    return ElementTree.tostring(root, encoding="unicode")


def _share_style(group: Element) -> None:
    """Move a style that all dots of a group share to the group, which makes the page a third smaller."""
    dots = [child for child in group if _kind(child) == "use"]
    if len({dot.get("style") for dot in dots}) == 1 and len(dots) == len(group):
        group.set("style", dots[0].get("style", ""))
        for dot in dots:
            dot.attrib.pop("style", None)
            for key in ("x", "y"):
                dot.set(key, f"{float(dot.get(key, 0)):.2f}")


def _adapt(element: Element, name: str) -> None:
    """Adapt colors, ids and references to the page, and drop the white space between elements."""
    if _kind(element) != "text":
        element.text = (element.text or "").strip()
    element.tail = (element.tail or "").strip()
    kept = _kind(element) in ("path", "clipPath", "image")
    for key, value in list(element.attrib.items()):
        if key == "id":
            del element.attrib[key]
            if value.startswith(_CLASSES):
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
