// native/src/tls/bulk.hpp — one direction of a lane's stream, as sealed pieces.
//
//   piece = length (u32, little-endian, 1..piece_bytes_max) · ciphertext · tag (16 bytes)
//
// AES-256-GCM; the length is authenticated too.  Key and first nonce come from the connection's
// TLS exporter; the nonce is that one xor the piece's number, so a piece that is missing, repeated,
// moved or changed opens nowhere.  A new key every pieces_per_key pieces: 2^20 pieces are 2^36
// bytes at most, 2^32 blocks, where what a key protects is sound to 2^34.5 (RFC 8446, 5.5).
//
// Ownership: owns its cipher; memory is the caller's.
// Threads:   one at a time.
// Errors:    protocol for a piece that does not open; then the stream is over.
#pragma once

#include <sys/uio.h>

#include <array>
#include <cstdint>
#include <functional>
#include <span>

#include "pccl/status.hpp"
#include "tls/openssl.hpp"

namespace pccl {

inline constexpr std::size_t piece_bytes_max = 64 * 1024;
inline constexpr std::size_t piece_length_bytes = 4;
inline constexpr std::size_t piece_tag_bytes = 16;
inline constexpr std::size_t piece_overhead = piece_length_bytes + piece_tag_bytes;
inline constexpr std::uint64_t pieces_per_key = std::uint64_t{1} << 20;

/// Key material of one direction: `generation` counts the keys of a connection.
struct BulkKey {
  std::array<unsigned char, 32> key{};
  std::array<unsigned char, 12> nonce{};
};
/// Derives the key of a generation; false: it cannot.
using KeySource = bool (*)(void* owner, std::uint64_t generation, BulkKey& out) noexcept;

class Bulk {
 public:
  Bulk(const openssl::Functions& lib, bool seals, KeySource source, void* owner) noexcept
      : lib_(lib), seals_(seals), source_(source), owner_(owner) {}

  /// Writes one piece of `parts`, whose bytes are at most piece_bytes_max, to `out`, which has room
  /// for them and piece_overhead.
  Status seal(std::span<const iovec> parts, std::size_t bytes, std::byte* out) noexcept;
  /// Opens the whole piece at `piece`, of `bytes` plaintext bytes: as far as they go into `parts`,
  /// the rest in place, behind the length.  What was written counts only with ok.
  Status open(std::byte* piece, std::size_t bytes, std::span<const iovec> parts) noexcept;

 private:
  bool start() noexcept;
  bool update(std::byte* out, const std::byte* in, std::size_t bytes) noexcept;

  const openssl::Functions& lib_;
  bool seals_;
  KeySource source_;
  void* owner_;
  openssl::CipherContextPtr cipher_;
  std::array<unsigned char, 12> nonce_{};
  std::uint64_t number_ = 0;
};

/// Plaintext bytes of the piece that begins at `bytes`; 0: not all of its length is here.
/// protocol: a length that no piece has.
Status piece_length(std::span<const std::byte> bytes, std::size_t& out) noexcept;

}  // namespace pccl
