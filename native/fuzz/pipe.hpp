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
#include <span>
#include <vector>

#include "pccl/fd.hpp"

namespace fuzz {

/// Two connected ends; `near` is for what is tested, `far` ends the stream when it is reset.
struct Pipe {
  /// `keeps`: what is heard from the near end is kept for hear(); else only counted.
  explicit Pipe(bool keeps = false);
  /// As much as fits at once.
  void say(std::span<const std::byte> bytes) const;
  /// What has come since the last call; empty unless the pipe keeps it.
  [[nodiscard]] std::vector<std::byte> hear() const;
  pccl::Fd near;
  pccl::Fd far;
};

}  // namespace fuzz
