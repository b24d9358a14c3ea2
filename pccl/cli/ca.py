"""`pccl ca`: the certificate authority of a secured run: tickets, revocation, and what there is."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any, Final

import click
from rich.console import Console
from rich.table import Table

from pccl.base.errors import UsageError
from pccl.base.ids import SHORT_HEX_DIGITS
from pccl.membership.service_ca import CaFolder, init_ca, open_ca
from pccl.membership.service_ledger import LedgerError
from pccl.transport.address import parse_addresses
from pccl.transport.identity import Role
from pccl.transport.join_ticket import PREFIX, USES_MAX, parse_ticket

COLUMNS_MAX: Final = 1000  # lines are whole, whatever the terminal's width
DEFAULT_DIR: Final = "pccl-ca"
_UNITS: Final = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)([smhd])")


def parse_duration(text: str) -> float:
    """Returns the seconds in `90s`, `30m`, `24h` or `7d`.  Raises click.BadParameter."""
    found = _DURATION.fullmatch(text.strip())
    if found is None or float(found[1]) <= 0:
        raise click.BadParameter(f"{text!r} is no length of time; write 90s, 30m, 24h or 7d")
    return float(found[1]) * _UNITS[found[2]]


def _duration(context: click.Context, parameter: click.Parameter, text: str) -> float:
    return parse_duration(text)


_DIR = click.option(
    "--dir",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    default=DEFAULT_DIR,
    show_default=True,
    help="Folder of the CA; holds its key and all tickets, so keep it where nobody else reads.",
)
_ENDPOINT = click.option(
    "--endpoint",
    "endpoints",
    multiple=True,
    metavar="HOST:PORT",
    help="Where peers reach a coordinator of the run; may be given several times.",
)


@click.group("ca")
def command() -> None:
    """Makes and keeps the certificate authority of a secured run."""


@command.command("init")
@_DIR
@click.option(
    "--life",
    "life_s",
    callback=_duration,
    default="24h",
    show_default=True,
    help="How long certificates are valid; peers renew theirs when two thirds are over.",
)
@_ENDPOINT
def init(folder: Path, life_s: float, endpoints: tuple[str, ...]) -> None:
    """Makes the CA of a new run."""
    ca = init_ca(folder, life_s=life_s, endpoints=_checked(endpoints))
    click.echo(
        f"made the CA of run {ca.authority.run_id.hex()} in {folder}; next: "
        f"pccl coordinator --ca {folder}, and pccl ca ticket --dir {folder}"
    )
    ca.close()


@command.command("ticket")
@_DIR
@click.option(
    "--role",
    type=click.Choice([Role.TRAINER.value, Role.RECEIVER.value]),
    default=Role.TRAINER.value,
    show_default=True,
    help="trainer: a member of the run; receiver: may fetch published weights, nothing else.",
)
@click.option(
    "--uses",
    type=click.IntRange(1, USES_MAX),
    default=1,
    show_default=True,
    help="How many processes may enrol by it.",
)
@click.option(
    "--expires",
    "expires_s",
    callback=_duration,
    default="24h",
    show_default=True,
    help="How long processes may enrol by it; those that have may stay.",
)
@_ENDPOINT
def ticket(
    folder: Path, role: str, uses: int, expires_s: float, endpoints: tuple[str, ...]
) -> None:
    """Prints a join ticket: one line, for pccl.connect(ticket=...) or PCCL_TICKET.

    Who has it can join, so send it as you would a password.
    """
    ca = open_ca(folder)
    try:
        made = ca.make_ticket(
            Role(role), uses=uses, expires_in_s=expires_s, endpoints=_checked(endpoints)
        )
    finally:
        ca.close()
    click.echo(made.text)
    if not made.endpoints:
        click.echo(
            "it names no coordinator, so programs must give the address; say --endpoint HOST:PORT",
            err=True,
        )


@command.command("revoke")
@click.argument("identity", metavar="PEER|TICKET")
@_DIR
@click.option("--reason", default="", help="For the ledger and those who read it.")
def revoke(identity: str, folder: Path, reason: str) -> None:
    """Puts a peer out of the run, or a ticket and all who came by it, and keeps them out.

    PEER|TICKET is the beginning of an id that `pccl ca list` shows, or the ticket itself.  A
    coordinator that runs on the folder heeds it at once.
    """
    identity = identity.strip()
    if identity.startswith(PREFIX):
        identity = parse_ticket(identity).token_id.hex()
    ca = open_ca(folder)
    try:
        kind, peers = ca.ledger.revoke(identity, int(time.time()), reason)
    except LedgerError as error:
        raise UsageError(str(error)) from error
    finally:
        ca.close()
    if kind == "peer":
        click.echo(f"revoked peer {peers[0].hex()}")
    else:
        click.echo(f"revoked the ticket, and all peers that came by it: {len(peers)}")


@command.command("list")
@_DIR
@click.option("--json", "as_json", is_flag=True, help="Print all of it as JSON.")
def list_command(folder: Path, as_json: bool) -> None:
    """Shows tickets (without their secrets) and the peers that came by them."""
    ca = open_ca(folder)
    try:
        document = _document(ca)
    finally:
        ca.close()
    if as_json:
        click.echo(json.dumps(document, indent=2))
        return
    console = Console(highlight=False, width=COLUMNS_MAX)
    console.print(f"run {document['run_id']}")
    console.print(_table(document["tickets"], "ticket"))
    console.print(_table(document["peers"], "peer"))


def _checked(endpoints: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(map(str, parse_addresses(",".join(endpoints)))) if endpoints else ()


def _document(ca: CaFolder) -> dict[str, Any]:
    now = time.time()
    return {
        "run_id": ca.authority.run_id.hex(),
        "tickets": [
            {
                "ticket": row.token_id.hex(),
                "role": row.role.value,
                "uses": f"{row.uses}/{row.uses_max}",
                "expires": _date(row.expires),
                "state": "revoked" if row.revoked else "expired" if now >= row.expires else "",
            }
            for row in ca.ledger.tokens()
        ],
        "peers": [
            {
                "peer": row.peer_id.hex(),
                "ticket": row.token_id.hex(),
                "role": row.role.value,
                "enrolled": _date(row.first),
                "renewed": _date(row.last),
                "denied": row.denied,
            }
            for row in ca.ledger.peers()
        ],
    }


def _date(seconds: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(seconds))


def _table(rows: list[dict[str, str]], first: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for column in rows[0] if rows else (first,):
        table.add_column(column)
    for row in rows:
        ids = ("peer", "ticket")
        table.add_row(*(row[key][:SHORT_HEX_DIGITS] if key in ids else row[key] for key in row))
    return table
