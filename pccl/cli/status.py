"""`pccl status`: asks a coordinator how its run is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pccl.arguments import addresses_of, find_ticket
from pccl.base.ids import SHORT_HEX_DIGITS
from pccl.membership.service_status import fetch_status_now


@click.command("status")
@click.argument("address", required=False)
@click.option(
    "--ticket",
    metavar="TICKET",
    help="Of a secured run; else the variable PCCL_TICKET.  Asking uses nothing of it up.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the whole document as JSON.")
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(0.01, 3600),
    default=5.0,
    show_default=True,
    help="Seconds to wait for the answer.",
)
def command(address: str | None, ticket: str | None, as_json: bool, timeout_s: float) -> None:
    """Shows the members of the run at ADDRESS (host:port, or a list of them; a ticket has it,
    too)."""
    found = find_ticket(ticket)
    addresses = addresses_of(address, found)
    document = fetch_status_now(addresses, timeout_s=timeout_s, ticket=found)
    if as_json:
        click.echo(json.dumps(document, indent=2))
    else:
        show(document, Console(highlight=False, width=COLUMNS_MAX))


COLUMNS_MAX: Final = 1000
"""No limit: lines are for grep as well, and a narrow terminal wraps them by itself."""

DURATION_S_MAX: Final = 1e12
"""What claims to be more, or no number, is no time."""

COLUMNS: Final = {
    "rank": "rank",
    "peer_id": "peer",
    "address": "address",
    "state": "state",
    "heartbeat_age_s": "heard",
    "epoch": "epoch",
    "watermark": "committed",
    "next_step": "next",
    "entry": "waits at",
    "tls": "lanes within",
    "ucx": "UCX by",
}
"""What people see of a peer; --json has it all."""


RULES: Final = {
    "min_world": "-",
    "on_underflow": "-",
    "straggler_s": "wait",
    "abandon_after_s": "never",
}
"""What a run goes by, in the words of the options; and what null says."""


WAIT_SHOWN_S: Final = 2.0  # a step that has not moved for so long is worth a line


def show(document: Mapping[str, Any], console: Console) -> None:
    """Prints a status document for people; parts that it lacks are left out."""
    console.print(
        f"[bold]run {_plain(document, 'run_id')[:SHORT_HEX_DIGITS]}[/]  "
        f"generation {_plain(document, 'generation')}  epoch {_plain(document, 'epoch')}  "
        f"profile {_plain(document, 'profile')}  "
        f"up {_duration(document.get('uptime_s'))}{_paused(document)}"
    )
    if rules := _rules(document):
        console.print(rules, markup=False)
    if document.get("outdated"):
        line = f"outdated: it decides nothing and lets nobody in: {_text(document['outdated'])}"
        console.print(line, markup=False, style="red", soft_wrap=True)
    for kind in ("members", "learners"):
        _show_peers(kind, _rows(document, kind), console)
    held_back = [row for row in _rows(document, "learners") if row.get("held_back")]
    for line in (
        *map(_link, _rows(document, "links")),
        *map(_wait, filter(_is_long, _rows(document, "waits"))),
        *map(_held_back, held_back),
    ):
        console.print(line, markup=False, soft_wrap=True)
    for key in ("plan", "flush", "counters", "connections", "tls"):
        if document.get(key):
            line = f"{key}: {_flush(document[key]) if key == 'flush' else _pairs(document[key])}"
            console.print(line, markup=False, style="dim", soft_wrap=True)


def _paused(document: Mapping[str, Any]) -> str:
    if not document.get("paused"):
        return ""
    have, need = _plain(document, "world_size"), _plain(document, "min_world")
    return f"  [yellow]paused: {have} of min_world {need} members[/]"


def _plain(document: Mapping[str, Any], key: str) -> str:
    """What stands there, of which nothing is markup."""
    return escape(_text(document.get(key)))


def _rules(document: Mapping[str, Any]) -> str:
    """What holds for everybody; a coordinator that does not tell leaves it out."""
    shown = []
    for key, absent in RULES.items():
        if key in document:
            value = document[key]
            named = key.removesuffix("_s")
            seconds = named != key and isinstance(value, int | float)
            told = absent if value is None else f"{value:g} s" if seconds else _text(value)
            shown.append(f"{named} {told}")
    return "  ".join(shown)


def _flush(value: Any) -> str:
    if not isinstance(value, Mapping) or not value.get("target"):
        return "none"
    awaited = value.get("awaited")
    names = ", ".join(map(_text, awaited)) if isinstance(awaited, list) and awaited else "nobody"
    unheard = value.get("unheard_s")
    nobody = "" if unheard is None else f"; no member heard for {_text(unheard)} s"
    held = "" if value.get("held") is None else f"; {_text(value['held'])}"
    return f"for epoch {_text(value['target'])}, awaits {names}{nobody}{held}"


def _link(row: Mapping[str, Any]) -> str:
    """One link that is not as it should be."""
    via = f" through {_text(row['via'])}" if row.get("via") else ""
    return f"link {_text(row.get('between'))}: {_text(row.get('state'))}{via}"


def _held_back(row: Mapping[str, Any]) -> str:
    """A newcomer that cannot come in, and why."""
    name = f"{_text(row.get('peer_id'))[:SHORT_HEX_DIGITS]}.{_text(row.get('incarnation'))}"
    return f"{name} {_text(row['held_back'])}"


def _is_long(row: Mapping[str, Any]) -> bool:
    """A healthy step waits as well, for as long as it takes; --json has those, too."""
    still_s = row.get("still_s")
    return not isinstance(still_s, int | float) or still_s >= WAIT_SHOWN_S


def _wait(row: Mapping[str, Any]) -> str:
    """Whom one member's oldest open step waits for, in which nothing has moved for a while."""
    others = row.get("of")
    names = ", ".join(map(_text, others)) if isinstance(others, list) else _text(others)
    return (
        f"{_text(row.get('peer'))} waits in step {_text(row.get('step'))} for the "
        f"{_text(row.get('for'))} of {names}, still for {_text(row.get('still_s'))} s"
    )


def _show_peers(kind: str, rows: list[Mapping[str, Any]], console: Console) -> None:
    console.print(f"{len(rows)} {kind if len(rows) != 1 else kind[:-1]}")
    if not rows:
        return
    keys = [key for key in COLUMNS if any(row.get(key) is not None for row in rows)]
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for key in keys:
        table.add_column(COLUMNS[key], overflow="fold")
    for row in rows:
        table.add_row(*(_cell(key, row.get(key)) for key in keys))
    console.print(table)


def _cell(key: str, value: Any) -> str:
    text = _text(value)[:64]
    if key == "peer_id":
        text = text[:SHORT_HEX_DIGITS]
    return escape(f"{text} s" if key == "heartbeat_age_s" else text)


def _pairs(value: Any) -> str:
    if not isinstance(value, Mapping):
        return _text(value)
    return "  ".join(f"{name} {_text(item)}" for name, item in value.items())


def _rows(document: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    rows = document.get(key)
    return [row for row in rows if isinstance(row, Mapping)] if isinstance(rows, list) else []


def _text(value: Any) -> str:
    match value:
        case None:
            return "-"
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:.2f}"
        case Mapping() | list():
            return json.dumps(value, separators=(",", ":"))
        case _:
            return str(value)


def _duration(value: Any) -> str:
    if not isinstance(value, int | float) or not abs(value) < DURATION_S_MAX:
        return "-"
    minutes, seconds = divmod(int(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
