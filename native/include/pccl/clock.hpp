// native/include/pccl/clock.hpp — the one clock of the core.
// Ownership: none.
// Threads:   any.
// Errors:    none.
#pragma once

#include <time.h>

namespace pccl {

/// Seconds since some fixed moment; never goes back, and is the same clock in every thread.
[[nodiscard]] inline double monotonic_s() noexcept {
  timespec now{};
  ::clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) * 1e-9;
}

}  // namespace pccl
