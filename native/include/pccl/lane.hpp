// native/include/pccl/lane.hpp — one connection of a link, and the frames on it.
//
// A lane pulls: when its conduit takes bytes it asks its FrameSource for the next frame, so unequal
// lanes share the work by what they really move, and a dead lane has lost only what it held.  On
// the way in, the FrameSink says where each frame's payload goes before a byte of it is read.
//
// Between two processes of one machine large payloads go through memory, if both can open it
// (payload_ring.hpp); their headers stay in order on the conduit.
//
// Ownership: owns its conduit; payloads are borrowed from operations, or owned as pooled buffers.
// Threads:   under the engine's turn.
// Errors:    Status; closed, io_error and protocol end the lane.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <span>

#include "pccl/buffers.hpp"
#include "pccl/conduit.hpp"
#include "pccl/payload_ring.hpp"
#include "pccl/status.hpp"
#include "pccl/wire.hpp"

namespace pccl {

class Operation;
class Link;

/// Where an incoming payload goes.
struct Placement {
  enum class Kind : std::uint8_t {
    discard,  // stale or unwanted: read and forgotten
    control,  // a control frame's body, in the lane's own small buffer
    tile,     // a pooled buffer, applied when whole
    direct,   // straight into an operation's output, or a letter's memory
    early,    // a pooled buffer, kept until the operation is posted
    staged,   // a pooled buffer: a chunk of a message that nobody receives yet
  };
  Kind kind = Kind::discard;
  std::byte* target = nullptr;
  Operation* operation = nullptr;
  LetterId letter = 0;
  std::uint16_t transfer = 0;
  Buffer buffer;
  bool used_up = false;  // delivered() needs the payload no longer, hence no tile
};

/// What is on its way out.
struct OutgoingFrame {
  std::array<std::byte, header_bytes> header;
  std::array<std::byte, open_bytes> small;     // body of a control frame
  const std::byte* payload = nullptr;  // into the operation's memory, `small` or `buffer`
  std::uint32_t length = 0;
  bool in_small = false;
  bool may_be_unhashed = false;        // the lane says so to its source
  bool in_ring = false;                // the payload is there already
  bool parked = false;                 // it waits for room in the ring
  bool tells_room = false;             // a ROOM; one is enough
  Buffer buffer;
  Operation* operation = nullptr;  // null for control frames, and once it let go
  LetterId letter = 0;             // likewise
  std::uint16_t transfer = 0;
  std::uint32_t slice = 0;
};

class FrameSink {
 public:
  /// Decides where the payload of `header` goes; anything but ok ends the lane.
  virtual Status place(Link& link, const FrameHeader& header, Placement& placement) = 0;
  virtual Status delivered(Link& link, const FrameHeader& header,
                           Placement& placement) = 0;

 protected:
  ~FrameSink() = default;
};

class FrameSource {
 public:
  /// The next frame for this lane, or false if there is none now.
  virtual bool next(std::uint32_t lane, OutgoingFrame& frame) = 0;
  /// The last byte of an operation's frame is in the kernel.
  virtual void sent(const OutgoingFrame& frame) = 0;

 protected:
  ~FrameSource() = default;
};

class Lane {
 public:
  /// `by_memory`: large payloads may go through rings, if both ends turn out to be on one machine.
  Lane(std::unique_ptr<Conduit> conduit, std::uint32_t id, double now_s,
       bool through_relay = false, bool by_memory = false);

  [[nodiscard]] int fd() const noexcept { return conduit_->fd(); }
  [[nodiscard]] Conduit& conduit() noexcept { return *conduit_; }
  [[nodiscard]] std::uint32_t id() const noexcept { return id_; }
  /// The socket, or the ring, has no room now.
  [[nodiscard]] bool blocked() const noexcept { return blocked_ || parked(); }
  [[nodiscard]] bool socket_full() const noexcept { return blocked_; }
  [[nodiscard]] bool idle() const noexcept { return out_.empty() && !conduit_->wants_write(); }
  /// Something could go out as soon as the socket takes it.
  [[nodiscard]] bool has_unsent() const noexcept {
    return (!out_.empty() && !out_.front().parked) || conduit_->wants_write();
  }
  /// Something has come of which the poller does not tell.
  [[nodiscard]] bool holds_received() const noexcept { return conduit_->holds_received(); }
  void unblock() noexcept { blocked_ = false; }
  /// The other side's kernel has all that was sent.
  [[nodiscard]] bool delivered() noexcept;

