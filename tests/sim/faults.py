"""What the faults of a script do.  `a` and `b` choose peers among the living, by number."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from tests.sim.coordinator_process import CoordinatorProcess, start_coordinator
from tests.sim.copies import GrownCopy
from tests.sim.links import LANE_DEAD_S, Link
from tests.sim.peer_process import PeerProcess, start_peer
from tests.sim.program import BREAKS
from tests.sim.script import Fault
from tests.sim.world import World

WAYS: Final = (("up",), ("down",), ("up", "down"))
LOOK_AGAIN_S: Final = 0.002
FOLLOWED_S: Final = 4.0  # then all that can be have found a coordinator that was restarted
NEWCOMER_GOES_S: Final = 40.0
COPY_S: Final = 8.5  # above the grace for peers without their agent (`coordinator_process`)
CUT_OVER_S: Final = 4.0  # then all that were cut off have dialled again
BATCHES: Final = 12  # a crash between effects comes within so many batches of them


def play(world: World, fault: Fault) -> None:
    """Makes a fault happen now."""
    world.played[fault.kind] += 1
    world.note("fault {}", fault)
    if fault.kind in _PEER:
        peer = world.choose(fault.a)
        if peer is not None:
            peer.touched = True
            _PEER[fault.kind](world, peer, fault)
    else:
        if fault.kind in ("delay", "c_depose"):
            _touch_all(world)
        _OTHER[fault.kind](world, fault)


def _touch_all(world: World) -> None:
    """From here on nobody can be sure to be spared."""
    world.nobody_is_safe = True


# ------------------------------------------------------------ peers


def _kill(world: World, peer: PeerProcess, fault: Fault) -> None:
    peer.back_after_s = fault.x if world.script.rejoin else -1.0
    peer.die()


def _vanish(world: World, peer: PeerProcess, fault: Fault) -> None:
    peer.back_after_s = fault.x
    peer.die(silently=True)


def _stop(world: World, peer: PeerProcess, fault: Fault) -> None:
    peer.stop(2 * fault.x)


def _freeze(world: World, peer: PeerProcess, fault: Fault) -> None:
    """Stopped for longer than anybody waits."""
    peer.stop(30.0 + fault.x)


def _leave(world: World, peer: PeerProcess, fault: Fault) -> None:
    from pccl.membership.member_events import Leave

    peer.program.over = True
    peer.tell_member(Leave("done"))


def _exclude(world: World, fault: Fault) -> None:
    if world.listening is not None:
        world.listening.exclude(fault.a)


def _drain(world: World, peer: PeerProcess, fault: Fault) -> None:
    """Asks to be planned out, mostly with time enough for that."""
    from pccl.membership.member_events import Drain

    deadline_s = 10.0 * fault.x if fault.y < 0.8 else fault.x / 4
    peer.tell_member(Drain(deadline_s, "drain"))
    world.drains_until_s = max(world.drains_until_s, world.now_s + deadline_s)
    if not peer.engine.is_member() and deadline_s <= NEWCOMER_GOES_S:
        # No newcomer that counts until it is gone, while frozen members wait to be given up.
        world.faults_until_s = max(world.faults_until_s, world.now_s + deadline_s)


def _crash(world: World, peer: PeerProcess, fault: Fault) -> None:
    peer.dies_in = 1 + fault.b % BATCHES
    peer.dies_at = fault.y
    peer.back_after_s = fault.x


def _crash_commit(world: World, peer: PeerProcess, fault: Fault) -> None:
    """It dies at the moment when it alone knows of a commit."""
    peer.commits_left = 1 + fault.b % 4
    peer.dies_in_older_view = fault.y > 0.8
    peer.back_after_s = fault.x


def _slow(world: World, peer: PeerProcess, fault: Fault) -> None:
    peer.program.slow_s = fault.x


def _shape(world: World, peer: PeerProcess, fault: Fault) -> None:
    peer.program.next_shape = 1 + fault.b % 3


def _manifest(world: World, peer: PeerProcess, fault: Fault) -> None:
    peer.program.next_manifest = 1 + fault.b % 3


def _flip(world: World, peer: PeerProcess, fault: Fault) -> None:
    peer.engine.data.flips = 1 + fault.b % 4


def _break(world: World, peer: PeerProcess, fault: Fault) -> None:
    peer.program.next_break = BREAKS[1 if fault.kind == "raise" else 2]


def _duplicate(world: World, peer: PeerProcess, fault: Fault) -> None:
    """The peer's end is gone and dials again; the coordinator hears of it much later."""
    kinds = ("agent", "native")
    for wire in [w for w in world.wires if w.peer is peer and w.kind == kinds[fault.b % 2]]:
        wire.up_until_s = min(wire.up_until_s, wire.last_up_s)
        wire.down_until_s = min(wire.down_until_s, world.now_s)
        world.at(world.now_s, peer, wire.on_closed)
        world.at(world.now_s + fault.x, wire.coordinator, wire.coordinator.lost, wire)


