// native/include/pccl/codec.hpp — block-wise codecs: what a quantised array is, to the bit.
//
// Contract, for every instruction set alike.  An array of f32 is cut into blocks of `block()`
// elements, the last may be shorter.  A coded block is its scale, one f32 (little endian), and then
// its codes; coded blocks follow each other without gaps.
//   int8  one byte per element, two's complement, -127..127; limit 127
//   int4  a block of m has h = ceil(m/2) bytes: byte i holds element i in its low four bits and
//         element h+i in its high ones (0 if there is none), two's complement, -7..7; limit 7
//   fp8   one byte per element, e4m3fn, at most 448; limit 448
// Encoding: a = the largest magnitude of the block; scale = a / limit, but at least 2^-126 and at
// most the largest f32 whose product with the limit is finite; code = round(x * (1 / scale)), held
// within the limit.  Every operation is one of f32, rounded to nearest even, and `round` goes to
// the nearest code, ties to even.  Stochastic: to one of the two codes around x, with expectation
// x, by bits that follow from (seed, number of the block, place in it) alone.
// Decoding: code * scale.  Any bytes decode to something, and no block is read beyond its end.
//   zeros       a block of zeros has scale 0 and decodes to +0; -0 decodes to +0 in any block of
//               integers (fp8 keeps its sign)
//   subnormals  are values like others; since no scale is below 2^-126, what is below 2^-127 (int8,
//               int4) rounds to 0
//   NaN, Inf    a block that holds one has scale NaN and codes 0, and decodes to NaN in all of its
//               elements: nothing finite is ever made of what was not; so does any scale that is
//               not finite.  Every NaN is the canonical one
// Error: at most scale/2 * (1 + 2^-14) (int8, int4), or 2^-4 of the element or scale * 2^-10,
// whichever is larger (fp8); twice that for stochastic rounding.
//
// Ownership: all memory is the caller's, any alignment.
// Threads:   pure functions.
// Errors:    none.
// Source:    block-wise absmax quantisation: Dettmers, Lewis, Shleifer and Zettlemoyer 2022,
//            arXiv:2110.02861; e4m3fn: Micikevicius et al. 2022, arXiv:2209.05433.
#pragma once

#include <cstddef>
#include <cstdint>

namespace pccl {

// Wire numbers: never reused.
enum class CodecKind : std::uint8_t { none = 0, int8 = 1, int4 = 2, fp8 = 3 };
inline constexpr std::uint8_t codec_kind_count = 4;
inline constexpr std::uint8_t block_log2_min = 5;   // below it scales cost more than a code each
inline constexpr std::uint8_t block_log2_max = 12;  // a block fits a first-level cache as f32

struct Codec {
  CodecKind kind = CodecKind::none;
  std::uint8_t block_log2 = 0;
  bool stochastic = false;

  friend bool operator==(const Codec&, const Codec&) = default;
  explicit constexpr operator bool() const noexcept { return kind != CodecKind::none; }
  [[nodiscard]] constexpr std::uint64_t block() const noexcept {
    return std::uint64_t{1} << block_log2;
  }
  /// It is one that exists, or none at all.
  [[nodiscard]] constexpr bool valid() const noexcept {
    if (kind == CodecKind::none) return *this == Codec{};
    return static_cast<std::uint8_t>(kind) < codec_kind_count && block_log2 >= block_log2_min &&
           block_log2 <= block_log2_max;
  }
};

inline constexpr std::size_t scale_bytes = 4;

/// Bytes of `count` elements, coded.
constexpr std::uint64_t coded_bytes(const Codec& codec, std::uint64_t count) noexcept {
  const auto codes = [&](std::uint64_t elements) {
    return codec.kind == CodecKind::int4 ? (elements + 1) / 2 : elements;
  };
  const std::uint64_t rest = count % codec.block();
  return count / codec.block() * (scale_bytes + codes(codec.block())) +
         (rest == 0 ? 0 : scale_bytes + codes(rest));
}

/// Functions of one codec kind.
struct CodecKernels {
  /// out[0 .. coded_bytes(count)) = in, to nearest.
  void (*encode)(void* out, const void* in, std::size_t count, std::size_t block) noexcept;
  /// The same, stochastically; the first block here has the number `first_block`.
  void (*encode_stochastic)(void* out, const void* in, std::size_t count, std::size_t block,
                            std::uint64_t seed, std::uint64_t first_block) noexcept;
  /// out[i] = f32 of element i.
  void (*decode)(void* out, const void* in, std::size_t count, std::size_t block) noexcept;
};

}  // namespace pccl
