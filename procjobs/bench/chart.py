"""The drain rates as a picture: plain SVG, readable on light and dark pages, with a title and the figures as text."""

from __future__ import annotations

from html import escape

from procjobs.bench.contenders import CONTENDERS
from procjobs.bench.run import Figures, ours
from procjobs.bench.shapes import EMPTY

__all__ = ["chart"]

_WIDTH, _LABELS, _NUMBERS, _ROW, _TOP = 820, 360, 80, 24, 44
_STYLE = (
    "text{font:13px system-ui,sans-serif;fill:#1f2328}.title{font-weight:600;font-size:15px}.number{text-anchor:start}"
    ".label{text-anchor:end}.bar{fill:#8c959f}.ours{fill:#0969da}.limit{fill:none;stroke:#8c959f;stroke-dasharray:4 3}"
    "@media(prefers-color-scheme:dark){text{fill:#e6edf3}.bar{fill:#7d8590}.ours{fill:#58a6ff}.limit{stroke:#7d8590}}"
)


def chart(figures: Figures) -> str:
    """Bars of jobs a second on empty tables, fastest first; no script, no font or picture from elsewhere."""
    found = [(c.name, figures.median("drain", c.name, EMPTY.name)) for c in CONTENDERS if c.task != "process"]
    rates = sorted(((rate, name) for name, rate in found if rate), reverse=True)
    most = max((rate for rate, _ in rates), default=1.0)
    height = _TOP + _ROW * len(rates) + 12
    title = "Jobs a second: a backlog of jobs that do nothing"
    words = "; ".join(f"{name}: {rate:,.0f}" for rate, name in rates)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img" aria-labelledby="t d">',
        f'<title id="t">{title}</title>',
        f'<desc id="d">{escape(words)}</desc>',
        f"<style>{_STYLE}</style>",
        f'<text class="title" x="8" y="24">{title}</text>',
    ]
    for number, (rate, name) in enumerate(rates):
        y = _TOP + number * _ROW
        width = max(1.0, (_WIDTH - _LABELS - _NUMBERS) * rate / most)
        kind = "ours" if ours(name) else "limit" if name.startswith("pgbench") else "bar"
        lines += [
            f'<text class="label" x="{_LABELS - 8}" y="{y + 15}">{escape(name)}</text>',
            f'<rect class="{kind}" x="{_LABELS}" y="{y + 3}" width="{width:.1f}" height="{_ROW - 8}" rx="2"/>',
            f'<text class="number" x="{_LABELS + width + 6:.1f}" y="{y + 15}">{rate:,.0f}</text>',
        ]
    return "\n".join([*lines, "</svg>"]) + "\n"