# ------------------------------------------------------------ links


def _reset(world: World, peer: PeerProcess, fault: Fault) -> None:
    kind = fault.kind.removeprefix("reset_")
    for wire in [w for w in world.wires if w.peer is peer and w.kind == kind]:
        world.resets[peer.index, kind].append(world.now_s)
        world.reset(wire, fault.y)


def _reset_link(world: World, peer: PeerProcess, fault: Fault) -> None:
    links = world.links.of(peer)
    if links:
        _touch_ends(world, links[fault.b % len(links)])
        world.links.reset(links[fault.b % len(links)], fault.y)


def _touch_ends(world: World, link: Link) -> None:
    for incarnation in link.ends:
        world.by_incarnation[incarnation].touched = True


def _block(world: World, peer: PeerProcess, fault: Fault) -> None:
    kind = fault.kind.removeprefix("block_")
    for way in WAYS[fault.b % len(WAYS)]:
        world.block((kind, peer.index, way), fault.x)


def _block_peer(world: World, peer: PeerProcess, fault: Fault) -> None:
    """A whole peer is cut off, one way or both, from all or from all but the coordinator."""
    _touch_all(world)
    ways = WAYS[fault.b % len(WAYS)]
    for way in ways:
        world.block(("agent", peer.index, way), fault.x)
        world.block(("native", peer.index, way), fault.x)
    for link in world.links.of(peer):
        world.at(world.now_s + LANE_DEAD_S, None, world.links.judge, link, link.life)
    for other in world.living():
        if "up" in ways:
            world.block(("data", peer.index, other.index), fault.x)
        if "down" in ways:
            world.block(("data", other.index, peer.index), fault.x)


def _c_cut(world: World, fault: Fault) -> None:
    """The coordinator hears only one of its peers; they hear each other."""
    for i, peer in enumerate(world.living()):
        if i:
            for kind, way in ((k, w) for k in ("agent", "native") for w in WAYS[2]):
                world.block((kind, peer.index, way), fault.x)
    world.faults_until_s = max(world.faults_until_s, world.now_s + fault.x + CUT_OVER_S)


def _block_data(world: World, peer: PeerProcess, fault: Fault) -> None:
    """The path between two peers is cut; its connection breaks, or just delivers nothing."""
    links = world.links.of(peer)
    if not links:
        return
    link = links[fault.b % len(links)]
    _touch_ends(world, link)
    one, other = (world.by_incarnation[i].index for i in link.ends)
    if fault.y < 0.7:
        world.block(("data", one, other), fault.x)
    if fault.y > 0.3:
        world.block(("data", other, one), fault.x)
    if fault.y > 0.5:
        world.links.reset(link, 0.0)
    else:
        world.at(world.now_s + LANE_DEAD_S, None, world.links.judge, link, link.life)


# ------------------------------------------------------------ everything else


def _mass(world: World, fault: Fault) -> None:
    living = world.living()
    for i, peer in enumerate(living):
        if i != fault.a % len(living):
            peer.touched = True
            peer.back_after_s = fault.x * (1 + i / 8)
            peer.die()


def _stop_all(world: World, fault: Fault) -> None:
    """All machines are frozen at once, mostly for longer than anybody waits."""
    for peer in world.living():
        peer.touched = True
        peer.stop(30.0 + fault.x if fault.y < 0.7 else 2 * fault.x)


def _start(world: World, fault: Fault) -> None:
    start_peer(world)


def _delay(world: World, fault: Fault) -> None:
    world.delay_factor = (0.2, 4.0, 10.0)[fault.a % 3]
    world.at(world.now_s + fault.x, None, setattr, world, "delay_factor", 1.0)


def _c_kill(world: World, fault: Fault) -> None:
    if world.listening is not None:
        world.listening.back_after_s = fault.x
        world.listening.die(fault.y)


def _c_vanish(world: World, fault: Fault) -> None:
    """Its machine goes away without a goodbye; another one comes up at the same address."""
    if world.listening is not None:
        world.listening.back_after_s = fault.x
        world.listening.die(fault.y, silently=True)


def _flush_copy(world: World, fault: Fault) -> None:
    """Somebody copies the disk while a flush is on, and starts that copy when it is over."""
    peer = world.choose(fault.a)
    right = world.listening
    if peer is None or right is None or right.is_copy or not peer.engine.is_member():
        return
    peer.touched = True
    _kill(world, peer, fault)
    give_up_s = world.now_s + FOLLOWED_S

    def look() -> None:
        right = world.listening
        if world.quiet or world.now_s > give_up_s:
            return
        durable = None if right is None or right.is_copy else right.durable
        if durable is not None and durable.flushing:
            GrownCopy(world, fault, world.disk.copied()).wait()
        else:
            world.at(world.now_s + LOOK_AGAIN_S, None, look)

    look()


