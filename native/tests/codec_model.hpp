// native/tests/codec_model.hpp — the codecs again, the slow way: in double, element by element, by
// looking for the nearest of all codes instead of computing it.
// Ownership: vectors of its own.
// Threads:   pure functions.
// Errors:    none.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "pccl/codec.hpp"

namespace codec_model {

using pccl::Codec;
using pccl::CodecKind;
using Bytes = std::vector<std::uint8_t>;

inline constexpr CodecKind every_kind[] = {CodecKind::int8, CodecKind::int4, CodecKind::fp8};

inline float limit_of(CodecKind kind) {
  return kind == CodecKind::int8 ? 127.0f : kind == CodecKind::int4 ? 7.0f : 448.0f;
}

/// What the code `c` stands for, before it is scaled.
inline double value_of(CodecKind kind, int c) {
  if (kind != CodecKind::fp8) return c;
  const int exponent = c >> 3 & 15;
  const int mantissa = c & 7;
  const double magnitude = exponent == 0 ? std::ldexp(mantissa, -9)
                                         : std::ldexp(8 + mantissa, exponent - 10);
  return (c & 0x80) != 0 ? -magnitude : magnitude;
}

/// The nearest code, the even one of two.
inline int nearest(CodecKind kind, float wanted) {
  const int least = kind == CodecKind::int8 ? -127 : kind == CodecKind::int4 ? -7 : 0;
  const int most = kind == CodecKind::int8 ? 127 : kind == CodecKind::int4 ? 7 : 0x7e;
  const double target = kind == CodecKind::fp8 ? std::fabs(static_cast<double>(wanted))
                                               : static_cast<double>(wanted);
  int best = least;
  for (int code = least; code <= most; ++code) {
    const double distance = std::fabs(value_of(kind, code) - target);
    const double least_yet = std::fabs(value_of(kind, best) - target);
    if (distance < least_yet || (distance == least_yet && code % 2 == 0)) best = code;
  }
  return kind == CodecKind::fp8 && std::signbit(wanted) ? best | 0x80 : best;
}

inline float scale_of(CodecKind kind, const float* block, std::size_t count) {
  float most = 0;
  for (std::size_t i = 0; i < count; ++i) {
    if (!std::isfinite(block[i])) return std::numeric_limits<float>::quiet_NaN();
    most = std::max(most, std::fabs(block[i]));
  }
  if (most == 0) return 0;
  const float limit = limit_of(kind);
  float scale = std::max(most / limit, std::numeric_limits<float>::min());
  while (std::isinf(scale * limit)) scale = std::nextafterf(scale, 0.0f);
  return scale;
}

inline Bytes encode(const Codec& codec, const std::vector<float>& in) {
  Bytes out;
  for (std::size_t first = 0; first < in.size(); first += codec.block()) {
    const std::size_t count = std::min<std::size_t>(codec.block(), in.size() - first);
    const float scale = scale_of(codec.kind, in.data() + first, count);
    const auto* raw = reinterpret_cast<const std::uint8_t*>(&scale);
    out.insert(out.end(), raw, raw + sizeof scale);
    std::vector<int> codes(count, 0);
    if (scale > 0) {
      const float inverse = 1.0f / scale;
      for (std::size_t i = 0; i < count; ++i) {
        codes[i] = nearest(codec.kind, in[first + i] * inverse);
      }
    }
    if (codec.kind != CodecKind::int4) {
      for (const int code : codes) out.push_back(static_cast<std::uint8_t>(code));
      continue;
    }
    const std::size_t half = (count + 1) / 2;
    for (std::size_t i = 0; i < half; ++i) {
      const int high = half + i < count ? codes[half + i] : 0;
      out.push_back(static_cast<std::uint8_t>((codes[i] & 15) | (high & 15) << 4));
    }
  }
  return out;
}

inline std::vector<float> decode(const Codec& codec, const Bytes& in, std::size_t total) {
  std::vector<float> out;
  std::size_t at = 0;
  while (out.size() < total) {
    const std::size_t count = std::min<std::size_t>(codec.block(), total - out.size());
    float scale;
    std::memcpy(&scale, in.data() + at, sizeof scale);
    at += sizeof scale;
    const std::size_t half = (count + 1) / 2;
    for (std::size_t i = 0; i < count; ++i) {
      int code = in[codec.kind == CodecKind::int4 ? at + i % half : at + i];
      if (codec.kind == CodecKind::int8) code = static_cast<std::int8_t>(code);
      if (codec.kind == CodecKind::int4) {
        code = i < half ? code & 15 : code >> 4;
        code = code < 8 ? code : code - 16;
      }
      const bool nothing = !std::isfinite(scale) ||
                           (codec.kind == CodecKind::fp8 && (code & 0x7f) == 0x7f);
      out.push_back(nothing ? std::numeric_limits<float>::quiet_NaN()
                            : static_cast<float>(value_of(codec.kind, code)) * scale);
    }
    at += codec.kind == CodecKind::int4 ? half : count;
  }
  return out;
}

inline bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  if (a.size() != b.size()) return false;
  return a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

}  // namespace codec_model
