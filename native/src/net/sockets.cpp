// native/src/net/sockets.cpp — TCP sockets over the system's own calls.
// Ownership: see sockets.hpp.
// Threads:   any.
// Errors:    a Status and errno.
#include "pccl/sockets.hpp"

#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <linux/sockios.h>

#include <array>
#include <cerrno>
#include <charconv>
#include <cstring>

namespace pccl {
namespace {

constexpr int unacknowledged_ms_max = 10'000;  // sent bytes without an answer: the path is dead
constexpr int keepalive_idle_s = 5;            // then three probes, one every 2 s
constexpr int keepalive_interval_s = 2;
constexpr int keepalive_probes = 3;

struct Address {
  sockaddr_storage storage{};
  socklen_t bytes = 0;
  [[nodiscard]] const sockaddr* get() const noexcept {
    return reinterpret_cast<const sockaddr*>(&storage);
  }
};

/// Literal addresses only (AI_NUMERICHOST): this never asks a name server.
bool parse(const std::string& host, std::uint16_t port, Address& out) noexcept {
  std::array<char, 8> digits{};
  std::to_chars(digits.data(), digits.data() + digits.size() - 1, port);
  addrinfo hints{};
  hints.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV;
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  if (host.empty() || ::getaddrinfo(host.c_str(), digits.data(), &hints, &found) != 0) {
    return false;
  }
  const bool fits = found->ai_addrlen <= sizeof out.storage;
  if (fits) {
    std::memcpy(&out.storage, found->ai_addr, found->ai_addrlen);
    out.bytes = found->ai_addrlen;
  }
  ::freeaddrinfo(found);
  return fits;
}

bool set(int fd, int level, int name, int value) noexcept {
  return ::setsockopt(fd, level, name, &value, sizeof value) == 0;
}

Fd stream_socket(int family) noexcept {
  return Fd{::socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0)};
}

Status listen_on(const Address& address, bool both_families, int backlog, Fd& out) noexcept {
  const int family = address.storage.ss_family;
  Fd fd = stream_socket(family);
  if (!fd) return Status::io_error;
  set(fd.get(), SOL_SOCKET, SO_REUSEADDR, 1);
  if (family == AF_INET6) set(fd.get(), IPPROTO_IPV6, IPV6_V6ONLY, both_families ? 0 : 1);
  if (::bind(fd.get(), address.get(), address.bytes) != 0) return Status::io_error;
  if (::listen(fd.get(), backlog) != 0) return Status::io_error;
  out = std::move(fd);
  return Status::ok;
}

}  // namespace

Status listen_tcp(const std::string& host, std::uint16_t port, int backlog, Fd& out) noexcept {
  Address address;
  if (!host.empty()) {
    if (!parse(host, port, address)) return Status::usage;
    return listen_on(address, false, backlog, out);
  }
  // A machine without IPv6 has no such socket; there all means all of IPv4.
  if (parse("::", port, address) && listen_on(address, true, backlog, out) == Status::ok) {
    return Status::ok;
  }
  if (errno == EADDRINUSE || errno == EACCES) return Status::io_error;
  if (!parse("0.0.0.0", port, address)) return Status::usage;
  return listen_on(address, false, backlog, out);
}

std::uint16_t local_port(int fd) noexcept {
  sockaddr_storage storage{};
  socklen_t bytes = sizeof storage;
  if (::getsockname(fd, reinterpret_cast<sockaddr*>(&storage), &bytes) != 0) return 0;
  if (storage.ss_family == AF_INET) {
    sockaddr_in v4{};
    std::memcpy(&v4, &storage, sizeof v4);
    return ntohs(v4.sin_port);
  }
  if (storage.ss_family == AF_INET6) {
    sockaddr_in6 v6{};
    std::memcpy(&v6, &storage, sizeof v6);
    return ntohs(v6.sin6_port);
  }
  return 0;
}

Status accept_tcp(int listener, Fd& out) noexcept {
  Fd fd{::accept4(listener, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC)};
  if (fd) {
    set(fd.get(), IPPROTO_TCP, TCP_NODELAY, 1);
    out = std::move(fd);
    return Status::ok;
  }
  switch (errno) {
    case EAGAIN:
#if EWOULDBLOCK != EAGAIN
    case EWOULDBLOCK:
#endif
      return Status::would_block;
    case EMFILE:
    case ENFILE:
    case ENOBUFS:
    case ENOMEM: return Status::exhausted;
    default: return Status::closed;  // EINTR, ECONNABORTED, and errors of that one connection
  }
}

Status connect_tcp(const std::string& host, std::uint16_t port, Fd& out) noexcept {
  Address address;
  if (!parse(host, port, address)) return Status::usage;
  Fd fd = stream_socket(address.storage.ss_family);
  if (!fd) return Status::io_error;
  set(fd.get(), IPPROTO_TCP, TCP_NODELAY, 1);
  if (::connect(fd.get(), address.get(), address.bytes) != 0 && errno != EINPROGRESS &&
      errno != EINTR) {
    return Status::io_error;
  }
  out = std::move(fd);
  return Status::ok;
}

Status connect_result(int fd) noexcept {
  int error = 0;
  socklen_t bytes = sizeof error;
  if (::getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &bytes) != 0) return Status::io_error;
  if (error == 0) return Status::ok;
  errno = error;
  return Status::io_error;
}

void set_liveness_options(int fd) noexcept {
  set(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
  set(fd, IPPROTO_TCP, TCP_KEEPIDLE, keepalive_idle_s);
  set(fd, IPPROTO_TCP, TCP_KEEPINTVL, keepalive_interval_s);
  set(fd, IPPROTO_TCP, TCP_KEEPCNT, keepalive_probes);
  set(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, unacknowledged_ms_max);
}

bool is_local(int fd) noexcept {
  Address here;
  Address there;
  here.bytes = there.bytes = sizeof here.storage;
  if (::getsockname(fd, reinterpret_cast<sockaddr*>(&here.storage), &here.bytes) != 0 ||
      ::getpeername(fd, reinterpret_cast<sockaddr*>(&there.storage), &there.bytes) != 0 ||
      here.storage.ss_family != there.storage.ss_family) {
    return false;
  }
  if (here.storage.ss_family == AF_INET) {
    const auto address = [](const Address& a) {
      return reinterpret_cast<const sockaddr_in*>(&a.storage)->sin_addr.s_addr;
    };
    return address(here) == address(there);
  }
  const auto address = [](const Address& a) {
    return reinterpret_cast<const sockaddr_in6*>(&a.storage)->sin6_addr.s6_addr;
  };
  return here.storage.ss_family == AF_INET6 && std::memcmp(address(here), address(there), 16) == 0;
}

std::uint64_t unacknowledged_bytes(int fd) noexcept {
  int bytes = 0;
  return ::ioctl(fd, SIOCOUTQ, &bytes) == 0 && bytes > 0 ? static_cast<std::uint64_t>(bytes) : 0;
}

std::uint64_t unread_bytes(int fd) noexcept {
  int bytes = 0;
  return ::ioctl(fd, FIONREAD, &bytes) == 0 && bytes > 0 ? static_cast<std::uint64_t>(bytes) : 0;
}

PathState path_state(int fd) noexcept {
  tcp_info info{};
  socklen_t bytes = sizeof info;
  if (::getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &bytes) != 0) return {};
  return {info.tcpi_unacked > 0, info.tcpi_rtt * 1e-6};
}

}  // namespace pccl
