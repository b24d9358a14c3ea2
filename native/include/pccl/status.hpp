// native/include/pccl/status.hpp — how the core says that something did not work.
// Ownership: plain values.
// Threads:   any.
// Errors:    this is the error type: the core throws only while it is being set up.
#pragma once

#include <cstdint>

namespace pccl {

enum class [[nodiscard]] Status : std::uint8_t {
  ok,
  would_block,   // nothing wrong; ask again when the descriptor is ready
  closed,        // the other side ended the connection, or we did
  protocol,      // the other side sent something it must not send
  io_error,      // the operating system refused
  timed_out,     // the deadline passed
  usage,         // our caller asked for something undefined
  exhausted,     // a named limit was reached
};

}  // namespace pccl
