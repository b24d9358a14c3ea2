// native/src/lane/lane_ring.cpp — a lane's payloads that go through memory.
// Ownership: see lane.hpp.
// Threads:   under the engine's turn.
// Errors:    protocol where a header names a payload that the ring does not hold.
#include <algorithm>
#include <cstring>
#include <iterator>
#include <utility>

#include "pccl/lane.hpp"
#include "pccl/link.hpp"

namespace pccl {

/// Takes the next frame from the source; false: there is none.
bool Lane::pull(FrameSource& source) {
  OutgoingFrame& frame = out_.emplace_back();
  frame.may_be_unhashed = ring_out_ && ring_out_->ready();
  if (!source.next(id_, frame)) {
    out_.pop_back();
    return false;
  }
  const bool payload = frame.operation != nullptr || frame.letter != 0;
  if (local_ && payload && frame.length >= ring_payload_min) pass_through_ring(frame);
  return true;
}

void Lane::pass_through_ring(OutgoingFrame& frame) {
  if (!std::exchange(ring_offered_, true)) offer_ring();
  if (!ring_out_ || !ring_out_->ready()) return;
  std::byte* room = ring_out_->reserve(frame.length);
  if (room == nullptr && !ring_out_->await_room(frame.length)) {
    room = ring_out_->reserve(frame.length);
  }
  frame.parked = room == nullptr;
  if (frame.parked) return;
  std::memcpy(room, frame.payload, frame.length);
  ring_out_->produce(frame.length);
  mark_in_ring(frame.header);
  frame.in_ring = true;
  ring_bytes_sent += frame.length;
}

void Lane::offer_ring() {
  ring_out_ = PayloadRing::make();
  if (!ring_out_) return;
  std::array<std::byte, ring_name_bytes> body;
  encode(ring_out_->name(), body);
  FrameHeader header;
  header.type = FrameType::memory;
  post(header, body);
}

/// Queues a frame of the lane's own, before one that is parked: the other side may wait for it.
OutgoingFrame& Lane::post(FrameHeader header, std::span<const std::byte> body) {
  sign(header, body);
  OutgoingFrame& frame = *out_.emplace(parked() ? std::prev(out_.end()) : out_.end());
  frame.length = header.length;
  frame.in_small = true;
  std::copy(body.begin(), body.end(), frame.small.begin());
  encode(header, frame.header);
  return frame;
}

Status Lane::hear_of_ring(Link& link) {
  if (header_.type == FrameType::opened) {
    if (!ring_out_ || ring_out_->ready()) return Status::protocol;
    ring_out_->opened();
    return Status::ok;
  }
  if (header_.type == FrameType::room) {
    if (!ring_out_) return Status::protocol;
    link.dirty = true;
    return Status::ok;
  }
  RingName name;
  if (!intact(header_, ring_body_.data()) || decode(ring_body_, name) != Status::ok || ring_in_) {
    return Status::protocol;
  }
  if (!local_) return Status::ok;  // no answer: the other side does without
  ring_in_ = PayloadRing::open(name);
  if (ring_in_) {
    FrameHeader header;
    header.type = FrameType::opened;
    post(header, {});
    link.dirty = true;
  }
  return Status::ok;
}

Status Lane::take_from_ring(Link& link, FrameSink& sink, std::size_t& taken) {
  const std::byte* payload = ring_in_->front(header_.length);
  if (payload == nullptr) return Status::protocol;
  in_payload_ = false;
  Placement placement = std::move(placement_);
  placement_ = Placement{};
  taken += header_.length;
  if (placement.used_up) {
    placement.target = const_cast<std::byte*>(payload);
  } else if (placement.target != nullptr) {
    std::memcpy(placement.target, payload, header_.length);
  }
  const Status status = sink.delivered(link, header_, placement);
  if (ring_in_->consume(header_.length) && !std::exchange(room_queued_, true)) {
    FrameHeader room;
    room.type = FrameType::room;
    post(room, {}).tells_room = true;
    link.dirty = true;
  }
  return status;
}

}  // namespace pccl
