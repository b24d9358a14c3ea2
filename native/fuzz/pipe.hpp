// native/fuzz/pipe.hpp — a connected socket for what is tested, without a kernel behind it.
//
// A system call costs more than most inputs do otherwise, so the calls that the core makes on
// sockets are wrapped by the linker (pipe.cpp): on the end of a Pipe they act as a stream socket
// does, in memory, and on any other descriptor they are the real ones.  Nor is the memory of a ring
// of payloads allocated before it is used, or that of a stream through UCX given back to the
// kernel: to clear megabytes for each input takes longer than the rest.
//
// Ownership: a Pipe owns both its ends; `near` may be given away.
// Threads:   one.
// Errors:    a broken harness aborts.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "pccl/fd.hpp"

namespace fuzz {

/// Two connected ends; `near` is for what is tested, `far` ends the stream when it is reset.
struct Pipe {
  /// How many may be there at once; who wants one more has no descriptor for it.
  static constexpr std::size_t count_max = 16;
  /// `keeps`: what is heard from the near end is kept for hear(); else only counted.
  explicit Pipe(bool keeps = false);
  /// As much as fits at once.
  void say(std::span<const std::byte> bytes) const;
  /// What has come since the last call; empty unless the pipe keeps it.
  [[nodiscard]] std::vector<std::byte> hear() const;
  /// By what the near end's events would be known to whoever watches it now.
  [[nodiscard]] std::uint64_t token() const;
  pccl::Fd near;
  pccl::Fd far;
};

/// While one is there, nobody dials out of the process: each socket that what is tested makes and
/// connects is the near end of another pipe, which keeps what it hears.
class Dialled {
 public:
  Dialled();
  ~Dialled();
  Dialled(const Dialled&) = delete;
  Dialled& operator=(const Dialled&) = delete;
  std::vector<Pipe> pipes;  // their far ends, in the order of the dials
};

}  // namespace fuzz
