"""`pccl demo`: options, exit codes and what is printed; the run itself is `pccl.demo`.

Exit codes: 0 all checks hold, 1 one does not, 2 the run could not begin, 130 interrupted.
"""

import importlib.util
import shutil
import signal
from dataclasses import asdict
from pathlib import Path
from types import FrameType

import click
from rich.console import Console

from pccl.demo.methods import DDP, METHODS, last_join_at, reductions_of
from pccl.demo.peer_config import ModelShape
from pccl.demo.report import checks_table, judge, summary_table, write_json
from pccl.demo.run import Demo, DemoConfig, SetUpFailed
from pccl.demo.screen import LiveScreen, PlainLines
from pccl.demo.story import Plan, State, Story

FAILED, SET_UP_FAILED, INTERRUPTED = 1, 2, 130
LOG_COLUMNS = 120  # a pipe has no width; more than rich then assumes, for whole lines


@click.command("demo")
@click.option("--steps", default=200, show_default=True, help="Training steps, of any method.")
@click.option(
    "--method",
    type=click.Choice(METHODS),
    default=DDP,
    show_default=True,
    help="Average gradients every step, or train with little communication.",
)
@click.option("--peers", default=4, show_default=True, help="Peers that start the run.")
@click.option("--kill-at", type=int, help="Kill one peer after this step.  [default: 0.35 x steps]")
@click.option("--join-at", type=int, help="Start a new peer after this step.  [default: 0.55 x]")
@click.option("--no-kill", is_flag=True, help="Kill nobody.")
@click.option("--no-join", is_flag=True, help="Start no new peer.")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("pccl-demo"),
    show_default=True,
    help="Folder for demo.png, demo.json and logs.",
)
@click.option("--seed", default=1, show_default=True, help="Of the model and the batches.")
@click.option("--batch", default=16, show_default=True, help="Examples a step on each peer.")
@click.option("--plain", is_flag=True, help="Print lines, even on a terminal.")
@click.option("--keep-logs", is_flag=True, help="Keep the peers' logs of a good run too.")
@click.option("--layers", default=3, hidden=True)
@click.option("--width", default=128, hidden=True)
@click.option("--context", default=128, hidden=True)
@click.option("--least-step-s", default=0.0, hidden=True, help="Slow small models down.")
def command(
    steps: int,
    method: str,
    peers: int,
    kill_at: int | None,
    join_at: int | None,
    no_kill: bool,
    no_join: bool,
    out: Path,
    seed: int,
    batch: int,
    plain: bool,
    keep_logs: bool,
    layers: int,
    width: int,
    context: int,
    least_step_s: float,
) -> int:
    """Train a small language model while one peer is killed and another joins.

    A coordinator and a few peer processes on this machine train a byte-level GPT on the Python
    standard library's own sources and average gradients with pccl. Takes one to three minutes.
    With another method than ddp they average what they have learnt instead, once in five steps
    (async-diloco: in ten; streaming: a fragment of it in five); what is shown and counted as a
    step, by --kill-at and --join-at too, is then one such reduction.
    """
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(width=LOG_COLUMNS, highlight=False)
    if batch < 1 or seed < 0:
        raise click.UsageError("--batch must be at least 1 and --seed at least 0")
    steps = reductions_of(method, steps)
    last = last_join_at(method, steps, layers)
    if kill_at is None and not no_kill and peers > 1:
        kill_at = max(1, steps * 35 // 100 if no_join else min(steps * 35 // 100, last))
    if join_at is None and not no_join:
        join_at = max(kill_at or 1, min(steps * 55 // 100, last))
    try:
        config = DemoConfig(
            plan=Plan(
                peers=peers,
                steps=steps,
                kill_at=None if no_kill else kill_at,
                join_at=None if no_join else join_at,
            ),
            out=out,
            seed=seed,
            rows=batch,
            least_step_s=least_step_s,
            shape=ModelShape(layers=layers, width=width, context=context),
            method=method,
        )
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    return _run(config, console, plain=plain, keep_logs=keep_logs)


def _run(config: DemoConfig, console: Console, *, plain: bool, keep_logs: bool) -> int:
    missing = [name for name in ("torch", "matplotlib") if importlib.util.find_spec(name) is None]
    if missing:
        console.print(
            f"the demo needs {' and '.join(missing)}: pip install 'pccl[demo]'",
            style="bold red",
            markup=False,
            soft_wrap=True,
        )
        return SET_UP_FAILED
    signal.signal(signal.SIGTERM, _interrupt)
    screen = PlainLines(console) if plain or not console.is_terminal else LiveScreen(console)
    with Demo(config) as demo:
        try:
            with screen:
                story = demo.run(screen)
        except SetUpFailed as error:
            console.print(str(error), style="bold red", markup=False, soft_wrap=True)
            return SET_UP_FAILED
        except KeyboardInterrupt:
            console.print("interrupted; ending the peers", style="yellow")
            return INTERRUPTED
        return _tell_result(demo, story, console, keep_logs=keep_logs)


def _tell_result(demo: Demo, story: Story, console: Console, *, keep_logs: bool) -> int:
    config = demo.config
    checks = judge(story)
    good = all(check.good for check in checks)
    settings = {
        **asdict(config.plan),
        "method": config.method,
        "seed": config.seed,
        "rows": config.rows,
        "shape": asdict(config.shape),
        "seconds": round(demo.seconds, 3),
    }
    write_json(config.out / "demo.json", story, checks, settings)

    from pccl.demo.picture import draw  # matplotlib takes a second, so only now

    draw(story, config.out / "demo.png")
    console.print(summary_table(story))
    console.print(checks_table(checks))
    for name in _with_news(story):
        if tail := demo.children.log_tail(name).strip():
            console.print(f"the end of {demo.children.log_path(name)}:", style="bold")
            console.print(tail, markup=False, highlight=False, soft_wrap=True)
    if good and not keep_logs:
        shutil.rmtree(config.logs, ignore_errors=True)
    console.print(
        f"{demo.seconds:.0f} s; see {config.out / 'demo.png'} and {config.out / 'demo.json'}"
        + ("" if good and not keep_logs else f", logs in {config.logs}"),
        soft_wrap=True,
    )
    if good:
        return 0
    reasons = "; ".join(check.name for check in checks if not check.good)
    console.print(f"the demo failed: {reasons}", style="bold red", markup=False, soft_wrap=True)
    return FAILED if story.set_up else SET_UP_FAILED


def _with_news(story: Story) -> list[str]:
    """Returns the children whose logs explain a bad end."""
    failed = [peer.name for peer in story.peers.values() if peer.state is State.FAILED]
    return ["coordinator", *failed] if story.problems else failed


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
