"""Drawing with inline SVG: elements as text, and an axis of powers of ten."""

import dataclasses
import math
from collections.abc import Iterable
from html import escape
from typing import Self

WIDTH = 900  # of every drawing; the page scales it


def drawing(height: float, elements: Iterable[str], label: str) -> str:
    """An SVG image; `label` is read out to those who cannot see it."""
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label="{escape(label)}">'
        f"{''.join(elements)}</svg>"
    )


def element(tag: str, content: str = "", /, **attributes: str | float) -> str:
    """An element; numbers are rounded, `css` is its class, and `_` in a name stands for `-`."""
    spelled = {"css": "class"}
    pairs = (
        f' {spelled.get(key, key.replace("_", "-"))}="'
        + (f"{value:.4g}" if isinstance(value, int | float) else escape(value))
        + '"'
        for key, value in attributes.items()
    )
    return f"<{tag}{''.join(pairs)}>{content}</{tag}>"


def text(x: float, y: float, content: str, **attributes: str | float) -> str:
    """A line of text."""
    return element("text", escape(content), x=x, y=y, **attributes)


def titled(content: str, title: str) -> str:
    """Elements that show `title` when pointed at."""
    return element("g", element("title", escape(title)) + content)


@dataclasses.dataclass(frozen=True)
class LogAxis:
    """A vertical axis of powers of ten: the exponents at its ends, and where these are drawn."""

    low: int
    high: int
    bottom: float
    top: float

    @classmethod
    def around(cls, values: Iterable[float], bottom: float, top: float) -> Self:
        """The axis that holds all positive finite values."""
        exponents = [math.log10(v) for v in values if v > 0 and math.isfinite(v)] or [0.0]
        low = math.floor(min(exponents))
        return cls(low, max(math.ceil(max(exponents)), low + 1), bottom, top)

    def y(self, value: float) -> float:
        """Where a value is drawn: zero at the bottom; infinity and NaN at the top."""
        if not math.isfinite(value):
            return self.top
        exponent = math.log10(value) if value > 0 else self.low
        share = (exponent - self.low) / (self.high - self.low)
        return self.bottom - min(max(share, 0.0), 1.0) * (self.bottom - self.top)

    def ticks(self, left: float, right: float) -> Iterable[str]:
        """Its lines and numbers, six or so."""
        for exponent in range(self.low, self.high + 1, math.ceil((self.high - self.low) / 6)):
            y, label = self.y(10.0**exponent), f"1e{exponent}" if exponent else "1"
            yield element("line", css="grid", x1=left, x2=right, y1=y, y2=y)
            yield text(left - 8, y + 4, label, css="tick", text_anchor="end")
