"""One point for each run: final loss over the bytes that a peer has sent, which are logarithmic."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import matplotlib

matplotlib.use("Agg")  # a machine without a screen is the usual one

from matplotlib import pyplot

# Okabe and Ito's colours, and a marker each, so that no reader needs the colours.
STYLES = {
    "ddp": ("#000000", "s"),
    "diloco": ("#D55E00", "o"),
    "async-diloco": ("#E69F00", "D"),
    "streaming": ("#0072B2", "^"),
    "sparse-loco": ("#009E73", "v"),
}


def draw(points: Sequence[tuple[str, int, float]], bar: float, caption: str, path: Path) -> None:
    """Writes the picture; points are method, bytes sent by a peer, loss."""
    figure, axes = pyplot.subplots(figsize=(7.5, 4.8), layout="constrained")
    for method in dict.fromkeys(method for method, _, _ in points):
        mine = [(sent / 1e6, loss) for name, sent, loss in points if name == method]
        colour, marker = STYLES[method]
        sent, losses = zip(*mine, strict=True)
        axes.scatter(sent, losses, color=colour, marker=marker, s=55, label=method, zorder=3)
    ddp = fmean(loss for method, _, loss in points if method == "ddp")
    axes.axhline(bar * ddp, color="#777777", linestyle="--", linewidth=1.2)
    axes.annotate(
        f"{bar:g} × DDP", (0.01, bar * ddp), xycoords=("axes fraction", "data"), va="bottom"
    )
    axes.set_xscale("log")
    axes.set_xlabel("MB sent by one peer in the whole run (logarithmic; left is better)")
    axes.set_ylabel("final held-out loss, nats per byte")
    axes.set_title(f"loss and traffic of each method\n{caption}", fontsize=11, loc="left")
    axes.grid(True, color="#dddddd", linewidth=0.8)
    axes.legend(frameon=False)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.savefig(path, dpi=140)
    pyplot.close(figure)
