"""Gives the state to others: one thread for each stream, beside the program.

In a secured run who dials proves who it is on that thread, before it counts among the streams.

Invariant: what is sent is a pinned revision; if its memory was changed before it could be copied,
the stream ends, and the receiver begins anew with what differs.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from pccl.base.errors import PcclError, RemoteError
from pccl.base.log import get_logger
from pccl.state import messages as m
from pccl.state.kept import Pin
from pccl.state.layout import LEAF_BYTES
from pccl.state.shared import SharedState
from pccl.state.stream import Stream, StreamLost, identity_of, stream_tls_of
from pccl.state.stream_tls import HalfOpen
from pccl.state.tensors import Bytes

if TYPE_CHECKING:
    from pccl.session import Session

STREAMS_MAX = 64
HALF_OPEN_MAX = 32  # in a secured run: streams of whom nobody knows yet who they are
IDLE_S = 60.0  # a receiver asks again within this, or has gone
FOLLOWER_IDLE_S = 3600.0  # a newcomer at an entry that the members come to seldom
PINS_MAX = 16  # described on one stream
AT_STEP_S = 20.0  # how long a newcomer's question waits for this program to come to its step
YIELD_S = 0.005  # a paced donor lets an operation in flight go first, this long at most
_log = get_logger("state")


class Donor:
    """Answers streams for one session.  `offer` is called by the agent, `close` by the session."""

    def __init__(self, session: Session, state: SharedState) -> None:
        self.state = state
        self.closed = False
        self._session = session
        self._lock = threading.Lock()
        self._streams: set[Stream] = set()
        self._half_open = HalfOpen(HALF_OPEN_MAX)
        self.tls = stream_tls_of(session)
        self.in_collective = False  # everybody waits for the transfer: no pace

    def offer(self, fd: int, peer_id: bytes) -> None:
        """Takes over a connection; waits for nothing."""
        sock = socket.socket(fileno=fd)
        name = f"pccl-donor-{peer_id.hex()[:8]}"
        if self.tls is not None:
            arguments = sock, self._half_open.enter(sock)
            threading.Thread(target=self._hear, args=arguments, name=name, daemon=True).start()
            return
        stream = Stream(sock, IDLE_S)
        if self._keep(stream):
            threading.Thread(target=self._serve, args=(stream,), name=name, daemon=True).start()

    def _keep(self, stream: Stream) -> bool:
        """Says whether there is room for a stream; ends it if not."""
        with self._lock:
            room = not self.closed and len(self._streams) < STREAMS_MAX
            if room:
                self._streams.add(stream)
        if not room:
            stream.close()
        return room

    def _hear(self, sock: socket.socket, serial: int) -> None:
        try:
            stream = Stream.accept(sock, identity_of(self._session, self.tls), IDLE_S)
        except (StreamLost, RemoteError) as error:
            _log.info("a stream is not let in: %s", error)
            return
        except Exception:  # a mistake of ours: it ends one stream
            _log.exception("a stream could not be let in")
            return
        finally:
            self._half_open.leave(serial)
        if self._keep(stream):
            self._serve(stream)

    def close(self) -> None:
        with self._lock:
            self.closed = True
            streams = list(self._streams)
        self._half_open.close()
        for stream in streams:
            stream.close()

    def comes_to(self, step: int) -> bool:
        """Waits until the program has begun this step; says whether it did in time."""
        deadline_s = time.monotonic() + AT_STEP_S
        while self._session.next_step <= step:
            if time.monotonic() >= deadline_s or self.closed:
                return False
            time.sleep(0.002)
        return True

    def pace(self) -> float:
        """Returns for which part of its time a donor sends; gives way to steps in flight."""
        if self.in_collective or self.state.pace >= 1.0:
            return 1.0
        deadline_s = time.monotonic() + YIELD_S
        while self._session.in_flight() and time.monotonic() < deadline_s:
            time.sleep(0.001)
        return self.state.pace

    def _serve(self, stream: Stream) -> None:
        serving = _Serving(self, stream)
        try:
            with (
                contextlib.nullcontext()
                if self.tls is None
                else self.tls.denials.ends(stream.proved, stream.close)
            ):
                while not self.closed:
                    serving.answer(m.question_codec.decode(stream.receive()))
        except (StreamLost, RemoteError) as error:
            _log.debug("a stream ends: %s", error)
        except Exception:  # a mistake of ours, or values that cannot be read: it ends one stream
            _log.exception("serving the state failed")
        finally:
            serving.end()
            stream.close()
            with self._lock:
                self._streams.discard(stream)


class _Serving:
    """One receiver, and what is kept for it."""

    def __init__(self, donor: Donor, stream: Stream) -> None:
        self._donor = donor
        self._state = donor.state
        self._stream = stream
        self._pins: list[Pin] = []
        self._scratch = np.empty(LEAF_BYTES, np.uint8)
        self._follows = False  # wants committed results, and the pins no more
        self._urgent = False  # a member that the others wait for

    def end(self) -> None:
        self._unpin()
        if self._follows:
            self._state.unfollow()

    def _unpin(self) -> None:
        while self._pins:
            self._state.unpin(self._pins.pop())

    def answer(self, question: m.Question) -> None:
        match question:
            case m.Describe():
                self._describe(question)
            case m.Fetch():
                self._fetch(question)
            case m.Replay(revision):
                self._replay(revision)

    def _describe(self, ask: m.Describe) -> None:
        state, donor = self._state, self._donor
        if ask.protocol != m.PROTOCOL:
            return self._refuse("usage", f"protocol {m.PROTOCOL} is spoken here")
        if len(self._pins) >= PINS_MAX:
            return self._refuse("usage", "too many questions on one stream")
        if not state.synced and not donor.in_collective:
            return self._refuse("state", m.WAITS_ITSELF)
        if ask.at_step != m.CURRENT:
            if not donor.comes_to(ask.at_step):
                return self._refuse("state", f"the program has not come to step {ask.at_step}")
            self._urgent = True
        try:
            pin = state.pin()
        except PcclError as error:
            return self._refuse("state", str(error))
        self._pins.append(pin)
        layout = state.layout.encoded
        self._say(
            m.Described(
                revision=pin.revision,
                lineage=pin.lineage,
                hashing=state.hashing.name,
                root=pin.root,
                layout_bytes=len(layout),
                digests_bytes=len(pin.digests),
            )
        )
        self._send(layout)
        self._send(pin.digests)
        return None

    def _fetch(self, ask: m.Fetch) -> None:
        leaves = self._state.layout.leaves
        asked = (ask.revision, ask.root)
        pin = next((p for p in self._pins if (p.revision, p.root) == asked), None)
        if pin is None or any(leaf >= len(leaves) for leaf in ask.leaves):
            return self._refuse("gone", "that was not described on this stream")
        if not self._state.holds(pin):
            return self._refuse("gone", "another revision is in force")
        wanted = [leaves[leaf] for leaf in ask.leaves]
        self._say(m.Leaves(sum(leaf.byte_count for leaf in wanted)))
        for leaf in wanted:
            content = self._state.read(pin, leaf, self._scratch_for_others())
            if content is None:
                raise StreamLost("the revision changed while it was sent")
            self._send(content)
        return None

    def _scratch_for_others(self) -> Bytes | None:
        """While everybody waits for the transfer, the memory stands still and is sent as it is."""
        return None if self._urgent or self._donor.in_collective else self._scratch

    def _replay(self, revision: int) -> None:
        if not self._follows:
            self._follows = True
            self._state.follow()
            if not self._urgent:  # else it may yet want what it was told of
                self._unpin()
                self._stream.patience(FOLLOWER_IDLE_S)
        results = self._state.results_of(revision)
        if results is None:
            return self._refuse("gone", f"no results after revision {revision} are kept")
        layout = results.layout.encoded
        self._say(m.Results(revision, len(layout), results.byte_count))
        self._send(layout)
        for content in results.content:
            self._send(content)
        return None

    def _say(self, answer: m.Answer) -> None:
        self._stream.send(m.answer_codec.encode(answer))

    def _refuse(self, code: str, text: str) -> None:
        self._say(m.Sorry(code, text[: m.TEXT_CHARACTERS_MAX]))

    def _send(self, content: Any) -> None:
        if len(content):
            self._stream.send_bytes(content, self._pace)

    def _pace(self) -> float:
        return 1.0 if self._urgent else self._donor.pace()
