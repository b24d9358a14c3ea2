// native/src/tls/bulk.cpp — sealing and opening single pieces.
// Ownership: see bulk.hpp.
// Threads:   see bulk.hpp.
// Errors:    see bulk.hpp.
#include "tls/bulk.hpp"

#include <algorithm>
#include <cstring>

namespace pccl {
namespace {

unsigned char* raw(std::byte* bytes) noexcept { return reinterpret_cast<unsigned char*>(bytes); }
const unsigned char* raw(const std::byte* bytes) noexcept {
  return reinterpret_cast<const unsigned char*>(bytes);
}

}  // namespace

Status piece_length(std::span<const std::byte> bytes, std::size_t& out) noexcept {
  out = 0;
  if (bytes.size() < piece_length_bytes) return Status::ok;
  std::uint32_t length = 0;
  std::memcpy(&length, bytes.data(), sizeof length);
  if (length == 0 || length > piece_bytes_max) return Status::protocol;
  out = length;
  return Status::ok;
}

/// The key and the nonce of the next piece.
bool Bulk::start() noexcept {
  const openssl::Cipher* kind = nullptr;
  BulkKey fresh;
  if (number_ % pieces_per_key == 0) {
    if (!source_(owner_, number_ / pieces_per_key, fresh)) return false;
    if (!cipher_) cipher_.reset(lib_.EVP_CIPHER_CTX_new());
    kind = lib_.EVP_aes_256_gcm();
    nonce_ = fresh.nonce;
  }
  if (!cipher_) return false;
  std::array<unsigned char, 12> nonce = nonce_;
  for (std::size_t i = 0; i < sizeof number_; ++i) {
    nonce[nonce.size() - 1 - i] ^= static_cast<unsigned char>(number_ >> (8 * i));
  }
  const unsigned char* key = kind != nullptr ? fresh.key.data() : nullptr;
  const bool started =
      seals_ ? lib_.EVP_EncryptInit_ex(cipher_.get(), kind, nullptr, key, nonce.data()) == 1
             : lib_.EVP_DecryptInit_ex(cipher_.get(), kind, nullptr, key, nonce.data()) == 1;
  lib_.OPENSSL_cleanse(&fresh, sizeof fresh);
  ++number_;
  return started;
}

/// Without `out`: authenticated only.
bool Bulk::update(std::byte* out, const std::byte* in, std::size_t bytes) noexcept {
  int done = 0;
  const int count = static_cast<int>(bytes);
  return seals_ ? lib_.EVP_EncryptUpdate(cipher_.get(), raw(out), &done, raw(in), count) == 1
                : lib_.EVP_DecryptUpdate(cipher_.get(), raw(out), &done, raw(in), count) == 1;
}

Status Bulk::seal(std::span<const iovec> parts, std::size_t bytes, std::byte* out) noexcept {
  const auto length = static_cast<std::uint32_t>(bytes);
  std::memcpy(out, &length, sizeof length);
  if (!start() || !update(nullptr, out, piece_length_bytes)) return Status::io_error;
  std::byte* to = out + piece_length_bytes;
  for (const iovec& part : parts) {
    const std::size_t count = std::min(part.iov_len, bytes);
    if (count == 0) continue;
    if (!update(to, static_cast<const std::byte*>(part.iov_base), count)) return Status::io_error;
    to += count;
    bytes -= count;
  }
  int done = 0;
  const bool sealed = lib_.EVP_EncryptFinal_ex(cipher_.get(), raw(to), &done) == 1 &&
                      lib_.EVP_CIPHER_CTX_ctrl(cipher_.get(), openssl::ctrl_gcm_get_tag,
                                               static_cast<int>(piece_tag_bytes), to) == 1;
  return sealed ? Status::ok : Status::io_error;
}

Status Bulk::open(std::byte* piece, std::size_t bytes, std::span<const iovec> parts) noexcept {
  if (!start() || !update(nullptr, piece, piece_length_bytes)) return Status::io_error;
  std::byte* from = piece + piece_length_bytes;
  for (const iovec& part : parts) {
    const std::size_t count = std::min(part.iov_len, bytes);
    if (count == 0) continue;
    if (!update(static_cast<std::byte*>(part.iov_base), from, count)) return Status::io_error;
    from += count;
    bytes -= count;
  }
  if (bytes > 0) {
    if (!update(from, from, bytes)) return Status::io_error;
    from += bytes;
  }
  int done = 0;
  const bool intact = lib_.EVP_CIPHER_CTX_ctrl(cipher_.get(), openssl::ctrl_gcm_set_tag,
                                               static_cast<int>(piece_tag_bytes), from) == 1 &&
                      lib_.EVP_DecryptFinal_ex(cipher_.get(), raw(from), &done) == 1;
  return intact ? Status::ok : Status::protocol;
}

}  // namespace pccl
