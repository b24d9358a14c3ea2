// native/src/control/context.hpp — what the parts of the control thread share.
//
// The thread is one loop over four parts: Strangers (the listener and handshakes of others),
// Dialler (our handshakes), CoordinatorLink and PeerLinks.  Each part keeps its sockets in a map by
// serial number, and an event's token names part and serial; so an event fetched before its socket
// was closed finds nothing and is ignored.
//
// A part has on_ready(serial, bits, now_s) for its sockets, due_s() for when it wants to run again
// (no_deadline if not), and on_time(now_s), which may be called early.
//
// Ownership: borrows everything; Control::Impl owns and outlives the parts.
// Threads:   the control thread only; counters may be read from any.
// Errors:    a Status.  Only std::bad_alloc is thrown; it ends the turn, see Control::Impl::run.
#pragma once

#include <atomic>
#include <cstdint>
#include <limits>
#include <optional>

#include "control/framed_socket.hpp"
#include "pccl/control.hpp"
#include "pccl/poller.hpp"
#include "pccl/tls.hpp"

namespace pccl {

enum class Part : std::uint8_t { mailbox = 0, listener, strangers, dialler, coordinator, peers };

inline constexpr double no_deadline = std::numeric_limits<double>::infinity();
inline constexpr double interval_s_min = 0.001;  // a timer of 0 would never let the loop wait
inline constexpr int frames_per_turn_max = 32;  // of one socket, so that none starves the others

[[nodiscard]] constexpr std::uint64_t token_of(Part part, std::uint64_t serial) noexcept {
  return (static_cast<std::uint64_t>(part) << 56) | serial;
}
[[nodiscard]] constexpr Part part_of(std::uint64_t token) noexcept {
  return static_cast<Part>(token >> 56);
}
[[nodiscard]] constexpr std::uint64_t serial_of(std::uint64_t token) noexcept {
  return token & ((std::uint64_t{1} << 56) - 1);
}

struct Counters {
  std::atomic<std::uint64_t> accepted{0};
  std::atomic<std::uint64_t> dropped{0};
  std::atomic<std::uint64_t> heartbeats{0};
  std::atomic<std::uint64_t> flushes{0};
  std::atomic<std::uint64_t> unproven{0};
};

struct Context {
  const ControlConfig& config;
  ControlHost& host;
  Poller& poller;
  Counters& counters;
  std::optional<Identity> identity;  // none before admit()
  std::uint64_t serial = 0;          // the last one given out
  std::shared_ptr<const TlsContext> tls{};  // of a secured run

  /// Null: no memory.
  [[nodiscard]] std::unique_ptr<Conduit> dial(Fd fd, const TlsExpectation& expected) const {
    return tls ? tls->dial(std::move(fd), expected) : make_socket_conduit(std::move(fd));
  }
  [[nodiscard]] std::unique_ptr<Conduit> accept(Fd fd) const {
    return tls ? tls->accept(std::move(fd)) : make_socket_conduit(std::move(fd));
  }
  /// Gets further with a connection that is not established yet, and watches for what it waits for.
  Status establish(FramedSocket& socket, std::uint64_t token) noexcept {
    const Status status = socket.establish();
    if (status != Status::would_block && status != Status::ok) return status;
    const std::uint32_t writes = socket.wants_write() ? ready::write : 0u;
    const Status watched = poller.modify(socket.fd(), ready::read | writes, token);
    return watched == Status::ok ? status : watched;
  }

  /// Sends now what the socket takes and asks to be told when it takes more.
  Status send(FramedSocket& socket, std::uint64_t token, const frames::Frame& frame) {
    const Status status = socket.send(frame);
    if (status != Status::ok || !socket.wants_write()) return status;
    return poller.modify(socket.fd(), ready::read | ready::write, token);
  }
  Status flush(FramedSocket& socket, std::uint64_t token) noexcept {
    const Status status = socket.flush();
    if (status != Status::ok || socket.wants_write()) return status;
    return poller.modify(socket.fd(), ready::read, token);
  }
};

}  // namespace pccl
