// native/src/lane/lane.cpp — moving frames through one conduit.
// Ownership: see lane.hpp.
// Threads:   under the engine's turn.
// Errors:    Status.
#include "pccl/lane.hpp"

#include <algorithm>
#include <cstring>
#include <utility>

#include "pccl/link.hpp"

namespace pccl {
namespace {

constexpr std::size_t frames_out_max = 8;
constexpr std::size_t ring_frames_max = 3;  // beyond those: MEMORY, OPENED, ROOM
// One system call carries about this much: below it the sender pays for the calls (2.5 times the
// CPU per byte at 64 KiB), above it nothing more is gained.
constexpr std::size_t batch_bytes = 256 * 1024;
constexpr double look_counts_s = 0.25;  // more between two looks: this side itself stood still
constexpr double round_trips_min = 20;  // as patient with a lane as with a peer's beats
constexpr std::size_t small_payload = 4096;  // below it, reading through the inbox is cheaper

std::size_t body_bytes(const OutgoingFrame& frame) noexcept {
  return frame.in_ring ? 0 : frame.length;
}

bool of_ring(FrameType type) noexcept {
  return type == FrameType::memory || type == FrameType::opened || type == FrameType::room;
}

}  // namespace

Lane::Lane(std::unique_ptr<Conduit> conduit, std::uint32_t id, double now_s, bool through_relay,
           bool by_memory)
    : relayed(through_relay),
      moved_s(now_s),
      conduit_(std::move(conduit)),
      id_(id),
      acknowledged_s_(now_s),
      local_(by_memory && !through_relay && conduit_->local()) {}

Status Lane::pump(FrameSource& source, std::size_t budget) {
  std::size_t moved = 0;
  if (conduit_->wants_write()) {
    if (const Status status = conduit_->flush(); status != Status::ok) return status;
    blocked_ = conduit_->wants_write();
  }
  while (!blocked_) {
    if (parked()) pass_through_ring(out_.back());
    std::size_t pending = 0;
    for (const OutgoingFrame& frame : out_) pending += header_bytes + frame.length;
    while (!parked() && pending < batch_bytes && out_.size() < frames_out_max && pull(source)) {
      const OutgoingFrame& frame = out_.back();
      pending += header_bytes + frame.length;
      if (frame.in_ring) moved += frame.length;
    }
    if (out_.empty() || out_.front().parked) return Status::ok;
    if (moved >= budget) return Status::ok;

    std::array<iovec, 2 * (frames_out_max + ring_frames_max)> parts;
    std::size_t count = 0;
    std::size_t skip = out_done_;
    const auto add = [&](const std::byte* data, std::size_t length) {
      const std::size_t skipped = std::min(skip, length);
      skip -= skipped;
      if (length == skipped) return;
      parts[count++] = {const_cast<std::byte*>(data) + skipped, length - skipped};
    };
    for (const OutgoingFrame& frame : out_) {
      if (frame.parked || count + 2 > parts.size()) break;  // the parked one is the last
      add(frame.header.data(), header_bytes);
      add(frame.in_small ? frame.small.data() : frame.payload, body_bytes(frame));
    }
    std::size_t sent = 0;
    const Status status = conduit_->send({parts.data(), count}, sent);
    if (status == Status::would_block) {
      blocked_ = true;
      return Status::ok;
    }
    if (status != Status::ok) return status;
    blocked_ = conduit_->wants_write();
    moved += sent;
    bytes_sent += sent;
    out_done_ += sent;
    while (!out_.empty() && !out_.front().parked &&
           out_done_ >= header_bytes + body_bytes(out_.front())) {
      out_done_ -= header_bytes + body_bytes(out_.front());
      const OutgoingFrame frame = std::move(out_.front());
      out_.pop_front();
      if (frame.tells_room) room_queued_ = false;
      if (frame.operation != nullptr) source.sent(frame);
    }
  }
  return Status::ok;
}

void Lane::look(double now_s, bool expecting) noexcept {
  // A lane that was silent since the last look costs one system call, and while no step runs none.
  const std::uint64_t taken = conduit_->acknowledged();
  in_kernel_ = conduit_->owing();
  const std::uint64_t by_memory = ring_out_ ? ring_out_->taken() : 0;
  const bool more_by_memory = std::exchange(taken_by_memory_, by_memory) != by_memory;
  owing = in_kernel_ || (ring_out_ && !ring_out_->empty());
  const bool acknowledged = std::exchange(acknowledged_, taken) != taken;
  if (acknowledged || !in_kernel_) acknowledged_s_ = now_s;
  if (acknowledged || more_by_memory || !owing) moved_s = now_s;
  const double passed_s = std::min(now_s - std::exchange(looked_s_, now_s), look_counts_s);
  const bool read = std::exchange(read_, bytes_received) != bytes_received;
  unread_s = expecting && !read && conduit_->unread() ? unread_s + passed_s : 0;
}

bool Lane::cut(double now_s, double patience_s) const noexcept {
  if (!in_kernel_ || now_s - acknowledged_s_ < patience_s) return false;
  const PathState path = conduit_->path();
  return path.in_flight && now_s - acknowledged_s_ >= round_trips_min * path.rtt_s;
}

Status Lane::fill(std::size_t wanted_payload, bool& empty) noexcept {
  if (drained_) {
    empty = true;
    return Status::ok;
  }
  // The inbox is empty or holds less than a header here: make room behind what it holds.
  if (inbox_begin_ != 0) {
    std::memmove(inbox_.data(), inbox_.data() + inbox_begin_, buffered());
    inbox_end_ -= inbox_begin_;
    inbox_begin_ = 0;
  }
  std::array<iovec, 2> parts;
  std::size_t count = 0;
  if (wanted_payload >= small_payload) {
    std::byte* target = placement_.target;
    std::size_t room = wanted_payload;
    if (target == nullptr) {
      target = scratch_.data();
      room = std::min(room, scratch_.size());
    } else {
      target += received_;
    }
    parts[count++] = {target, room};
    if (room == wanted_payload) {
      parts[count++] = {inbox_.data() + inbox_end_,
                        std::min(readahead_bytes, inbox_bytes - inbox_end_)};
    }
  } else {
    parts[count++] = {inbox_.data() + inbox_end_, inbox_bytes - inbox_end_};
  }
  std::size_t arrived = 0;
  const Status status = conduit_->receive({parts.data(), count}, arrived, drained_);
  if (status != Status::ok) {
    empty = status == Status::would_block;
    return empty ? Status::ok : status;
  }
  bytes_received += arrived;
  if (wanted_payload >= small_payload) {
    const std::size_t payload = std::min(arrived, parts[0].iov_len);
    received_ += payload;
    arrived -= payload;
  }
  inbox_end_ += arrived;
  return Status::ok;
}

Status Lane::accept_header(Link& link, FrameSink& sink) {
  const auto bytes = std::span<const std::byte, header_bytes>(inbox_.data() + inbox_begin_,
                                                              header_bytes);
  if (const Status status = decode(bytes, header_); status != Status::ok) return status;
  inbox_begin_ += header_bytes;
  placement_ = Placement{};
  received_ = 0;
  in_payload_ = true;
  if (of_ring(header_.type)) {
    placement_.kind = Placement::Kind::control;
    placement_.target = ring_body_.data();
    return Status::ok;
  }
  if (header_.type == FrameType::worker) {
    placement_.kind = Placement::Kind::discard;
    return Status::ok;
  }
  // Only who has opened the other side's ring knows that both are on one machine.
  if ((header_.flags & flag_ring) != 0 && !ring_in_) return Status::protocol;
  return sink.place(link, header_, placement_);
}

Status Lane::take_payload(Link& link, FrameSink& sink, std::size_t& taken, bool& empty) {
  if ((header_.flags & flag_ring) != 0) return take_from_ring(link, sink, taken);
  const std::size_t missing = header_.length - received_;
  if (const std::size_t here = std::min(missing, buffered()); here > 0) {
    if (placement_.target != nullptr) {
      std::memcpy(placement_.target + received_, inbox_.data() + inbox_begin_, here);
    }
    inbox_begin_ += here;
    received_ += here;
    taken += here;
  } else if (missing > 0) {
    const std::size_t before = received_;
    if (const Status status = fill(missing, empty); status != Status::ok) return status;
    taken += received_ - before;
  }
  if (received_ < header_.length) return Status::ok;
  in_payload_ = false;
  Placement placement = std::move(placement_);
  placement_ = Placement{};
  if (of_ring(header_.type)) return hear_of_ring(link);
  if (header_.type == FrameType::worker) return decline_worker(link);
  return sink.delivered(link, header_, placement);
}

/// The other end would rather use UCX; whoever gets here does not.
Status Lane::decline_worker(Link& link) {
  if (header_.length == 0) return Status::ok;  // so the other one does not either
  if (std::exchange(worker_declined_, true)) return Status::protocol;
  FrameHeader header;
  header.type = FrameType::worker;
  post(header, {});
  link.dirty = true;
  return Status::ok;
}

Status Lane::receive(Link& link, FrameSink& sink, std::size_t budget, bool& more) {
  std::size_t taken = 0;
  bool empty = false;
  more = false;
  drained_ = false;
  while (!empty) {
    // What lies in the inbox is known to nobody else: the poller tells only of the socket.
    const bool inbox_done = in_payload_ ? buffered() == 0 : buffered() < header_bytes;
    if (taken >= budget && inbox_done && !conduit_->holds_received()) {
      more = true;
      return Status::ok;
    }
    Status status = Status::ok;
    if (in_payload_) {
      status = take_payload(link, sink, taken, empty);
    } else if (buffered() >= header_bytes) {
      status = accept_header(link, sink);
      taken += header_bytes;  // a flood of empty frames is a flood, too
      // What needs nothing more from the socket is delivered at once.
      const bool here = header_.length == 0 || (header_.flags & flag_ring) != 0;
      if (status == Status::ok && here) {
        status = take_payload(link, sink, taken, empty);
      }
    } else {
      status = fill(0, empty);
    }
    if (status != Status::ok) return status;
  }
  return Status::ok;
}

bool Lane::delivered() noexcept {
  if (!idle()) return false;
  (void)conduit_->acknowledged();
  return !conduit_->owing();
}

/// `holds`: a placement or a frame is about what is let go of.
template <class Holds>
void Lane::let_go_where(const Holds& holds, BufferPool& buffers) noexcept {
  if (in_payload_ && holds(placement_)) {
    // Tiles of the lane's own stay; only memory of others is left alone.
    placement_ = Placement{};
  }
  for (std::size_t i = 0; i < out_.size(); ++i) {
    OutgoingFrame& frame = out_[i];
    if (!holds(frame)) continue;
    if (frame.in_ring) {  // what was written there is read from there; its header must follow
      frame.operation = nullptr;
      frame.letter = 0;
      continue;
    }
    if (i > 0 || out_done_ == 0) {
      out_.erase(out_.begin() + static_cast<std::ptrdiff_t>(i));
      --i;
      continue;
    }
    if (!frame.buffer) {
      Buffer copy = buffers.take(frame.length);
      if (!copy) {
        // What was begun cannot be finished: the lane ends, as soon as somebody looks at it.
        conduit_->shut();
        out_done_ = 0;
        out_.pop_front();
        --i;
        continue;
      }
      std::memcpy(copy.data(), frame.payload, frame.length);
      frame.payload = copy.data();
      frame.buffer = std::move(copy);
    }
    frame.operation = nullptr;
    frame.letter = 0;
  }
}

void Lane::let_go(const Operation& operation, BufferPool& buffers) noexcept {
  let_go_where([&](const auto& held) { return held.operation == &operation; }, buffers);
}

void Lane::let_go(LetterId letter, BufferPool& buffers) noexcept {
  let_go_where([&](const auto& held) { return held.letter == letter; }, buffers);
}

}  // namespace pccl
