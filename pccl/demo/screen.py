"""Shows a run while it happens: a live screen on a terminal, plain lines anywhere else.

Both read the story and change nothing.  Invariant: what a plain run prints names every event of the
log exactly once, so a log file of a CI run tells the same story as the screen did.
"""

from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from pccl.demo.run import Children
from pccl.demo.story import Line, Peer, State, Story

LOG_LINES_SHOWN = 8
FRAME_S = 0.125  # eight a second look alive and cost the two cores little
PLAIN_EVERY_S = 5.0

STYLES = {
    State.STARTING: "dim",
    State.READY: "dim",
    State.CONNECTING: "cyan",
    State.SYNCING: "cyan",
    State.TRAINING: "green",
    State.DONE: "bold green",
    State.KILLED: "bold red",
    State.FAILED: "bold white on red",
}


class LiveScreen:
    """A table of the peers, a progress bar and the last lines of the log, drawn in place."""

    def __init__(self, console: Console) -> None:
        self._live = Live(console=console, auto_refresh=False, transient=True)
        self._drawn_s = -1.0

    def __enter__(self) -> "LiveScreen":
        self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._live.stop()

    def update(self, story: Story, children: Children, now_s: float) -> None:
        if now_s - self._drawn_s >= FRAME_S or story.over:
            self._drawn_s = now_s
            pids = {name: children.pid(name) for name in story.peers}
            self._live.update(picture_of(story, pids, now_s), refresh=True)


class PlainLines:
    """One line for each event, and one for progress every few seconds."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._told = 0
        self._progress_s = 0.0

    def __enter__(self) -> "PlainLines":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        pass

    def update(self, story: Story, children: Children, now_s: float) -> None:
        for line in story.log[self._told :]:
            self._print(_line(line))
        self._told = len(story.log)
        newest = story.newest
        if newest is not None and now_s - self._progress_s >= PLAIN_EVERY_S:
            self._progress_s = now_s
            self._print(
                Text(
                    f"{now_s:6.1f} s  step {newest.step}/{story.plan.steps}  "
                    f"loss {newest.loss:.3f}  epoch {newest.epoch}  {newest.world_size} members  "
                    f"{newest.step_s:.2f} s a step",
                    style="dim",
                )
            )

    def _print(self, text: Text) -> None:
        # Unwrapped: a log is read by machines too, and a pipe has no width.
        self._console.print(text, soft_wrap=True)


def picture_of(story: Story, pids: dict[str, int | None], now_s: float) -> RenderableType:
    """Returns the whole screen as it is at `now_s`."""
    peers = Table(expand=True, box=None, padding=(0, 1))
    for column in ("peer", "state"):
        peers.add_column(column, no_wrap=True)
    for column in ("pid", "step", "loss", "epoch", "world", "sent MB", "retries"):
        peers.add_column(column, justify="right", no_wrap=True)
    for peer in story.peers.values():
        peers.add_row(*_cells(peer, pids.get(peer.name)), style=_row_style(peer))
    progress = Table.grid(padding=(0, 1), expand=True)
    progress.add_column(no_wrap=True)
    progress.add_column(ratio=1)
    progress.add_column(justify="right", no_wrap=True)
    steps = story.plan.steps
    newest = story.newest
    speed = f"{newest.step_s:.2f} s a step" if newest else "starting"
    bar = ProgressBar(total=steps, completed=story.step)
    progress.add_row(f"step {story.step}/{steps}", bar, f"{speed}, {now_s:.0f} s")
    log = Group(*(_line(line) for line in story.log[-LOG_LINES_SHOWN:]))
    return Panel(
        Group(peers, Text(), progress, Text(), log),
        title="pccl demo: training a byte-level GPT while peers come and go",
        title_align="left",
        border_style="blue",
    )


def _row_style(peer: Peer) -> str:
    return "dim" if peer.state is State.KILLED else ""


def _cells(peer: Peer, pid: int | None) -> list[RenderableType]:
    last = peer.history[-1] if peer.history else None
    name = f"{peer.name} (new)" if peer.joining else peer.name
    return [
        name,
        Text(peer.state.value, style=STYLES[peer.state]),
        str(pid or ""),
        str(peer.step),
        f"{last.loss:.3f}" if last else "",
        str(last.epoch) if last else "",
        str(last.world_size) if last else "",
        f"{peer.sent_bytes / 1e6:.1f}",
        str(peer.retries),
    ]


def _line(line: Line) -> Text:
    return Text(f"{line.at_s:6.1f} s  {line.text}", style="bold red" if line.trouble else "")
