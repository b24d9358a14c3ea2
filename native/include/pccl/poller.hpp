// native/include/pccl/poller.hpp — which sockets are ready: a thin face over epoll.
//
// Level-triggered: an event is told again until it is dealt with, so a caller that stops half-way
// (a full buffer, a budget per turn) loses nothing.
//
// Ownership: owns the epoll descriptor; the registered descriptors are the caller's.  Closing one
//            takes it out of the set, but events already fetched by wait() still name its token: a
//            caller that closes while it walks them checks that a token still lives.
// Threads:   add, modify and remove from any; wait from one.
// Errors:    the constructor throws std::system_error; nothing else throws.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "pccl/fd.hpp"
#include "pccl/status.hpp"

namespace pccl {

/// Interest and readiness bits.
namespace ready {
inline constexpr std::uint32_t read = 1;
inline constexpr std::uint32_t write = 2;
/// Reset, broken or wholly hung up; only told, never asked for.  The next read says more.
inline constexpr std::uint32_t error = 4;
}  // namespace ready

class Poller {
 public:
  struct Event {
    std::uint64_t token = 0;
    std::uint32_t bits = 0;  // of namespace ready
  };

  Poller();
  /// `token` comes back with every event of `fd`.  io_error: out of memory or watches, bad `fd`.
  Status add(int fd, std::uint32_t interest, std::uint64_t token) noexcept;
  Status modify(int fd, std::uint32_t interest, std::uint64_t token) noexcept;
  void remove(int fd) noexcept;
  /// Fills `events` with what is ready and returns how many; waits at most `timeout_ms` (negative:
  /// for ever; 0: not at all).  A signal ends the wait early with 0 events.
  std::size_t wait(std::span<Event> events, int timeout_ms) noexcept;

 private:
  Fd epoll_;
};

}  // namespace pccl
