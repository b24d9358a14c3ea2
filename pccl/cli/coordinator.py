"""`pccl coordinator`: runs until it is told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from pathlib import Path

import click

from pccl.base.event_loop import new_event_loop
from pccl.cli.main import MISUSED, print_error
from pccl.membership.service import CoordinatorOptions, choose_profile, serve
from pccl.transport.address import Address, parse_address
from pccl.transport.dial import explain

DEFAULT_LISTEN = "127.0.0.1:48148"


@click.command("coordinator")
@click.option(
    "--listen",
    "listen_text",
    default=DEFAULT_LISTEN,
    show_default=True,
    metavar="HOST:PORT",
    help="Where peers connect; port 0 takes a free one.",
)
@click.option(
    "--journal",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File that lets a restarted coordinator go on with the run.",
)
@click.option(
    "--min-world",
    type=click.IntRange(1, 1024),
    help="Members without which no step runs; else the first peer that has an opinion decides.",
)
@click.option(
    "--profile",
    "profile_name",
    type=click.Choice(["lan", "wan", "auto"]),
    default="auto",
    show_default=True,
    help="How long silence may last; auto: lan on loopback and private networks, wan elsewhere.",
)
@click.option(
    "--insecure",
    is_flag=True,
    help="Allow an address that other machines can reach: nothing is encrypted or authenticated.",
)
@click.option("-v", "--verbose", count=True, help="Log state changes to stderr; -vv: messages.")
def command(
    listen_text: str,
    journal: Path | None,
    min_world: int | None,
    profile_name: str,
    insecure: bool,
    verbose: int,
) -> int:
    """Runs the coordinator of a run, until Ctrl-C or SIGTERM.

    It decides who is in and what became of a step after a failure; data never flows through it.
    """
    if verbose:
        logging.basicConfig(
            level=logging.DEBUG if verbose > 1 else logging.INFO,
            format="%(asctime)s %(levelname)-7s %(name)s: %(message)s",
        )
    listen = parse_address(listen_text, port_min=0)
    options = CoordinatorOptions(
        listen=listen,
        journal=journal,
        min_world=min_world or 0,
        profile=choose_profile(profile_name, listen.host),
        insecure=insecure,
    )
    try:
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            runner.run(_serve_until_told_to_stop(options))
    except OSError as error:
        print_error(
            f"cannot listen on {listen}: {explain(error)}; another coordinator may be running "
            "there, or choose another address with --listen"
        )
        return MISUSED
    return 0


async def _serve_until_told_to_stop(options: CoordinatorOptions) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(NotImplementedError):
            loop.add_signal_handler(number, stop.set)
    await serve(options, stop=stop, on_listening=_announce)


def _announce(address: Address) -> None:
    click.echo(f'coordinator listening on {address}; peers: pccl.connect("{address}")')
