// native/src/control/bytes.hpp — little-endian fields, one after the other.
// Ownership: a Writer appends to the caller's vector; a Reader borrows its span.
// Threads:   values.
// Errors:    a Reader that runs out or meets bad text remembers it: ask finished() at the end.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "pccl/types.hpp"

namespace pccl::frames {

static_assert(std::endian::native == std::endian::little, "wire integers are copied as they are");

/// The bytes of one UTF-8 character at the front of `text`; 0 if there is none.
[[nodiscard]] std::size_t character_bytes(std::string_view text) noexcept;
[[nodiscard]] bool valid_utf8(std::string_view text) noexcept;
/// `text` as valid UTF-8 of at most `bytes_max`: cut between characters, bad bytes turned to '?'.
[[nodiscard]] std::string clean_text(std::string_view text, std::size_t bytes_max);

class Writer {
 public:
  explicit Writer(std::vector<std::byte>& out) noexcept : out_(out) {}

  template <class T>
    requires std::is_unsigned_v<T>
  void put(T value) {
    append(&value, sizeof value);
  }
  template <class Kind>
  void put(const Bytes16<Kind>& value) {
    append(value.bytes.data(), value.bytes.size());
  }
  void put(const Digest& value) {
    put(value.low);
    put(value.high);
  }
  void text(std::string_view value, std::size_t bytes_max) {
    const std::string clean = clean_text(value, bytes_max);
    put(static_cast<std::uint16_t>(clean.size()));
    append(clean.data(), clean.size());
  }
  void peers(const std::vector<PeerId>& values, std::size_t count_max) {
    const std::size_t count = std::min(values.size(), count_max);
    put(static_cast<std::uint16_t>(count));
    for (std::size_t i = 0; i < count; ++i) put(values[i]);
  }

 private:
  void append(const void* bytes, std::size_t count) {
    const auto* first = static_cast<const std::byte*>(bytes);
    out_.insert(out_.end(), first, first + count);
  }
  std::vector<std::byte>& out_;
};

class Reader {
 public:
  explicit Reader(std::span<const std::byte> bytes) noexcept : rest_(bytes) {}

  template <class T>
    requires std::is_unsigned_v<T>
  void get(T& value) noexcept {
    take(&value, sizeof value);
  }
  template <class Kind>
  void get(Bytes16<Kind>& value) noexcept {
    take(value.bytes.data(), value.bytes.size());
  }
  void get(Digest& value) noexcept {
    get(value.low);
    get(value.high);
  }
  void require(bool condition) noexcept { good_ = good_ && condition; }
  std::uint8_t between(std::uint8_t low, std::uint8_t high) noexcept {
    std::uint8_t value = 0;
    get(value);
    if (value < low || value > high) good_ = false;
    return value;
  }
  /// How many entries of `entry_bytes` follow; 0 unless all of them are there.
  std::size_t count(std::size_t entry_bytes, std::size_t count_max) noexcept {
    std::uint16_t value = 0;
    get(value);
    if (value > count_max || value * entry_bytes > rest_.size()) good_ = false;
    return good_ ? value : 0;
  }
  void text(std::string& value, std::size_t bytes_max) {
    const std::size_t bytes = count(1, bytes_max);
    value.assign(reinterpret_cast<const char*>(rest_.data()), bytes);
    rest_ = rest_.subspan(bytes);
    if (!valid_utf8(value)) good_ = false;
  }
  void peers(std::vector<PeerId>& values, std::size_t count_max) {
    values.resize(count(sizeof(PeerId), count_max));
    for (PeerId& value : values) get(value);
  }
  /// Everything was there and nothing is left over.
  [[nodiscard]] bool finished() const noexcept { return good_ && rest_.empty(); }

 private:
  void take(void* out, std::size_t bytes) noexcept {
    if (rest_.size() < bytes) {
      good_ = false;
      std::memset(out, 0, bytes);
      return;
    }
    std::memcpy(out, rest_.data(), bytes);
    rest_ = rest_.subspan(bytes);
  }
  std::span<const std::byte> rest_;
  bool good_ = true;
};

}  // namespace pccl::frames
