"""The rules of a run: how many members a step needs, what happens below that, and how long a
straggler is waited for.

The coordinator's own options come first.  What they leave open the peers decide, the first with an
opinion before the others, and only until the first view: with it the rules are those that its
members came in under, and whoever comes later takes them or is refused.  Before that, what a peer
asked for that is gone again counts for nothing.

A run that was adopted has lost what the old coordinator's options said: there, and only there,
members that come back may still say it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from pccl.membership.core import Core, Peer, name
from pccl.membership.messages import STRAGGLER_WAIT, Hello, Underflow

_POLICIES: Final = ("", *(p.name.lower() for p in Underflow))


def _number(n: float) -> str:
    return f"{n:g}"


def _policy(n: float) -> str:
    return repr(_POLICIES[int(n)])


def _patience(s: float) -> str:
    return f"to exclude after {s:g} s" if s > 0 else "to wait"


class _Rule(NamedTuple):
    code: str  # of the refusal
    field: str  # of Core, of its config and of Hello
    subject: str
    default: float
    say: Callable[[float], str]


_RULES: Final = (
    _Rule("min_world", "min_world", "min_world", 1, _number),
    _Rule("on_underflow", "on_underflow", "on_underflow", Underflow.WAIT, _policy),
    _Rule("straggler", "straggler_s", "the straggler policy", STRAGGLER_WAIT, _patience),
)


def asked_by(msg: Hello) -> tuple[int, int, float]:
    return (msg.min_world, msg.on_underflow, msg.straggler_s)


def conflict(core: Core, asked: tuple[int, int, float]) -> tuple[str, str] | None:
    """Returns the code and the text of a refusal if a peer wants other rules than the run's."""
    for rule, theirs in zip(_RULES, asked, strict=True):
        ours = getattr(core, rule.field)
        if ours and theirs and ours != theirs:
            return rule.code, (
                f"{rule.subject} is {rule.say(ours)} in this run, and this peer asks for "
                f"{rule.say(theirs)}; all peers must give the same value or none: connect again "
                "with the run's value, or leave it out"
            )
    return None


def may_decide(core: Core, peer: Peer) -> bool:
    """Says whether this newcomer's opinion will count once its engine has come."""
    if peer.was_native or peer.gone is not None or conflict(core, peer.asked) is not None:
        return False
    pairs = zip(_RULES, peer.asked, strict=True)
    return any(asked and not getattr(core, rule.field) for rule, asked in pairs)


def said_again(core: Core, peer: Peer) -> None:
    """A member is back: it may know what an adopted run has lost."""
    if not peer.is_witness:
        return
    for rule, asked in zip(_RULES, peer.asked, strict=True):
        if asked and not getattr(core, rule.field):
            setattr(core, rule.field, asked)


def choose(core: Core) -> None:
    """Before the first view: lets those that are here decide what the options leave open.  Anybody
    can say hello; only whose native connection has been there counts."""
    if core.view is not None:
        return
    changed = False
    for at, rule in enumerate(_RULES):
        chosen, by = getattr(core.config, rule.field), None
        for peer in core.peers.values():
            if not chosen and peer.was_native and peer.gone is None and peer.asked[at]:
                chosen, by = peer.asked[at], peer
        if chosen == getattr(core, rule.field):
            continue
        setattr(core, rule.field, chosen)
        changed = True
        core.log(
            "info",
            f"{rule.subject} is {rule.say(chosen)} now, as {name(by)} asks"
            if by is not None
            else f"{rule.subject}: whoever asked for one is gone; {rule.say(rule.default)}",
        )
    if changed:
        core.persist()


def settle(core: Core) -> None:
    """The first view begins: its members agree to what nobody had an opinion about."""
    for rule in _RULES:
        if not getattr(core, rule.field):
            setattr(core, rule.field, type(getattr(core, rule.field))(rule.default))
    told = ", ".join(f"{r.subject} {r.say(getattr(core, r.field))}" for r in _RULES)
    core.log("info", f"the rules of this run: {told}")
