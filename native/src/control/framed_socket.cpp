// native/src/control/framed_socket.cpp — reads and writes of whole frames.
// Ownership: see framed_socket.hpp.
// Threads:   the control thread only.
// Errors:    see framed_socket.hpp.
#include "control/framed_socket.hpp"

#include <cstring>

#include "pccl/crc32.hpp"

namespace pccl {
namespace {

// A little more than the largest report; a connection that piles up more is not being read.
constexpr std::size_t out_bytes_max = 256 * 1024;

}  // namespace

Status FramedSocket::receive(std::size_t bytes_wanted) {
  if (in_.size() < bytes_wanted) in_.resize(bytes_wanted);
  while (received_ < bytes_wanted) {
    const iovec part{in_.data() + received_, bytes_wanted - received_};
    std::size_t got = 0;
    bool drained = false;
    if (const Status status = conduit_->receive({&part, 1}, got, drained); status != Status::ok) {
      return status;
    }
    received_ += got;
  }
  return Status::ok;
}

Status FramedSocket::read_frame(std::span<const std::byte>& body) {
  using frames::head_bytes;
  Status status = receive(head_bytes);
  if (received_ >= frames::length_bytes) {
    std::uint32_t length = 0;
    std::memcpy(&length, in_.data(), sizeof length);
    if (length < frames::prefix_bytes || length > body_bytes_max_) return Status::protocol;
  }
  if (status != Status::ok) return status;
  frames::Head head;
  const std::span<const std::byte> all(in_);
  if (!frames::decode_head(all.first<head_bytes>(), head)) return Status::protocol;
  status = receive(head_bytes + head.length);
  if (received_ > head_bytes && in_[head_bytes] != frames::mark) return Status::protocol;
  if (status != Status::ok) return status;
  body = std::span<const std::byte>(in_).subspan(head_bytes, head.length);
  received_ = 0;
  return crc32(body) == head.body_check ? Status::ok : Status::protocol;
}

Status FramedSocket::send(const frames::Frame& frame) {
  if (const Status status = frames::encode(frame, out_); status != Status::ok) return status;
  const Status status = flush();
  return status == Status::ok && out_.size() - sent_ > out_bytes_max ? Status::exhausted : status;
}

Status FramedSocket::flush() noexcept {
  if (const Status status = conduit_->flush(); status != Status::ok) return status;
  while (sent_ < out_.size()) {
    const iovec part{out_.data() + sent_, out_.size() - sent_};
    std::size_t sent = 0;
    const Status status = conduit_->send({&part, 1}, sent);
    if (status == Status::would_block) {
      out_.erase(out_.begin(), out_.begin() + static_cast<std::ptrdiff_t>(sent_));
      sent_ = 0;
      return Status::ok;
    }
    if (status != Status::ok) return status;
    sent_ += sent;
  }
  out_.clear();
  sent_ = 0;
  return Status::ok;
}

}  // namespace pccl
