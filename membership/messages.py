"""What a peer's member agent and the coordinator say to each other.  Bytes: docs/PROTOCOL.md.

Every message is a frozen dataclass marked with its wire tag; the codec turns it into the
MessagePack array [tag, field, ...] and back, and checks field types.  What a type hint cannot say
(lengths, ports, 32-bit epochs) is checked in `__post_init__`, which raises ValueError; while
decoding, the codec maps that to RemoteError, because then the peer who sent the bytes is at fault.
The classes are in `peer_messages` and `coordinator_messages`; here are the two codecs.

Compatibility: a tag is never used again for something else, fields are only appended, an appended
field has a default.  The fields that say which coordinator speaks (`generation`) and about which
view (`epoch`) are in every message that changes a peer's state, so that a late one of an older
coordinator or of an abandoned plan is recognised and dropped.
"""

from __future__ import annotations

from typing import Final, get_args

from pccl.membership.coordinator_messages import REFUSALS_FOR_NOW as REFUSALS_FOR_NOW
from pccl.membership.coordinator_messages import (
    REFUSED_FOR_AN_OLD_COPY as REFUSED_FOR_AN_OLD_COPY,
)
from pccl.membership.coordinator_messages import Activate as Activate
from pccl.membership.coordinator_messages import Admitted as Admitted
from pccl.membership.coordinator_messages import CancelPlan as CancelPlan
from pccl.membership.coordinator_messages import Evicted as Evicted
from pccl.membership.coordinator_messages import Excluded as Excluded
from pccl.membership.coordinator_messages import Hold as Hold
from pccl.membership.coordinator_messages import Install as Install
from pccl.membership.coordinator_messages import Recall as Recall
from pccl.membership.coordinator_messages import Refused as Refused
from pccl.membership.coordinator_messages import StatusReply as StatusReply
from pccl.membership.coordinator_messages import ViewPlan as ViewPlan
from pccl.membership.coordinator_messages import World as World
from pccl.membership.message_parts import DECISIONS_MAX as DECISIONS_MAX
from pccl.membership.message_parts import DRAIN_S_MAX as DRAIN_S_MAX
from pccl.membership.message_parts import GROUP_MAX as GROUP_MAX
from pccl.membership.message_parts import ID_BYTES as ID_BYTES
from pccl.membership.message_parts import MEMBERS_MAX as MEMBERS_MAX
from pccl.membership.message_parts import NAME_CHARACTERS_MAX as NAME_CHARACTERS_MAX
from pccl.membership.message_parts import SEAT_MAX as SEAT_MAX
from pccl.membership.message_parts import STATUS_BYTES_MAX as STATUS_BYTES_MAX
from pccl.membership.message_parts import STRAGGLER_WAIT as STRAGGLER_WAIT
from pccl.membership.message_parts import TEXT_CHARACTERS_MAX as TEXT_CHARACTERS_MAX
from pccl.membership.message_parts import MemberInfo as MemberInfo
from pccl.membership.message_parts import StepDecision as StepDecision
from pccl.membership.message_parts import StepOutcome as StepOutcome
from pccl.membership.message_parts import Underflow as Underflow
from pccl.membership.message_parts import ViewInfo as ViewInfo
from pccl.membership.peer_messages import AtEntry as AtEntry
from pccl.membership.peer_messages import CarriedBy as CarriedBy
from pccl.membership.peer_messages import Drain as Drain
from pccl.membership.peer_messages import Hello as Hello
from pccl.membership.peer_messages import HoldFrom as HoldFrom
from pccl.membership.peer_messages import Installed as Installed
from pccl.membership.peer_messages import Leaving as Leaving
from pccl.membership.peer_messages import LinksFailed as LinksFailed
from pccl.membership.peer_messages import LinksUp as LinksUp
from pccl.membership.peer_messages import StatusRequest as StatusRequest
from pccl.membership.peer_messages import Switched as Switched
from pccl.membership.peer_messages import Testimony as Testimony
from pccl.membership.peer_messages import WaitFor as WaitFor
from pccl.transport.codec import Codec

PROTOCOL_VERSION: Final = 2

PeerMessageBody = (
    Hello
    | AtEntry
    | LinksUp
    | LinksFailed
    | HoldFrom
    | Switched
    | Installed
    | WaitFor
    | Leaving
    | StatusRequest
    | Drain
    | Testimony
    | CarriedBy
)
CoordinatorMessageBody = (
    Admitted
    | Refused
    | ViewPlan
    | Hold
    | Activate
    | CancelPlan
    | Install
    | Evicted
    | World
    | StatusReply
    | Recall
    | Excluded
)

ORDERS: Final = (Hold, Activate, CancelPlan, Install, Excluded)
"""Who obeys one follows the coordinator that gave it, and none before it any more."""

peer_codec: Codec[PeerMessageBody] = Codec(*get_args(PeerMessageBody))
"""What the coordinator decodes and a peer encodes."""

coordinator_codec: Codec[CoordinatorMessageBody] = Codec(*get_args(CoordinatorMessageBody))
"""What a peer decodes and the coordinator encodes."""
