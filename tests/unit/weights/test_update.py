"""Anchors and deltas: exact for every element type and every bit, and all or nothing."""

from __future__ import annotations

import itertools
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pccl.base.errors import RemoteError, UsageError
from pccl.weights import update as u
from pccl.weights.applying import apply_updates, digest_of
from pccl.weights.errors import BaseMismatch, CorruptUpdate
from pccl.weights.layout import tensors_of
from tests.unit.weights.states import (
    KINDS,
    State,
    anchor_of,
    copies,
    delta_between,
    read,
    same_bits,
    zeros,
)

SHAPES = [(), (0,), (3, 0, 2), (1,), (7,), (33, 5), (1000,)]


def random_state(seed: int, kind: str, shape: tuple[int, ...]) -> State:
    """Bits of every kind, NaNs with payloads and negative zeros among them."""
    dice = np.random.default_rng(seed)
    size = int(np.prod(shape)) * np.dtype(kind).itemsize
    high = 2 if kind == "?" else 256
    bits = dice.integers(0, high, size).astype(np.uint8)
    return {
        "w": bits.view(kind).reshape(shape),
        "other": dice.standard_normal(300).astype(np.float32),
    }


def bring(target: State, *updates: u.Update) -> int:
    return apply_updates(tensors_of(target, writable=True), updates)


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(KINDS),
    st.sampled_from(SHAPES),
    st.integers(0, 2**32),
    st.sampled_from([0.0, 0.01, 0.3, 1.0]),
)
def test_a_delta_brings_every_bit_of_every_type(
    kind: str, shape: tuple[int, ...], seed: int, density: float
) -> None:
    old = random_state(seed, kind, shape)
    new, other = copies(old), random_state(seed + 1, kind, shape)
    chosen = np.random.default_rng(seed).random(shape) < density
    new["w"][chosen] = other["w"][chosen]
    found = delta_between(old, new)
    target = copies(old)
    written = bring(target, read(found.payload))
    assert same_bits(target, new)
    assert found.digest == digest_of(tensors_of(target)) == anchor_of(new).digest
    assert written >= found.changed


@pytest.mark.parametrize("kind", KINDS)
def test_an_anchor_brings_every_bit_of_every_type(kind: str) -> None:
    state = random_state(5, kind, (50, 7)) | {"empty": np.zeros((0, 4), kind)}
    target = zeros(state)
    bring(target, anchor_of(state))
    assert same_bits(target, state)


def test_a_negative_zero_and_the_payload_of_a_nan_are_changes() -> None:
    old = {"w": np.zeros(4, np.float32)}
    old["w"][3] = np.nan
    new = copies(old)
    new["w"].view(np.uint32)[1] = 0x8000_0000
    new["w"].view(np.uint32)[3] ^= 1
    found = delta_between(old, new)
    assert found.changed == 2
    bring(old, read(found.payload))
    assert same_bits(old, new)


def test_nothing_changed_costs_a_head_and_keeps_the_digest() -> None:
    state = random_state(1, "f4", (5000,))
    found = delta_between(state, copies(state))
    assert (found.changed, len(found.payload)) == (0, 4 + 1 + 8 + 16 + 16 + 8)
    assert found.digest == anchor_of(state).digest
    assert bring(state, read(found.payload)) == 0


def test_what_is_sparse_costs_its_cells_and_what_is_not_costs_no_more_than_all_of_it() -> None:
    old = {"w": np.zeros(1_000_000, np.uint16)}
    sparse, dense = copies(old), copies(old)
    dice = np.random.default_rng(0)
    at = dice.choice(1_000_000, 10_000, replace=False)
    sparse["w"][at] = dice.integers(1, 65_536, 10_000)
    dense["w"][:] = dice.integers(1, 65_536, 1_000_000)
    assert len(delta_between(old, sparse).payload) < 2_000_000 / 60
    assert len(delta_between(old, dense).payload) < 2_000_000 + 200


