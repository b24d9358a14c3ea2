// native/fuzz/pieces.hpp — a fuzzer's bytes as numbers and spans.
// Ownership: Pieces borrow the input.
// Threads:   one.
// Errors:    what runs out gives zeros; a broken harness aborts.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <span>
#include <vector>

namespace fuzz {

using Bytes = std::vector<std::byte>;

/// What must hold whatever the input is.  The line is told, since the stack of an optimised build
/// names only the outermost function.
inline void require(bool holds, const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  if (holds) return;
  std::fprintf(stderr, "%s:%d: what must hold does not\n", file, line);
  std::abort();
}

class Pieces {
 public:
  Pieces(const std::uint8_t* data, std::size_t size)
      : rest_(reinterpret_cast<const std::byte*>(data), size) {}

  [[nodiscard]] bool empty() const { return rest_.empty(); }
  template <class T>
  T number() {
    T value{};
    const auto here = std::min(sizeof value, rest_.size());
    std::memcpy(&value, rest_.data(), here);
    rest_ = rest_.subspan(here);
    return value;
  }
  /// Up to that many bytes, as many as there are.
  std::span<const std::byte> take(std::size_t count) {
    const auto taken = rest_.first(std::min(count, rest_.size()));
    rest_ = rest_.subspan(taken.size());
    return taken;
  }
  std::span<const std::byte> all() { return take(rest_.size()); }

 private:
  std::span<const std::byte> rest_;
};

inline void append(Bytes& out, std::span<const std::byte> bytes) {
  const std::size_t at = out.size();
  out.resize(at + bytes.size());
  if (!bytes.empty()) std::memcpy(out.data() + at, bytes.data(), bytes.size());
}

/// At the speed of memory; `==` looks at each byte, under a sanitizer slowly.
inline bool same(std::span<const std::byte> a, std::span<const std::byte> b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size()) == 0);
}

}  // namespace fuzz
