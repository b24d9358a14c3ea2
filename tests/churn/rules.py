"""What is wrong with the links now, and how that is said to nft and to the link emulator.  Pure.

A `LinkFault` is directed: what `source` sends to `target` is concerned.  Both tools are told the
whole desired state, never a change, so a lost or repeated command does no harm.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

TABLE = "inet pccl_churn"
LinkKind = Literal["cut", "reset", "loss", "delay", "jitter", "rate"]
EMULATED = frozenset({"delay", "jitter", "rate"})  # by nothing but the emulator
PER_MILLE = 1000


@dataclass(frozen=True, slots=True)
class LinkFault:
    """kind: cut drops silently, reset answers TCP with RST, loss drops the share `amount`, delay
    adds `amount` milliseconds."""

    kind: LinkKind
    source: str
    target: str
    amount: float = 0.0


def both_ways(kind: LinkKind, one: str, two: str, amount: float = 0.0) -> tuple[LinkFault, ...]:
    return LinkFault(kind, one, two, amount), LinkFault(kind, two, one, amount)


def nft_rules(
    target: str, faults: Iterable[LinkFault], addresses: Mapping[str, tuple[str, ...]]
) -> str:
    """Returns the ruleset of one host: what arrives from the sources of its faults is filtered.

    Args:
        addresses: of each host; a source may have several.
    """
    lines = [f"table {TABLE} {{}}", f"delete table {TABLE}"]
    rules = [
        f"    {_match(address)} {_verdict(fault)}"
        for fault in faults
        if fault.target == target and fault.kind not in EMULATED
        for address in addresses[fault.source]
    ]
    if rules:
        lines += [f"table {TABLE} {{", "  chain input {"]
        lines += ["    type filter hook input priority 0; policy accept;", *rules, "  }", "}"]
    return "\n".join(lines) + "\n"


def _match(address: str) -> str:
    return f"{'ip6' if ':' in address else 'ip'} saddr {address}"


def _verdict(fault: LinkFault) -> str:
    match fault.kind:
        case "cut":
            return "drop"
        case "reset":
            return "meta l4proto tcp reject with tcp reset"
        case _ if fault.amount >= 1.0:
            return "drop"
        case _:
            return f"numgen random mod {PER_MILLE} < {round(fault.amount * PER_MILLE)} drop"


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkQuality:
    """What the emulator does to each link while nothing is wrong; one way."""

    delay_ms: float = 0.0
    jitter_ms: float = 0.0
    loss: float = 0.0
    rate_mbit: float = 0.0  # 0: unlimited
    queue_kib: float = 1024.0


def emulator_commands(
    hosts: list[str], faults: Iterable[LinkFault], quality: LinkQuality
) -> dict[tuple[int, int], str]:
    """Returns one command per directed link, with all that is in force on it."""
    faults = list(faults)
    commands = {}
    for i, source in enumerate(hosts):
        for j, target in enumerate(hosts):
            if i == j:
                continue
            here = [f for f in faults if (f.source, f.target) == (source, target)]
            delay = quality.delay_ms + sum(f.amount for f in here if f.kind == "delay")
            jitter = quality.jitter_ms + sum(f.amount for f in here if f.kind == "jitter")
            rates = [quality.rate_mbit, *(f.amount for f in here if f.kind == "rate")]
            rate = min((rate for rate in rates if rate), default=0.0)
            loss = max([quality.loss, *(f.amount for f in here if f.kind == "loss")])
            cut = int(any(f.kind == "cut" for f in here))
            commands[i, j] = (
                f"{i} {j} delay={delay:g} jitter={jitter:g} loss={loss:g} "
                f"rate={rate:g} queue={quality.queue_kib:g} cut={cut}"
            )
    return commands