def test_a_tensor_of_several_segments_sends_only_those_that_changed() -> None:
    old = {"w": np.zeros(2 * u.SEGMENT_BYTES + 4096, np.uint8)}
    new = copies(old)
    new["w"][u.SEGMENT_BYTES : 2 * u.SEGMENT_BYTES] = 7
    new["w"][-1] = 9
    found = delta_between(old, new)
    assert [section.coding for section in read(found.payload).records["w"].sections] == [1, 1]
    dice = np.random.default_rng(0)
    noise = dice.integers(0, 256, u.SEGMENT_BYTES).astype(np.uint8)
    new["w"][u.SEGMENT_BYTES : 2 * u.SEGMENT_BYTES] = noise
    found = delta_between(old, new)
    sections = read(found.payload).records["w"].sections
    assert [(s.start // u.SEGMENT_BYTES, s.coding) for s in sections] == [
        (1, u.FULL),
        (2, u.SPARSE),
    ]
    bring(old, read(found.payload))
    assert same_bits(old, new)


def test_several_deltas_and_an_anchor_before_them_are_applied_as_one() -> None:
    states = [random_state(n, "i2", (40, 9)) for n in range(4)]
    updates = [anchor_of(states[0])]
    for revision, (old, new) in enumerate(itertools.pairwise(states), 2):
        updates.append(read(delta_between(old, new, revision).payload))
    target = zeros(states[0])
    bring(target, *updates)
    assert same_bits(target, states[3])
    late = copies(states[1])
    bring(late, *updates[2:])
    assert same_bits(late, states[3])


def test_the_baseline_follows_what_was_sent_and_not_what_the_caller_did_since() -> None:
    old = random_state(1, "f2", (100, 100))
    new = copies(old)
    new["w"][3] = 1
    found = delta_between(old, new)
    sent = copies(new)
    new["w"][4] = 2
    tensors = tensors_of(old)
    u.advance([t.memory for t in tensors], [t.spec for t in tensors], found.patches)
    assert same_bits(old, sent)


@pytest.mark.parametrize("name", ["w", "other"])
def test_tensors_that_are_not_the_base_are_refused_and_left_as_they_are(name: str) -> None:
    old = random_state(1, "f4", (99,))
    new = copies(old)
    new["w"][50] = 5
    wrong = copies(old)
    wrong[name].view(np.uint8)[0] ^= 1
    before = copies(wrong)
    with pytest.raises(BaseMismatch):
        bring(wrong, read(delta_between(old, new).payload))
    assert same_bits(wrong, before)


def test_updates_that_were_cut_off_while_they_were_written_are_applied_again() -> None:
    old, new = random_state(1, "f4", (99,)), random_state(2, "f4", (99,))
    update = read(delta_between(old, new).payload)
    torn = copies(old)
    section = update.records["w"].sections[0]
    section.put_into(tensors_of(torn)[1].memory, 4)
    assert not same_bits(torn, old) and not same_bits(torn, new)
    bring(torn, update)
    assert same_bits(torn, new)


def test_a_delta_that_leads_elsewhere_is_corrupt_and_changes_nothing() -> None:
    old, new = random_state(1, "f4", (99,)), random_state(2, "f4", (99,))
    payload = bytearray(delta_between(old, new).payload)
    payload[-3] ^= 0x10  # a value
    target = copies(old)
    with pytest.raises(CorruptUpdate):
        bring(target, read(bytes(payload)))
    assert same_bits(target, old)
    lying = bytearray(delta_between(old, new).payload)
    lying[29] ^= 1  # the digest of the whole
    with pytest.raises(CorruptUpdate):
        bring(target, read(bytes(lying)))
    assert same_bits(target, old)


def test_updates_that_do_not_follow_one_another_are_refused() -> None:
    states = [random_state(n, "i2", (40, 9)) for n in range(3)]
    first = read(delta_between(states[0], states[1]).payload)
    other = read(delta_between(states[0], states[2]).payload)
    with pytest.raises(CorruptUpdate, match="does not follow"):
        bring(copies(states[0]), first, other)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.pop("w"), "w is missing"),
        (lambda s: s.update(x=s["w"].copy()), "x is not part of the state"),
        (lambda s: s.update(w=s["w"].astype(np.float64)), r"w is f64\[9, 9\], expected f32"),
        (lambda s: s.update(w=s["w"].reshape(3, 27)), r"w is f32\[3, 27\], expected f32\[9, 9\]"),
    ],
)
def test_another_layout_is_refused_by_the_first_difference(change: Any, words: str) -> None:
    state = random_state(1, "f4", (9, 9))
    target = copies(state)
    change(target)
    with pytest.raises(UsageError, match=words):
        bring(target, anchor_of(state))


@pytest.mark.parametrize("at", range(0, 400, 3))
def test_an_update_that_ends_early_is_refused(at: int) -> None:
    old, new = random_state(1, "f4", (99,)), random_state(2, "f4", (99,))
    payload = delta_between(old, new).payload
    assert len(payload) > 400
    with pytest.raises(RemoteError):
        read(payload[:at])
    with pytest.raises(RemoteError):
        read(payload + b"\0")


def test_a_record_that_claims_more_than_the_state_is_refused_before_its_memory() -> None:
    state = {"w": np.zeros(10, np.uint8)}
    tensors = tensors_of(state)
    payload = bytearray(delta_between(state, {"w": np.ones(10, np.uint8)}).payload)
    at = payload.index(struct.pack("<Q", 10), 50)
    payload[at : at + 8] = struct.pack("<Q", 1 << 60)
    with pytest.raises(RemoteError, match="larger than the state"):
        u.parse(memoryview(bytes(payload)), state_bytes_max=tensors[0].memory.size)


def test_torch_tensors_of_every_type_travel_and_mix_with_numpy() -> None:
    torch = pytest.importorskip("torch")
    kinds = (
        "bfloat16 float16 float32 float64 float8_e4m3fn float8_e5m2 int64 bool complex64".split()
    )
    dice = np.random.default_rng(3)

    def make() -> dict[str, Any]:
        made = {}
        for kind in kinds:
            dtype = getattr(torch, kind)
            most = 2 if kind == "bool" else 256
            raw = torch.from_numpy(dice.integers(0, most, 160 * dtype.itemsize).astype(np.uint8))
            made[kind] = raw.view(dtype).reshape(16, 10)
        return made

    old, new = make(), make()
    bring(old, anchor_of(make()))
    target = {name: tensor.clone() for name, tensor in old.items()}
    bring(target, read(delta_between(old, new).payload))
    for name in kinds:
        assert target[name].view(torch.uint8).equal(new[name].view(torch.uint8)), name
    as_numpy = {"float32": np.zeros((16, 10), np.float32)}
    bring(as_numpy, anchor_of({"float32": new["float32"]}))
    assert as_numpy["float32"].tobytes() == new["float32"].numpy().tobytes()
