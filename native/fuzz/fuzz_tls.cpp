// native/fuzz/fuzz_tls.cpp — what a stranger or a changed wire puts before the cipher: heads of TLS
// records, lengths of pieces, and pieces that nobody sealed.
//
// Whatever the bytes are, a length is within its bounds, a longer view of the same bytes agrees
// with a shorter one, and no piece opens that was not sealed under the key.  Where no OpenSSL is
// found, only the lengths are tried.
//
// Ownership: everything is made anew for each input.
// Threads:   one.
// Errors:    abort.
#include <algorithm>
#include <array>

#include "fuzz/pieces.hpp"
#include "tls/bulk.hpp"
#include "tls/framing.hpp"

using namespace pccl;
using fuzz::require;

namespace {

bool key_of(void*, std::uint64_t generation, BulkKey& out) noexcept {
  out.key.fill(static_cast<unsigned char>(generation + 1));
  out.nonce.fill(7);
  return true;
}

template <class Length>
void check_length(const Length& length, std::span<const std::byte> bytes, std::size_t most) {
  std::size_t told = 0;
  bool refused = false;
  for (std::size_t held = 0; held <= std::min<std::size_t>(bytes.size(), 8); ++held) {
    std::size_t now = 0;
    const Status status = length(bytes.first(held), now);
    require(status == Status::ok || status == Status::protocol);
    require(!refused || status == Status::protocol);
    require(now <= most);
    if (status == Status::ok && told > 0) require(now == told);
    refused = status == Status::protocol;
    told = now;
  }
}

void try_pieces(const openssl::Functions& lib, fuzz::Pieces& input) {
  Bulk sealer(lib, true, &key_of, nullptr);
  Bulk opener(lib, false, &key_of, nullptr);
  // A few true ones first, so that the opener is in the middle of a stream.
  for (unsigned left = input.number<std::uint8_t>() % 3; left > 0; --left) {
    fuzz::Bytes plain(1 + input.number<std::uint8_t>() % 64, std::byte{5});
    fuzz::Bytes piece(plain.size() + piece_overhead);
    const iovec part{plain.data(), plain.size()};
    require(sealer.seal({&part, 1}, plain.size(), piece.data()) == Status::ok);
    fuzz::Bytes out(plain.size() / 2);
    const iovec into{out.data(), out.size()};
    require(opener.open(piece.data(), plain.size(), {&into, 1}) == Status::ok);
    require(std::equal(out.begin(), out.end(), plain.begin()));
    require(std::equal(plain.begin() + static_cast<long>(out.size()), plain.end(),
                       piece.begin() + static_cast<long>(piece_length_bytes + out.size())));
  }
  fuzz::Bytes into(input.number<std::uint8_t>());
  fuzz::Bytes rest;
  fuzz::append(rest, input.all());
  std::size_t bytes = 0;
  if (piece_length(rest, bytes) != Status::ok || bytes == 0) return;
  if (rest.size() < bytes + piece_overhead) return;
  const std::array<iovec, 2> parts = {iovec{into.data(), into.size() / 3},
                                      iovec{into.data() + into.size() / 3,
                                            into.size() - into.size() / 3}};
  require(opener.open(rest.data(), bytes, parts) == Status::protocol);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  fuzz::Pieces input(data, size);
  const std::span<const std::byte> bytes{reinterpret_cast<const std::byte*>(data), size};
  check_length([](auto held, auto& out) { return record_length(held, out); }, bytes,
               record_bytes_max);
  check_length([](auto held, auto& out) { return piece_length(held, out); }, bytes,
               piece_bytes_max);
  if (const openssl::Functions* lib = openssl::find(); lib != nullptr) try_pieces(*lib, input);
  return 0;
}