  /// Sends until the socket is full (then blocked()), the source dry, or `budget` bytes are gone.
  Status pump(FrameSource& source, std::size_t budget);
  /// Receives until the socket is empty, as far as a short read shows, or `budget` bytes came: then
  /// `more` is set.
  Status receive(Link& link, FrameSink& sink, std::size_t budget, bool& more);
  /// No byte of the operation's memory is touched by this lane any more: a half-sent frame is
  /// finished from a copy, a half-received one is read into scratch.
  void let_go(const Operation& operation, BufferPool& buffers) noexcept;
  /// The same for the memory of a letter.
  void let_go(LetterId letter, BufferPool& buffers) noexcept;

  /// Looks what has been acknowledged since; called a few times a second.  `expecting`: a step
  /// runs, so what lies unread matters too.
  void look(double now_s, bool expecting) noexcept;
  /// Bytes are in flight, and for longer than `patience_s` (and 20 round trips) nothing came back:
  /// the way is cut, in one direction at least.  A peer that lives but does not read is another
  /// matter: its kernel answers.
  [[nodiscard]] bool cut(double now_s, double patience_s) const noexcept;

  /// The lane is dead: calls `dropped(frame)` for every operation's frame it still held.
  template <class Dropped>
  void drain(const Dropped& dropped) {
    for (const OutgoingFrame& frame : out_) {
      if (frame.operation != nullptr) dropped(frame);
    }
    out_.clear();
  }

  /// Bytes of a frame of that kind that is not whole yet.
  [[nodiscard]] std::uint32_t in_progress(Placement::Kind kind) const noexcept {
    return in_payload_ && placement_.kind == kind ? header_.length : 0;
  }

  const bool relayed;  // through a third peer
  std::uint64_t bytes_sent = 0;
  std::uint64_t bytes_received = 0;
  double moved_s;       // when the peer's kernel last took something, or had nothing to take
  bool owing = false;   // as of the last look: something is sent and not acknowledged
  bool unwatched = false;  // the system has no room to poll it, so it would stand still for ever
  std::uint64_t ring_bytes_sent = 0;
  double unread_s = 0;  // so long bytes have lain here that this side, though it ran, did not read

 private:
  static constexpr std::size_t inbox_bytes = 16384;   // several small frames in one system call
  static constexpr std::size_t readahead_bytes = 512; // behind a large payload: the next header
  Status fill(std::size_t wanted_payload, bool& empty) noexcept;
  Status accept_header(Link& link, FrameSink& sink);
  Status take_payload(Link& link, FrameSink& sink, std::size_t& taken, bool& empty);
  template <class Holds>
  void let_go_where(const Holds& holds, BufferPool& buffers) noexcept;
  [[nodiscard]] std::size_t buffered() const noexcept { return inbox_end_ - inbox_begin_; }
  [[nodiscard]] bool parked() const noexcept { return !out_.empty() && out_.back().parked; }
  bool pull(FrameSource& source);
  void pass_through_ring(OutgoingFrame& frame);
  void offer_ring();
  Status take_from_ring(Link& link, FrameSink& sink, std::size_t& taken);
  Status hear_of_ring(Link& link);
  Status decline_worker(Link& link);
  OutgoingFrame& post(FrameHeader header, std::span<const std::byte> body);

  std::unique_ptr<Conduit> conduit_;
  std::uint32_t id_;
  bool blocked_ = false;
  std::uint64_t acknowledged_ = 0;
  std::uint64_t taken_by_memory_ = 0;
  bool in_kernel_ = false;   // as of the last look: bytes that were not acknowledged
  double acknowledged_s_;    // when it last did, or had nothing to
  std::uint64_t read_ = 0;  // bytes_received at the last look
  double looked_s_ = 0;

  bool local_;  // and rings are wanted
  bool ring_offered_ = false;
  bool room_queued_ = false;
  bool worker_declined_ = false;
  std::unique_ptr<PayloadRing> ring_out_;
  std::unique_ptr<PayloadRing> ring_in_;
  std::array<std::byte, ring_name_bytes> ring_body_;

  std::deque<OutgoingFrame> out_;
  std::size_t out_done_ = 0;  // bytes of out_.front() that the kernel has

  FrameHeader header_;
  Placement placement_;
  bool in_payload_ = false;
  bool drained_ = false;  // the conduit gave less than it was asked for since the poller told of it
  std::size_t received_ = 0;  // of the payload
  std::size_t inbox_begin_ = 0;
  std::size_t inbox_end_ = 0;
  std::array<std::byte, inbox_bytes> inbox_;
  std::array<std::byte, inbox_bytes> scratch_;
};

}  // namespace pccl
