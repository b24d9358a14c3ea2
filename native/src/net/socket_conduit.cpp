// native/src/net/socket_conduit.cpp — a stream that is a TCP socket and nothing more.
// Ownership: see conduit.hpp.
// Threads:   see conduit.hpp.
// Errors:    see conduit.hpp.
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "pccl/conduit.hpp"

namespace pccl {
namespace {

Status status_of(int error) noexcept {
  if (error == EAGAIN || error == EWOULDBLOCK) return Status::would_block;
  return error == ECONNRESET || error == EPIPE ? Status::closed : Status::io_error;
}

std::size_t bytes_of(std::span<const iovec> parts) noexcept {
  std::size_t bytes = 0;
  for (const iovec& part : parts) bytes += part.iov_len;
  return bytes;
}

msghdr message_of(std::span<const iovec> parts) noexcept {
  msghdr message{};
  message.msg_iov = const_cast<iovec*>(parts.data());
  message.msg_iovlen = parts.size();
  return message;
}

class SocketConduit final : public Conduit {
 public:
  explicit SocketConduit(Fd socket) noexcept : socket_(std::move(socket)) {}

  int fd() const noexcept override { return socket_.get(); }

  Status send(std::span<const iovec> parts, std::size_t& sent) noexcept override {
    const msghdr message = message_of(parts);
    ssize_t count = 0;
    do {
      count = ::sendmsg(socket_.get(), &message, MSG_DONTWAIT | MSG_NOSIGNAL);
    } while (count < 0 && errno == EINTR);
    if (count < 0) return status_of(errno);
    sent = static_cast<std::size_t>(count);
    sent_ += sent;
    return Status::ok;
  }

  Status receive(std::span<const iovec> parts, std::size_t& got, bool& drained) noexcept override {
    msghdr message = message_of(parts);
    ssize_t count = 0;
    do {
      count = ::recvmsg(socket_.get(), &message, MSG_DONTWAIT);
    } while (count < 0 && errno == EINTR);
    if (count == 0) return Status::closed;
    if (count < 0) return status_of(errno);
    got = static_cast<std::size_t>(count);
    drained = got < bytes_of(parts);
    return Status::ok;
  }

  std::uint64_t acknowledged() noexcept override {
    if (acknowledged_ != sent_) {
      acknowledged_ = sent_ - std::min(unacknowledged_bytes(socket_.get()), sent_);
    }
    return acknowledged_;
  }
  bool owing() const noexcept override { return acknowledged_ != sent_; }
  bool unread() const noexcept override { return unread_bytes(socket_.get()) > 0; }
  PathState path() const noexcept override { return path_state(socket_.get()); }
  bool local() const noexcept override { return is_local(socket_.get()); }
  void shut() noexcept override { (void)::shutdown(socket_.get(), SHUT_RDWR); }
  Fd release() noexcept override { return std::move(socket_); }

 private:
  Fd socket_;
  std::uint64_t sent_ = 0;
  std::uint64_t acknowledged_ = 0;
};

}  // namespace

std::unique_ptr<Conduit> make_socket_conduit(Fd socket) {
  return std::make_unique<SocketConduit>(std::move(socket));
}

}  // namespace pccl
