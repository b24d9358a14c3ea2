"""Judges a finished run, and writes it down as a table and as JSON.

The run is good if every check in `judge` holds.  What the loss check compares: the mean loss on
the held-out text, which nobody trains on, before the first step and with the final parameters.
Loss is in nats per byte; knowing nothing costs log(256) = 5.55.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from pccl.demo.events import StepDone
from pccl.demo.story import Peer, State, Story

LOSS_RATIO_MAX = 0.7


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that must hold, whether it does, and the numbers behind it."""

    name: str
    good: bool
    detail: str


def survivors(story: Story) -> list[Peer]:
    """Returns the peers that were to reach the end: all but the killed one."""
    return [peer for peer in story.peers.values() if peer.state is not State.KILLED]


def judge(story: Story) -> list[Check]:
    """Returns every check of the run, in the order in which they are shown."""
    checks = [_finished(story), _same_parameters(story), _same_contributors(story), _loss(story)]
    if story.plan.kill_at is not None:
        checks.append(_killed(story))
    if story.plan.join_at is not None:
        checks.append(_joined(story))
    problems = "; ".join(story.problems)
    checks.append(Check("nothing else went wrong", not problems, problems or "no problem"))
    return checks


def losses(story: Story) -> tuple[float, float] | None:
    """Returns the held-out loss before the first step and after the last, if there are both."""
    starts = [
        peer.held_out_start
        for peer in story.peers.values()
        if peer.held_out_start is not None and peer.entered_at == 0
    ]
    ends = [peer.done.held_out_loss for peer in survivors(story) if peer.done is not None]
    return (starts[0], max(ends)) if starts and ends else None


def _finished(story: Story) -> Check:
    left = survivors(story)
    at_end = [peer for peer in left if peer.done and peer.done.step == story.plan.steps]
    good = len(at_end) == len(left) == story.plan.final_world
    detail = f"{len(at_end)} of {story.plan.final_world} peers finished step {story.plan.steps}"
    return Check("all surviving peers reached the last step", good, detail)


def _same_parameters(story: Story) -> Check:
    digests = {peer.done.digest for peer in survivors(story) if peer.done}
    detail = ", ".join(sorted(digest[:16] for digest in digests)) or "no peer finished"
    return Check("their parameters are equal, bit for bit", len(digests) == 1, f"SHA-256 {detail}")


def _same_contributors(story: Story) -> Check:
    told: dict[int, tuple[str, ...]] = {}
    for done in _all_steps(story):
        if told.setdefault(done.step, done.contributors) != done.contributors:
            detail = f"they differ for step {done.step}"
            return Check("all peers were told the same contributors", False, detail)
    whole = sorted(told) == list(range(1, story.plan.steps + 1))
    detail = f"of {len(told)} steps" + ("" if whole else f", and not of all {story.plan.steps}")
    return Check("all peers were told the same contributors", whole, detail)


def _loss(story: Story) -> Check:
    name = f"the held-out loss is at most {LOSS_RATIO_MAX} x its start"
    ends = losses(story)
    if ends is None:
        return Check(name, False, "no peer finished")
    ratio = ends[1] / ends[0]
    detail = f"{ends[0]:.3f} -> {ends[1]:.3f} nats per byte, x {ratio:.2f}"
    return Check(name, ratio <= LOSS_RATIO_MAX, detail)


def _killed(story: Story) -> Check:
    name = f"{story.victim} was killed and the others went on"
    if story.killed_at is None:
        return Check(name, False, f"the run never came to step {story.plan.kill_at} with it")
    if story.recovered_after_s is None:
        return Check(name, False, f"no step without it after step {story.killed_at}")
    after = f"next step {story.recovered_after_s:.2f} s later, computing included"
    return Check(name, True, f"at step {story.killed_at}; {after}")


def _joined(story: Story) -> Check:
    name = f"{story.newcomer} joined and took part"
    if story.joined_at is None:
        return Check(name, False, "it never received the run's state")
    peer = story.peers[story.newcomer]
    own = {done.step for done in peer.history if peer.id in done.contributors}
    good = own == set(range(story.joined_at + 1, story.plan.steps + 1)) and bool(own)
    return Check(name, good, f"after step {story.joined_at}; contributed to {len(own)} steps")


def _all_steps(story: Story) -> Iterator[StepDone]:
    for peer in story.peers.values():
        yield from peer.history


def summary_table(story: Story) -> Table:
    """Returns one row for each peer; fits 80 columns."""
    table = Table(title="the peers", title_justify="left", title_style="bold", box=SIMPLE_HEAD)
    table.collapse_padding, table.pad_edge = True, False
    for column in ("peer", "end"):
        table.add_column(column, no_wrap=True)
    for column in ("steps", "own loss", "held-out", "sent MB", "retries"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("SHA-256", no_wrap=True)
    for peer in story.peers.values():
        first, last = (peer.history[0], peer.history[-1]) if peer.history else (None, None)
        table.add_row(
            peer.name,
            Text(peer.state.value, style="green" if peer.state is State.DONE else "yellow"),
            f"{first.step}-{last.step}" if first and last else "none",
            f"{first.loss:.2f} → {last.loss:.2f}" if first and last else "",
            f"{peer.done.held_out_loss:.3f}" if peer.done else "",
            f"{peer.sent_bytes / 1e6:.1f}",
            str(peer.retries),
            peer.done.digest[:12] if peer.done else "",
        )
    return table


def checks_table(checks: list[Check]) -> Table:
    """Returns one row for each check."""
    table = Table(title="the checks", title_justify="left", title_style="bold", box=SIMPLE_HEAD)
    table.collapse_padding, table.pad_edge = True, False
    table.show_header = False
    for check in checks:
        mark = Text("ok", style="green") if check.good else Text("FAILED", style="bold red")
        table.add_row(mark, Text(check.name), Text(check.detail))
    return table


def write_json(path: Path, story: Story, checks: list[Check], settings: dict[str, Any]) -> None:
    """Writes every number of the run to `path`."""
    ends = losses(story)
    record = {
        "settings": settings,
        "good": all(check.good for check in checks),
        "checks": [asdict(check) for check in checks],
        "held_out_loss": None if ends is None else {"start": ends[0], "end": ends[1]},
        "killed": {"peer": story.victim, "after_step": story.killed_at},
        "recovered_after_s": story.recovered_after_s,
        "joined": {"peer": story.newcomer, "after_step": story.joined_at},
        "peers": [
            {
                "name": peer.name,
                "id": peer.id,
                "shard": peer.shard,
                "state": peer.state.value,
                "digest": peer.done.digest if peer.done else None,
                "wire_bytes": peer.sent_bytes,
                "retries": peer.retries,
                "steps": [asdict(done) for done in peer.history],
            }
            for peer in story.peers.values()
        ],
        "log": [asdict(line) for line in story.log],
    }
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
