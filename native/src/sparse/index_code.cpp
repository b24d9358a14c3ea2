// native/src/sparse/index_code.cpp — places as Golomb-Rice coded gaps.
// Ownership: see sparse.hpp.
// Threads:   pure functions.
// Errors:    see sparse.hpp.
#include <algorithm>

#include "pccl/sparse.hpp"

namespace pccl {
namespace {

/// Calls f(length of the block, places that it keeps) for each block, while f says so.
template <class F>
bool for_blocks(std::uint64_t count, const Sparsity& sparsity, const F& f) noexcept {
  for (; count > 0; count -= std::min<std::uint64_t>(count, sparsity.block)) {
    const auto here = static_cast<std::uint32_t>(std::min<std::uint64_t>(count, sparsity.block));
    if (!f(here, std::min(sparsity.k, here))) return false;
  }
  return true;
}

class BitWriter {
 public:
  explicit BitWriter(std::byte* out) noexcept : begin_(out), out_(out) {}
  /// The low `bits` (at most 32) of `value`.
  void put(std::uint32_t value, std::uint32_t bits) noexcept {
    held_ |= std::uint64_t{value} << count_;
    for (count_ += bits; count_ >= 8; count_ -= 8, held_ >>= 8) {
      *out_++ = static_cast<std::byte>(held_ & 0xff);
    }
  }
  std::uint64_t finish() noexcept {
    if (count_ > 0) *out_++ = static_cast<std::byte>(held_ & 0xff);
    return static_cast<std::uint64_t>(out_ - begin_);
  }

 private:
  std::byte* begin_;
  std::byte* out_;
  std::uint64_t held_ = 0;
  std::uint32_t count_ = 0;
};

class BitReader {
 public:
  explicit BitReader(std::span<const std::byte> in) noexcept : in_(in) {}
  /// The next bit; beyond the end there are none: failed().
  std::uint32_t bit() noexcept {
    if (at_ / 8 >= in_.size()) {
      failed_ = true;
      return 0;
    }
    const auto byte = std::to_integer<std::uint32_t>(in_[at_ / 8]);
    return byte >> (at_++ % 8) & 1U;
  }
  std::uint32_t take(std::uint32_t bits) noexcept {
    std::uint32_t value = 0;
    for (std::uint32_t i = 0; i < bits; ++i) value |= bit() << i;
    return value;
  }
  [[nodiscard]] bool failed() const noexcept { return failed_; }
  /// All has been read but less than a byte of zeros.
  bool at_end() noexcept {
    if ((at_ + 7) / 8 != in_.size()) return false;
    while (at_ % 8 != 0) {
      if (bit() != 0) return false;
    }
    return true;
  }

 private:
  std::span<const std::byte> in_;
  std::uint64_t at_ = 0;
  bool failed_ = false;
};

}  // namespace

std::uint32_t rice_bits(const Sparsity& sparsity) noexcept {
  // ln 2 is 0.6931; a whole number of ten-thousandths, so that all come to the same.
  const std::uint64_t wanted = std::uint64_t{sparsity.block} * 6931;
  std::uint32_t bits = 0;
  while (std::uint64_t{sparsity.k} * 10000 << (bits + 1) <= wanted) ++bits;
  return bits;
}

std::uint64_t index_bytes_max(const Sparsity& sparsity, std::uint64_t count) noexcept {
  const std::uint32_t bits = rice_bits(sparsity);
  // The gaps of a block add up to less than its length, and so do their quotients.
  const std::uint64_t blocks = count / sparsity.block + (count % sparsity.block != 0 ? 1 : 0);
  return (sparsity.kept(count) * (bits + 1) + blocks * (sparsity.block >> bits) + 7) / 8;
}

bool are_places(const std::uint16_t* places, std::uint64_t count,
                const Sparsity& sparsity) noexcept {
  return for_blocks(count, sparsity, [&](std::uint32_t length, std::uint32_t kept) {
    for (std::uint32_t i = 0; i < kept; ++i, ++places) {
      if (*places >= length || (i > 0 && *places <= places[-1])) return false;
    }
    return true;
  });
}

std::uint64_t encode_indices(const std::uint16_t* places, std::uint64_t count,
                             const Sparsity& sparsity, std::byte* out) noexcept {
  const std::uint32_t bits = rice_bits(sparsity);
  BitWriter writer(out);
  for_blocks(count, sparsity, [&](std::uint32_t, std::uint32_t kept) {
    std::uint32_t next = 0;  // the lowest place that could follow
    for (std::uint32_t i = 0; i < kept; ++i) {
      const std::uint32_t gap = *places - next;
      next = *places++ + 1U;
      std::uint32_t quotient = gap >> bits;
      for (; quotient >= 16; quotient -= 16) writer.put(0xffffU, 16);
      writer.put((1U << quotient) - 1U, quotient + 1);
      writer.put(gap & ((1U << bits) - 1U), bits);
    }
    return true;
  });
  return writer.finish();
}

bool decode_indices(std::span<const std::byte> coded, std::uint64_t count,
                    const Sparsity& sparsity, std::uint16_t* places) noexcept {
  const std::uint32_t bits = rice_bits(sparsity);
  BitReader reader(coded);
  const bool fits = for_blocks(count, sparsity, [&](std::uint32_t length, std::uint32_t kept) {
    std::uint32_t next = 0;
    for (std::uint32_t i = 0; i < kept; ++i) {
      std::uint32_t gap = 0;
      while (reader.bit() != 0) {
        gap += 1U << bits;
        if (next + gap >= length) return false;
      }
      gap += reader.take(bits);
      if (reader.failed() || next + gap >= length) return false;
      *places++ = static_cast<std::uint16_t>(next + gap);
      next += gap + 1;
    }
    return true;
  });
  return fits && reader.at_end();
}

}  // namespace pccl
