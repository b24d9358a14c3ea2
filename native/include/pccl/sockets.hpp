// native/include/pccl/sockets.hpp — non-blocking TCP sockets between literal addresses.
//
// No names are resolved here: a resolver may block for seconds, and addresses come from the view.
//
// Ownership: every function hands out an Fd that the caller owns (non-blocking, close-on-exec).
// Threads:   any.
// Errors:    a Status, and errno as the system left it; nothing throws.
#pragma once

#include <cstdint>
#include <string>

#include "pccl/fd.hpp"
#include "pccl/status.hpp"

namespace pccl {

/// Listens on a literal IPv4 or IPv6 address, "" for all of both; port 0 takes any.
/// usage: not a literal address.  io_error: errno says (the port is taken, no such address).
Status listen_tcp(const std::string& host, std::uint16_t port, int backlog, Fd& out) noexcept;

/// The port a socket is bound to; 0 if it is none.
[[nodiscard]] std::uint16_t local_port(int fd) noexcept;

/// One connection.  would_block: none waits.  exhausted: out of descriptors or memory; the
/// connection still waits, so poll again later rather than at once.  closed: that one is gone.
Status accept_tcp(int listener, Fd& out) noexcept;

/// Starts to connect; ready when writable, then connect_result tells.
Status connect_tcp(const std::string& host, std::uint16_t port, Fd& out) noexcept;
/// ok, or io_error (errno is set) for a connection whose descriptor became ready.
Status connect_result(int fd) noexcept;

/// For connections whose death must show, also while they are silent: keepalive, and an error when
/// sent bytes stay unacknowledged for 10 s.  Best effort: old kernels lack some of it.
void set_liveness_options(int fd) noexcept;

/// Says whether both ends have one and the same address, which only one machine has in its network.
[[nodiscard]] bool is_local(int fd) noexcept;

/// Bytes handed to the kernel that the other one has not acknowledged.
[[nodiscard]] std::uint64_t unacknowledged_bytes(int fd) noexcept;

/// Bytes that have arrived and that nobody has read.
[[nodiscard]] std::uint64_t unread_bytes(int fd) noexcept;

/// What the kernel knows of the way to the other end.
struct PathState {
  bool in_flight = false;  // something was sent that awaits its acknowledgement
  double rtt_s = 0;        // smoothed; 0: not known
};
[[nodiscard]] PathState path_state(int fd) noexcept;

}  // namespace pccl
