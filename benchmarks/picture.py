"""One panel for each number of ranks: time over size, both logarithmic."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import matplotlib

matplotlib.use("Agg")  # a machine without a screen is the usual one

from matplotlib import pyplot
from matplotlib.ticker import FuncFormatter, NullLocator

from benchmarks.measure import Cell
from benchmarks.report import TITLES, is_reference
from pccl.bench.arithmetic import show_bytes

# Okabe and Ito's colours, and a marker and a dash each, so that no reader needs the colours.
STYLES: Final[dict[str, dict[str, Any]]] = {
    "pccl": {"color": "#D55E00", "marker": "o", "linestyle": "-", "linewidth": 2.4},
    "pccl-out": {"color": "#E69F00", "marker": "D", "linestyle": "--", "linewidth": 1.6},
    "gloo": {"color": "#0072B2", "marker": "s", "linestyle": "-.", "linewidth": 1.6},
    "openmpi": {"color": "#009E73", "marker": "^", "linestyle": ":", "linewidth": 2.0},
}


def draw(cells: Sequence[Cell], caption: str, path: Path) -> None:
    """Writes the picture to `path`."""
    worlds = sorted({cell.world for cell in cells})
    figure, panels = pyplot.subplots(
        1, len(worlds), figsize=(4.4 * len(worlds) + 0.6, 4.8), sharey=True, squeeze=False
    )
    for panel, world in zip(panels[0], worlds, strict=True):
        _draw_panel(panel, sorted((c for c in cells if c.world == world), key=lambda c: c.size))
        panel.set_title(f"{world} ranks")
    panels[0][0].set_ylabel("median time, ms")
    panels[0][0].legend(frameon=False, loc="upper left")
    figure.suptitle("all-reduce, f32 sum, over TCP on loopback (lower is better)", fontsize=13)
    figure.text(0.5, 0.01, caption, ha="center", fontsize=8, color="#555555")
    figure.tight_layout(rect=(0, 0.04, 1, 1))
    figure.savefig(path, dpi=140)
    pyplot.close(figure)


def _draw_panel(panel: Any, cells: Sequence[Cell]) -> None:
    for form in TITLES:
        if is_reference(form):
            continue
        points = [
            (cell.size, cell.timings[form].median_s * 1e3) for cell in cells if form in cell.timings
        ]
        if points:
            sizes, times = zip(*points, strict=True)
            panel.plot(sizes, times, label=TITLES[form], markersize=6, **STYLES[form])
    panel.set_xscale("log", base=2)
    panel.set_yscale("log")
    panel.set_xticks([cell.size for cell in cells])
    panel.xaxis.set_minor_locator(NullLocator())
    panel.xaxis.set_major_formatter(FuncFormatter(lambda size, _: show_bytes(int(size))))
    panel.yaxis.set_major_formatter(FuncFormatter(lambda ms, _: f"{ms:g}"))
    panel.tick_params(axis="x", labelrotation=35)
    panel.grid(True, which="major", color="#dddddd", linewidth=0.8)
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)
