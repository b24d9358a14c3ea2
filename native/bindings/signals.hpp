// native/bindings/signals.hpp — waits that let signals through to Python.
// Ownership: none.
// Threads:   a program's; the GIL is given away while it waits.
// Errors:    python_error if a signal's handler raised.
#pragma once

#include <nanobind/nanobind.h>

#include <algorithm>
#include <cstring>

#include "pccl/clock.hpp"

namespace pccl {

// How long a wait may keep a signal from its Python handler.
inline constexpr double signal_grain_s = 0.05;

/// Waits in grains, so that Ctrl-C reaches Python while the GIL is given away.
template <class Try>
auto with_signals(double timeout_s, const Try& attempt) {
  const double deadline_s = monotonic_s() + timeout_s;
  for (;;) {
    const double left_s = deadline_s - monotonic_s();
    {
      nanobind::gil_scoped_release release;
      if (auto result = attempt(std::clamp(left_s, 0.0, signal_grain_s))) return result;
    }
    if (PyErr_CheckSignals() != 0) throw nanobind::python_error();
    if (left_s <= signal_grain_s) return decltype(attempt(0.0)){};
  }
}

}  // namespace pccl
