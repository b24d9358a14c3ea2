// native/include/pccl/arithmetic.hpp — the floating-point mode that reductions run in.
// Ownership: restores what it found when it goes.
// Threads:   the mode belongs to the calling thread.
// Errors:    none.
#pragma once

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace pccl {

/// The default mode, while a caller's thread reduces: a caller that flushes subnormals to zero must
/// get the same bits as everybody else.
class DefaultArithmetic {
#if defined(__x86_64__)
 public:
  DefaultArithmetic() noexcept : saved_(_mm_getcsr()) {
    if (saved_ != standard) _mm_setcsr(standard);
  }
  ~DefaultArithmetic() {
    if (saved_ != standard) _mm_setcsr(saved_);
  }
  DefaultArithmetic(const DefaultArithmetic&) = delete;
  DefaultArithmetic& operator=(const DefaultArithmetic&) = delete;

 private:
  static constexpr unsigned standard = 0x1f80;  // all exceptions masked, round to nearest even
  unsigned saved_;
#else
 public:
  DefaultArithmetic() noexcept {}
  ~DefaultArithmetic() {}
#endif
};

}  // namespace pccl
