"""`pccl replay`: runs a recorded coordinator again and shows where it goes another way."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import click

from pccl.base.errors import RemoteError
from pccl.cli.main import FAILED, MISUSED, print_error
from pccl.membership.flight import CHUNK_BYTES
from pccl.membership.replay import Replay, Step, describe
from pccl.membership.service_recorder import pccl_version


@click.command("replay")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--until",
    "until_s",
    type=click.FloatRange(0),
    help="Stop so many seconds after the beginning of the file.",
)
@click.option(
    "--show",
    type=click.Choice(["events", "effects", "state"]),
    help="Print every event, also the effects of each, or the status at the end. "
    "Events and effects hold secrets.",
)
def command(file: Path, until_s: float | None, show: str | None) -> int:
    """Replays FILE, a recording of `pccl coordinator --record FILE`.

    Exits with 1 at the first step whose effects are not those that were recorded, with 2 where
    the file is no recording, or is damaged.
    """
    try:
        return _replay(file, until_s, show)
    except RemoteError as error:
        print_error(f"{file}: {error}")
        return MISUSED


def _replay(file: Path, until_s: float | None, show: str | None) -> int:
    with file.open("rb") as recording:
        replay = Replay(iter(lambda: recording.read(CHUNK_BYTES), b""), version=pccl_version())
        last = 0
        until = None if until_s is None else replay.began_s + until_s
        for step in _steps(replay, until):
            last = step.number
            _show(step, replay.began_s, show)
            if step.differs:
                print_error(
                    f"step {step.number}, {step.now_s - replay.began_s:.6f} s: {step.differs}"
                )
                if show is None:
                    _show(step, replay.began_s, "effects")
                return FAILED
    if show == "state":
        click.echo(json.dumps(json.loads(replay.status()), indent=2))
    length_s = replay.now_s - replay.began_s
    how = "to its end" if replay.ended else "as far as it goes" if until_s is None else "so far"
    click.echo(f"{last} steps over {length_s:.3f} s, {how}: the same effects as recorded")
    return 0


def _steps(replay: Replay, until_s: float | None) -> Iterator[Step]:
    """Yields what can be replayed; says of damage how much that was."""
    last = 0
    try:
        for step in replay.steps(until_s):
            last = step.number
            yield step
    except RemoteError as error:
        raise RemoteError(
            f"{error}; what comes before can be replayed, {last} steps over "
            f"{replay.now_s - replay.began_s:.3f} s, and had the same effects as recorded"
        ) from error


def _show(step: Step, began_s: float, show: str | None) -> None:
    if show not in ("events", "effects"):
        return
    given = "time" if step.event is None else describe(step.event)
    click.echo(f"{step.number:>7} {step.now_s - began_s:12.6f} {given}")
    for effect in step.effects if show == "effects" else ():
        click.echo(f"{'':>20} -> {describe(effect)}")
