// native/src/control/framed_socket.hpp — whole frames over one conduit.
//
// It never reads beyond the frame it is in: whoever takes the conduit over after a handshake (a
// data lane) finds the next byte there, not here.  Two receives more per frame; control frames are
// few.
//
// Ownership: owns the conduit and both buffers; release() gives the conduit away.
// Threads:   the control thread only.
// Errors:    a Status; after any other than ok and would_block the socket is of no more use.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "pccl/conduit.hpp"
#include "pccl/control_frames.hpp"
#include "pccl/status.hpp"

namespace pccl {

class FramedSocket {
 public:
  FramedSocket() noexcept = default;
  FramedSocket(std::unique_ptr<Conduit> conduit, std::uint32_t body_bytes_max) noexcept
      : conduit_(std::move(conduit)), body_bytes_max_(body_bytes_max) {}

  /// ok: `body` is one whole frame, good until the next call.  closed: the other side ended it.
  /// protocol: not one of our frames or a damaged one, found out as early as its length, its head's
  /// check or its first byte shows it.
  Status read_frame(std::span<const std::byte>& body);
  /// True if a frame, or the end, was cut short.
  [[nodiscard]] bool amid_frame() const noexcept { return received_ > 0; }
  void set_body_bytes_max(std::uint32_t bytes) noexcept { body_bytes_max_ = bytes; }

  /// Queues a frame and sends what the socket takes.  exhausted: the other side reads too slowly.
  Status send(const frames::Frame& frame);
  Status flush() noexcept;
  [[nodiscard]] bool wants_write() const noexcept {
    return sent_ < out_.size() || (conduit_ && conduit_->wants_write());
  }

  [[nodiscard]] int fd() const noexcept { return conduit_ ? conduit_->fd() : -1; }
  /// Of the conduit, before the first frame.
  Status establish() noexcept { return conduit_->establish(); }
  [[nodiscard]] Conduit& conduit() const noexcept { return *conduit_; }
  /// What came instead of a frame begins as a TLS connection does.
  [[nodiscard]] bool heard_tls() const noexcept {
    return received_ > 1 && in_[0] == std::byte{0x16} && in_[1] == std::byte{0x03};
  }
  [[nodiscard]] std::unique_ptr<Conduit> release() noexcept { return std::move(conduit_); }
  explicit operator bool() const noexcept { return static_cast<bool>(conduit_); }

 private:
  Status receive(std::size_t bytes_wanted);

  std::unique_ptr<Conduit> conduit_;
  std::uint32_t body_bytes_max_ = frames::first_body_bytes_max;
  std::vector<std::byte> in_;  // the frame under way, head first
  std::size_t received_ = 0;
  std::vector<std::byte> out_;
  std::size_t sent_ = 0;
};

}  // namespace pccl
