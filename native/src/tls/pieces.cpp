// native/src/tls/pieces.cpp — a lane's bytes as sealed pieces, under keys of its TLS connection.
// Ownership: see tls_conduit.hpp.
// Threads:   see conduit.hpp.
// Errors:    see conduit.hpp.
#include "tls/tls_conduit.hpp"

namespace pccl {
namespace {

constexpr std::size_t in_bulk_bytes = 512 * 1024;  // of the window that lanes receive into
constexpr std::size_t large_part = 8 * 1024;       // gets pieces of its own

}  // namespace

bool TlsConduit::key_of(void* self, std::uint64_t generation, BulkKey& out,
                        bool of_dialler) noexcept {
  auto& conduit = *static_cast<TlsConduit*>(self);
  constexpr std::string_view label = "EXPORTER-pccl-lane";
  // Context: the direction, then the generation.
  std::array<unsigned char, 9> context{};
  context[0] = of_dialler ? 1 : 2;
  for (std::size_t i = 0; i < 8; ++i) {
    context[1 + i] = static_cast<unsigned char>(generation >> (8 * i));
  }
  std::array<unsigned char, sizeof out.key + sizeof out.nonce> bytes{};
  const bool made = conduit.lib_.SSL_export_keying_material(
                        conduit.ssl_.get(), bytes.data(), bytes.size(), label.data(), label.size(),
                        context.data(), context.size(), 1) == 1;
  std::copy_n(bytes.begin(), out.key.size(), out.key.begin());
  std::copy_n(bytes.begin() + out.key.size(), out.nonce.size(), out.nonce.begin());
  conduit.lib_.OPENSSL_cleanse(bytes.data(), bytes.size());
  return made;
}

Status TlsConduit::seal_in_bulk() noexcept {
  if (!established_ || bulk_in_ || record_left_ > 0) return Status::usage;
  if (!in_.reserve(in_bulk_bytes - in_.held())) return Status::exhausted;
  if (!out_.reserve(batch_bytes + 64 * piece_overhead)) return Status::exhausted;
  const KeySource of_dialler = [](void* self, std::uint64_t generation, BulkKey& out) noexcept {
    return key_of(self, generation, out, true);
  };
  const KeySource of_listener = [](void* self, std::uint64_t generation, BulkKey& out) noexcept {
    return key_of(self, generation, out, false);
  };
  bulk_in_.reset(new (std::nothrow) Bulk(lib_, false, dialled_ ? of_listener : of_dialler, this));
  bulk_out_.reset(new (std::nothrow) Bulk(lib_, true, dialled_ ? of_dialler : of_listener, this));
  return bulk_in_ && bulk_out_ ? Status::ok : Status::exhausted;
}

/// Small parts share a piece; a large one has its own, so that the other side can open it straight
/// into where it belongs.
Status TlsConduit::send_pieces(std::span<const iovec> parts, std::size_t& taken) noexcept {
  constexpr std::size_t parts_per_piece_max = 32;
  Parts rest{parts};
  while (!rest.done() && taken < batch_bytes) {
    std::array<iovec, parts_per_piece_max> piece;
    std::size_t count = 0;
    std::size_t bytes = 0;
    const bool large = rest.here() >= large_part;
    while (!rest.done() && count < piece.size() && (count == 0 || !large)) {
      if (count > 0 && (rest.here() >= large_part || bytes + rest.here() > 2 * large_part)) break;
      const std::size_t here = std::min(rest.here(), piece_bytes_max);
      piece[count++] = {rest.at(), here};
      bytes += here;
      rest.offset += here;
    }
    if (!out_.reserve(bytes + piece_overhead)) return Status::exhausted;
    const Status status = bulk_out_->seal({piece.data(), count}, bytes, out_.back());
    if (status != Status::ok) return status;
    out_.grow(bytes + piece_overhead);
    taken += bytes;
  }
  return Status::ok;
}

Status TlsConduit::read_piece(std::span<const iovec> parts, std::size_t& got) noexcept {
  if (plain_bytes_ == 0) {
    std::size_t whole = 0;
    if (const Status status = first_whole(whole); status != Status::ok) return status;
    if (whole == 0) return Status::ok;
    const std::size_t bytes = whole - piece_overhead;
    if (const Status status = bulk_in_->open(in_.front(), bytes, parts); status != Status::ok) {
      return status == Status::protocol ? refuse("a piece of the lane was changed on its way")
                                        : status;
    }
    for (const iovec& part : parts) got += std::min(part.iov_len, bytes - got);
    in_.drop(piece_length_bytes + got);
    plain_bytes_ = bytes - got;
    if (plain_bytes_ == 0) in_.drop(piece_tag_bytes);
    return Status::ok;
  }
  for (const iovec& part : parts) {
    const std::size_t count = std::min(part.iov_len, plain_bytes_);
    if (count == 0) continue;
    std::memcpy(part.iov_base, in_.front(), count);
    in_.drop(count);
    plain_bytes_ -= count;
    got += count;
  }
  if (plain_bytes_ == 0) in_.drop(piece_tag_bytes);
  return Status::ok;
}

}  // namespace pccl
