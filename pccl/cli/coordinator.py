"""`pccl coordinator`: runs until it is told to stop; `adopt` first rebuilds a lost journal."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import signal
import sys
from collections.abc import Callable, Coroutine
from dataclasses import replace
from functools import partial, wraps
from pathlib import Path
from typing import Any, Final

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pccl.base.config import LAN, WAN
from pccl.base.event_loop import new_event_loop
from pccl.base.ids import SHORT_HEX_DIGITS
from pccl.bench.arithmetic import parse_bytes
from pccl.cli.main import MISUSED, print_error
from pccl.membership.adoption import Adoption, AdoptionError
from pccl.membership.messages import Underflow
from pccl.membership.service import CoordinatorOptions, choose_profile, serve
from pccl.membership.service_adopt import adopt
from pccl.membership.store import StoreError
from pccl.transport.address import Address, is_loopback, parse_address
from pccl.transport.dial import explain

DEFAULT_LISTEN = "127.0.0.1:48148"
THREAD_SWITCH_S = 0.0005  # the journal's thread gets its turn from a busy loop so soon; else 5 ms


_OPTIONS: Final = (  # of both commands
    click.option(
        "--listen",
        "listen_text",
        default=DEFAULT_LISTEN,
        show_default=True,
        metavar="HOST:PORT",
        help="Where peers connect; port 0 takes a free one.",
    ),
    click.option(
        "--min-world",
        type=click.IntRange(1, 1024),
        help="Members without which no step runs; else the peers of the first view decide.",
    ),
    click.option(
        "--on-underflow",
        type=click.Choice([policy.name.lower() for policy in Underflow]),
        help="What steps do with fewer members: wait, run all the same, or fail on all members.",
    ),
    click.option(
        "--straggler-exclude-after",
        "straggler_s",
        type=click.FloatRange(0.1),
        metavar="S",
        help="Leave out a member for which the others have waited so long; it may come in again.",
    ),
    click.option(
        "--profile",
        "profile_name",
        type=click.Choice(["lan", "wan", "auto"]),
        default="auto",
        show_default=True,
        help="How long silence may last; auto: by the address at first "
        "(private: lan, public: wan), then by the members' round trips.",
    ),
    click.option(
        "--abandon-after",
        "abandon_after_s",
        type=click.FloatRange(LAN.abandon_least_s),
        metavar="S",
        help="Give a view up when none of its members has been heard and enough newcomers have "
        f"waited so long: the run begins anew.  At least {LAN.abandon_least_s:g} with --profile "
        f"lan, {WAN.abandon_least_s:g} with wan, and with auto off loopback.  [default: never]",
    ),
    click.option(
        "--record",
        type=click.Path(dir_okay=False, path_type=Path),
        help="Record what the coordinator is given, for `pccl replay`; the file will hold secrets.",
    ),
    click.option(
        "--record-bytes",
        callback=lambda context, parameter, text: _size(text),
        metavar="SIZE",
        default="64MiB",
        show_default=True,
        help="Of the recording, in two files: FILE, and FILE.1 from before.",
    ),
    click.option(
        "--insecure",
        is_flag=True,
        help="Allow an address that other machines can reach: "
        "nothing is encrypted or authenticated.",
    ),
    click.option(
        "--ca",
        type=click.Path(path_type=Path, file_okay=False),
        metavar="DIR",
        help="Secure the run: TLS on everything, "
        "and only who has a ticket comes in (pccl ca init).",
    ),
    click.option(
        "-v",
        "--verbose",
        count=True,
        help="Log state changes to stderr, not only errors; -vv: messages.",
    ),
)


def _takes_options(function: Callable[..., int]) -> Callable[..., int]:
    """Adds `_OPTIONS` to a command, which is given them as `options`, and `verbose`."""

    @wraps(function)
    def command(
        *,
        listen_text: str,
        journal: Path | None,
        min_world: int | None,
        on_underflow: str | None,
        straggler_s: float | None,
        profile_name: str,
        abandon_after_s: float | None,
        record: Path | None,
        record_bytes: int,
        ca: Path | None,
        insecure: bool,
        **others: Any,
    ) -> int:
        listen = parse_address(listen_text, port_min=0)
        options = CoordinatorOptions(
            listen=listen,
            journal=journal,
            min_world=min_world or 0,
            on_underflow=_policy_number(on_underflow),
            straggler_s=straggler_s or 0.0,
            profile=choose_profile(profile_name, listen.host),
            auto_profile=_may_choose(profile_name, listen),
            abandon_after_s=abandon_after_s,
            record=record,
            record_bytes=record_bytes,
            insecure=insecure,
            ca=ca,
        )
        return function(options=options, **others)

    for option in reversed(_OPTIONS):
        command = option(command)
    return command


@click.group("coordinator", invoke_without_command=True)
@click.option(
    "--journal",
    type=click.Path(path_type=Path),
    help="File that lets a restarted coordinator go on with the run.",
)
@_takes_options
def command(options: CoordinatorOptions, verbose: int) -> int:
    """Runs the coordinator of a run, until Ctrl-C or SIGTERM.

    It decides who is in and what became of a step after a failure; data never flows through it.
    """
    if click.get_current_context().invoked_subcommand is not None:
        return 0
    _log_to_stderr(verbose)
    return _run(_serve_until_told_to_stop(options), options.listen)


@command.command("adopt")
@click.option(
    "--journal",
    type=click.Path(path_type=Path),
    required=True,
    help="The journal to write; it must not hold a run yet.",
)
@click.option(
    "--wait",
    "wait_s",
    type=click.FloatRange(0.1, 3600),
    default=10.0,
    show_default=True,
    help="Seconds that peers have to find this coordinator and testify.",
)
@click.option(
    "--expect",
    type=click.IntRange(1, 1024),
    help="Go on as soon as so many peers have testified; else when all known members have.",
)
@click.option("--force", is_flag=True, help="Replace a journal that holds a run.")
@_takes_options
def adopt_command(
    options: CoordinatorOptions, wait_s: float, expect: int | None, force: bool, verbose: int
) -> int:
    """Rebuilds a lost journal from the living peers of a run, then runs its coordinator.

    Listen where the lost coordinator did: the peers dial that address until somebody answers.
    Give the rules that its options set (--min-world and the next two) again: peers do not know all
    of them.
    """
    _log_to_stderr(verbose)
    return _run(_adopt_and_serve(options, wait_s, expect or 0, force), options.listen)


def _policy_number(policy: str | None) -> int:
    return 0 if policy is None else Underflow[policy.upper()].value


def _size(text: str) -> int:
    try:
        return parse_bytes(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def _may_choose(profile_name: str, listen: Address) -> bool:
    """Says whether measured round trips choose the profile: on loopback they measure how busy the
    machine is, not how far anybody is away."""
    return profile_name == "auto" and not is_loopback(listen.host)


def _log_to_stderr(verbose: int) -> None:
    levels = (logging.ERROR, logging.INFO, logging.DEBUG)
    logging.basicConfig(
        level=levels[min(verbose, 2)], format="%(asctime)s %(levelname)-7s %(name)s: %(message)s"
    )


def _run(work: Coroutine[None, None, None], listen: Address) -> int:
    _raise_descriptor_limit()
    sys.setswitchinterval(THREAD_SWITCH_S)
    try:
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            runner.run(work)
    except (StoreError, AdoptionError) as error:  # one that runs ends by another error
        print_error(str(error))
        return MISUSED
    except OSError as error:
        print_error(f"cannot listen on {listen}: {explain(error)}; {_instead(error)}")
        return MISUSED
    return 0


def _instead(error: OSError) -> str:
    """What to do where the coordinator cannot listen."""
    match error.errno:
        case errno.EADDRINUSE:
            return "another coordinator may be running there, or choose another port with --listen"
        case errno.EADDRNOTAVAIL:
            return (
                "that address is none of this machine's: choose one that is with --listen "
                "(0.0.0.0 is all of them)"
            )
        case _:
            return "choose another address with --listen"


def _raise_descriptor_limit() -> None:
    """Takes all the descriptors this process may have: a large run needs two per peer."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _stop_on_signals() -> asyncio.Event:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(NotImplementedError):
            loop.add_signal_handler(number, stop.set)
    return stop


