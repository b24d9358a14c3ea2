"""Draws a finished run: the loss over the steps, and how the run took the kill and the join.

Colours are of Okabe and Ito's palette, which people with colour-blindness can tell apart; kill and
join differ in line style and carry words, so nothing depends on colour alone.
"""

from collections import defaultdict
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pccl.demo.events import StepDone
from pccl.demo.report import losses
from pccl.demo.story import State, Story

PEER_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
KILL_COLOUR = "#D55E00"
JOIN_COLOUR = "#009E73"
FONT = {"size": 11}
LEGEND: dict[str, Any] = {"facecolor": "white", "edgecolor": "none", "framealpha": 1.0}


def draw(story: Story, path: Path) -> None:
    """Writes the picture of the run to `path` as a PNG."""
    figure = Figure(figsize=(10, 8), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(3, 1, sharex=True, height_ratios=(6, 1.5, 2.5))
    figure.suptitle(_title(story), fontsize=13, x=0.01, ha="left")
    _draw_losses(story, panels[0])
    _draw_members(story, panels[1])
    _draw_times(story, panels[2])
    for axes in panels:
        _mark(story, axes, words=axes is panels[0])
        axes.grid(axis="y", color="#dddddd", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=11)
    figure.align_ylabels(panels)
    panels[-1].set_xlabel("step", fontdict=FONT)
    panels[-1].set_xlim(0, story.plan.steps * 1.01)
    figure.savefig(path)


def mean_losses(story: Story) -> dict[int, float]:
    """Returns for each step the mean of its contributors' losses."""
    by_step: dict[int, list[float]] = defaultdict(list)
    for peer in story.peers.values():
        for done in peer.history:
            by_step[done.step].append(done.loss)
    return {step: fmean(by_step[step]) for step in sorted(by_step)}


def one_report_per_step(story: Story) -> list[StepDone]:
    """Returns the slowest peer's report of each step, in order."""
    slowest: dict[int, StepDone] = {}
    for peer in story.peers.values():
        for done in peer.history:
            if done.step not in slowest or done.step_s > slowest[done.step].step_s:
                slowest[done.step] = done
    return [slowest[step] for step in sorted(slowest)]


def _title(story: Story) -> str:
    digests = {peer.done.digest for peer in story.peers.values() if peer.done}
    text = "pccl demo: a byte-level GPT trained by peers that come and go"
    if len(digests) == 1:
        text += f"\nall surviving peers end with the same parameters, SHA-256 {digests.pop()[:16]}…"
    return text


def _draw_losses(story: Story, axes: Axes) -> None:
    for peer, colour in zip(story.peers.values(), PEER_COLOURS * 3, strict=False):
        fate = {State.KILLED: " (killed)"}.get(peer.state, " (joined)" if peer.joining else "")
        axes.plot(
            [done.step for done in peer.history],
            [done.loss for done in peer.history],
            color=colour,
            linewidth=0.9,
            alpha=0.55,
            label=f"{peer.name}{fate}",
        )
    mean = mean_losses(story)
    axes.plot(list(mean), list(mean.values()), color="black", linewidth=1.8, label="mean")
    if (ends := losses(story)) is not None:
        axes.plot(
            [0, story.plan.steps],
            ends,
            linestyle="none",
            marker="D",
            markersize=7,
            markerfacecolor="white",
            markeredgecolor="black",
            label=f"held-out text: {ends[0]:.2f} → {ends[1]:.2f} (×{ends[1] / ends[0]:.2f})",
            clip_on=False,
            zorder=5,
        )
    axes.set_ylabel("loss, nats per byte", fontdict=FONT)
    axes.set_ylim(bottom=0)
    if story.peers:
        axes.legend(loc="upper right", fontsize=10, ncols=2, **LEGEND)


def _draw_members(story: Story, axes: Axes) -> None:
    steps = one_report_per_step(story)
    axes.step(
        [done.step for done in steps],
        [done.world_size for done in steps],
        where="mid",
        color="black",
        linewidth=2.0,
    )
    axes.set_ylabel("members", fontdict=FONT)
    axes.set_ylim(0, max((done.world_size for done in steps), default=1) + 0.8)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))


def _draw_times(story: Story, axes: Axes) -> None:
    steps = one_report_per_step(story)
    numbers = [done.step for done in steps]
    parts = (("step_s", "#bbbbbb", "whole step"), ("reduce_s", "#0072B2", "averaging in it"))
    for part, colour, label in parts:
        times = [getattr(done, part) for done in steps]
        axes.bar(numbers, times, width=1.0, color=colour, label=label)
    axes.set_ylabel("seconds a step\n(slowest peer)", fontdict=FONT)
    axes.set_ylim(0, max((done.step_s for done in steps), default=1.0) * 1.3)
    if steps:
        axes.legend(loc="upper right", fontsize=10, ncols=2, **LEGEND)


def _mark(story: Story, axes: Axes, *, words: bool) -> None:
    marks = (
        (story.killed_at, f"{story.victim}: SIGKILL", KILL_COLOUR, "--"),
        (story.joined_at, f"{story.newcomer} joins", JOIN_COLOUR, "-."),
    )
    for at, text, colour, style in marks:
        if at is None:
            continue
        axes.axvline(at, color=colour, linestyle=style, linewidth=1.6, zorder=1.5)
        if words:
            late = at > 0.8 * story.plan.steps  # no room on the right
            axes.annotate(
                text,
                xy=(at, 0.04),
                xycoords=("data", "axes fraction"),
                xytext=(-5 if late else 5, 0),
                ha="right" if late else "left",
                textcoords="offset points",
                color=colour,
                fontsize=11,
                fontweight="bold",
                bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1.5},
            )