def _c_cancel(world: World, fault: Fault) -> None:
    if world.listening is not None:
        world.listening.back_after_s = fault.x
        world.listening.cancel()


def _c_crash(world: World, fault: Fault) -> None:
    if world.listening is not None:
        world.listening.back_after_s = fault.x
        world.listening.dies_in = 1 + fault.b % BATCHES
        world.listening.dies_at = fault.y


def _c_stop(world: World, fault: Fault) -> None:
    if world.listening is not None:
        world.listening.stop(2 * fault.x)


def _c_depose(world: World, fault: Fault) -> None:
    """Another coordinator takes over, while the old one lives and is perhaps stopped."""
    old = world.listening
    if old is None:
        return
    if fault.b % 2:
        old.stop(fault.x)
    world.listening = None
    start_coordinator(world)
    world.at(world.now_s + 2 * fault.x, None, old.die, 0.0)


def _c_copy(world: World, fault: Fault) -> None:
    """Somebody starts a coordinator on a copy of the disk, older than what the peers follow, for
    longer than a peer may be without its agent; then the right one comes back."""
    right = world.listening
    if right is None or right.is_copy:
        return
    copy = world.disk.copied()
    if fault.a % 2:
        start_peer(world)  # by whose coming in the copy becomes old
        GrownCopy(world, fault, copy).wait()
        return
    right.back_after_s = 0.2
    right.die(fault.y)
    world.disk.open()  # by one that nobody has met, so that the next is two generations ahead
    give_up_s = world.now_s + FOLLOWED_S

    def start() -> None:
        right = world.listening
        admitted = [p for p in world.living() if p.incarnation]
        followed = all(p.generation_followed > copy.generation + 1 for p in admitted)
        if world.now_s > give_up_s or world.quiet:
            return  # some peer may still believe the copy, and nobody could know better
        if right is None or right.is_copy or not followed:
            world.at(world.now_s + 0.25, None, start)
            return
        right.die(fault.y)
        taker = world.make_coordinator(world, copy)
        until_s = world.now_s + COPY_S + fault.x
        world.faults_until_s = max(world.faults_until_s, until_s + 1.0)
        world.at(until_s, None, taker.die, 0.0)

    world.faults_until_s = max(world.faults_until_s, give_up_s + 0.5)
    world.at(world.now_s + 0.5 + 0.5 * (fault.b % 4), None, start)


_PEER: Final[dict[str, Callable[[World, PeerProcess, Fault], None]]] = {
    "kill": _kill,
    "vanish": _vanish,
    "stop": _stop,
    "freeze": _freeze,
    "leave": _leave,
    "drain": _drain,
    "crash": _crash,
    "crash_commit": _crash_commit,
    "slow": _slow,
    "shape": _shape,
    "manifest": _manifest,
    "flip": _flip,
    "raise": _break,
    "local": _break,
    "duplicate": _duplicate,
    "reset_agent": _reset,
    "reset_native": _reset,
    "reset_link": _reset_link,
    "block_agent": _block,
    "block_native": _block,
    "block_data": _block_data,
    "block_peer": _block_peer,
}
_OTHER: Final[dict[str, Callable[[World, Fault], None]]] = {
    "mass": _mass,
    "stop_all": _stop_all,
    "start": _start,
    "delay": _delay,
    "c_kill": _c_kill,
    "c_vanish": _c_vanish,
    "c_cancel": _c_cancel,
    "c_crash": _c_crash,
    "c_stop": _c_stop,
    "c_cut": _c_cut,
    "c_depose": _c_depose,
    "c_copy": _c_copy,
    "flush_copy": _flush_copy,
    "exclude": _exclude,
}


def calm_down(world: World) -> None:
    """No more faults: what is cut heals, what is armed does not go off."""
    world.quiet = True
    world.heal()
    for peer in world.living():
        peer.dies_in = peer.commits_left = 0
        peer.engine.data.flips = 0
        program = peer.program
        program.next_shape = program.next_manifest = 0
        program.next_break, program.slow_s = "", 0.0
    for coordinator in world.coordinators:
        if coordinator is not world.listening or coordinator.is_copy:
            coordinator.die(0.0)
        coordinator.dies_in = 0
        coordinator.back_after_s = min(coordinator.back_after_s, 0.5)


def boot(world: World) -> CoordinatorProcess:
    start_coordinator(world)
    assert world.listening is not None
    return world.listening
