// native/fuzz/pipe.hpp — a connected socket for what is tested, without a kernel behind it.
//
// A system call costs more than most inputs do otherwise, so the calls that the core makes on
// sockets are wrapped by the linker (pipe.cpp): on the end of a Pipe they act as a stream socket
// does, in memory, and on any other descriptor they are the real ones.
//
// Ownership: a Pipe owns both its ends; `near` may be given away.
// Threads:   one.
// Errors:    a broken harness aborts.
#pragma once

#include <cstddef>
#include <span>

#include "pccl/fd.hpp"

namespace fuzz {

/// Two connected ends; `near` is for what is tested, `far` ends the stream when it is reset.
struct Pipe {
  Pipe();
  /// As much as fits at once.
  void say(std::span<const std::byte> bytes) const;
  pccl::Fd near;
  pccl::Fd far;
};

}  // namespace fuzz
