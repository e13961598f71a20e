"""The sheet that figures of published measurements share: title, panels, verdicts below."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PANELS_HEIGHT = 4.9  # inches, titles and axis labels included


@contextmanager
def sheet(stem: Path, title: str, subtitle: str, findings: Sequence[Any], panels: int = 2) -> Iterator[Any]:
    """Axes in a row to draw on; writes stem.png and stem.svg at the end of the block."""
    from lab.report import figure as draw

    with draw.style():
        below = draw.caption_height(findings) + 0.2
        height = PANELS_HEIGHT + below
        figure, axes = draw.plt.subplots(1, panels, figsize=(10.4, height))
        top, bottom = 1 - 0.85 / height, (below + 0.55) / height
        figure.subplots_adjust(left=0.075, right=0.975, wspace=0.26, top=top, bottom=bottom)
        figure.text(0.02, 1 - 0.12 / height, title, size=12, weight="bold", va="top")
        figure.text(0.02, 1 - 0.38 / height, subtitle, size=8.5, color=draw.FAINT, va="top")
        yield axes
        draw.caption(figure, findings, below - 0.05)
    draw.save(figure, stem)


def png_of(stem: Path) -> Path:
    """Where `sheet` wrote the picture."""
    return stem.with_name(stem.name + ".png")