async def _serve_until_told_to_stop(options: CoordinatorOptions) -> None:
    announce = partial(_announce, options.ca is not None)
    await serve(options, stop=_stop_on_signals(), on_listening=announce)


async def _adopt_and_serve(
    options: CoordinatorOptions, wait_s: float, expect: int, force: bool
) -> None:
    stop = _stop_on_signals()
    bound = options.listen

    def listening(address: Address) -> None:
        nonlocal bound
        bound = address
        click.echo(f"listening on {address} for what peers can testify, {wait_s:g} s at most")

    adoption = await adopt(
        options, wait_s=wait_s, expect=expect, force=force, stop=stop, on_listening=listening
    )
    if adoption is None:
        return
    _show_testimony(adoption)
    announce = partial(_announce, options.ca is not None)
    await serve(replace(options, listen=bound), stop=stop, on_listening=announce)


def _show_testimony(adoption: Adoption) -> None:
    """Prints who testified, and who is missed."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for title in ("peer", "host", "pid", "generation", "epoch", "members"):
        table.add_column(title)
    for said in adoption.testimonies():
        peer = f"{said.peer_id.hex()[:SHORT_HEX_DIGITS]}.{said.incarnation}"
        numbers = (said.pid, said.generation, said.epoch, len(said.members))
        table.add_row(peer, escape(said.hostname), *map(str, numbers))
    console = Console(highlight=False)
    console.print(table)
    record = adoption.record()
    click.echo(
        f"adopted run {record.run_id.hex()} at epoch {record.view.epoch if record.view else 0} "
        f"as generation {record.generation}; missing: {len(adoption.missing())}"
    )


def _announce(secured: bool, address: Address) -> None:
    ticket = ", ticket=..." if secured else ""
    how = " (secured)" if secured else ""
    click.echo(f'coordinator listening on {address}{how}; peers: pccl.connect("{address}"{ticket})')
