// native/fuzz/fuzz_wire.cpp — headers and bodies of data frames, each by itself.
//
// What decodes encodes to the same bytes, and is within the bounds that the header wire.hpp names;
// everything else is refused.  A header's check is made right unless the input says otherwise.
//
// Ownership: spans of exactly the sizes that the decoders are given, so that ASan sees the edges.
// Threads:   one.
// Errors:    abort.
#include <cmath>

#include "fuzz/pieces.hpp"
#include "pccl/wire.hpp"
#include "pccl/xxh3.hpp"

using namespace pccl;
using fuzz::require;

namespace {

constexpr std::size_t checked_bytes = 60;

template <std::size_t size>
struct Exactly {
  explicit Exactly(fuzz::Pieces& input) : memory(size) {
    const auto given = input.take(size);
    if (!given.empty()) std::memcpy(memory.data(), given.data(), given.size());
  }
  std::span<std::byte, size> span() { return std::span<std::byte, size>(memory.data(), size); }
  std::span<const std::byte, size> bytes() const {
    return std::span<const std::byte, size>(memory.data(), size);
  }
  fuzz::Bytes memory;
};

/// Decodes and, if that goes, encodes to the same bytes.  True: it went.
template <class Value, std::size_t size>
bool round_trip(const Exactly<size>& given, Value& value) {
  if (decode(given.bytes(), value) != Status::ok) return false;
  fuzz::Bytes again(size);
  encode(value, std::span<std::byte, size>(again.data(), size));
  require(std::memcmp(again.data(), given.memory.data(), size) == 0);
  return true;
}

void header(fuzz::Pieces& input, bool right) {
  Exactly<header_bytes> given(input);
  if (right) {
    const std::span<const std::byte> checked(given.memory.data(), checked_bytes);
    const auto check = static_cast<std::uint32_t>(xxh3_64(checked));
    std::memcpy(given.memory.data() + checked_bytes, &check, sizeof check);
  }
  FrameHeader found;
  if (!round_trip(given, found)) return;
  require(found.length <= std::max(have_bytes_max, std::max(slice_bytes_max, chunk_bytes_max)));
  require(std::isfinite(found.weight) && found.weight >= 0);
  require((found.length > 0) == (found.flags != 0));
  const bool payload = found.type == FrameType::data || found.type == FrameType::message;
  require(payload || found.length == 0 || found.flags == flag_hashed);
  // What is in a ring says so, and is a payload; its check is right again.
  if (!payload) return;
  mark_in_ring(given.span());
  FrameHeader marked;
  require(decode(given.bytes(), marked) == Status::ok && (marked.flags & flag_ring) != 0);
  require(marked.length == found.length && marked.payload_hash == found.payload_hash);
}

void check_content(const Content& what) {
  require(what.bytes() <= message_bytes_max && what.bytes() / size_of(what.dtype) == what.count);
  const std::uint32_t chunks = what.chunks();
  require((chunks == 0) == (what.count == 0) && chunks <= have_bytes_max * 8);
  if (chunks == 0) return;
  const std::uint64_t before = std::uint64_t{chunks - 1} * chunk_bytes_max;
  require(before + what.chunk_bytes(chunks - 1) == what.bytes());
}

void open(fuzz::Pieces& input) {
  const Exactly<open_bytes> given(input);
  OpenBody body;
  if (!round_trip(given, body)) return;
  require(body.descriptor.codec.valid());
  const OpenBody other = body.mirrored().mirrored();
  require(other.descriptor == body.descriptor && other.digest() == body.digest());
}

void seal_or_done(fuzz::Pieces& input) {
  const Exactly<seal_bytes> sealed(input);
  SealBody seal;
  decode(sealed.bytes(), seal);
  fuzz::Bytes again(seal_bytes);
  encode(seal, std::span<std::byte, seal_bytes>(again.data(), seal_bytes));
  require(again == sealed.memory);
  const Exactly<done_bytes> given(input);
  DoneBody done;
  decode(given.bytes(), done);
  again.assign(done_bytes, {});
  encode(done, std::span<std::byte, done_bytes>(again.data(), done_bytes));
  require(again == given.memory);
}

/// A body is what was signed, and nothing else is.
void signature(fuzz::Pieces& input) {
  const auto flipped = input.number<std::uint16_t>();
  fuzz::Bytes body;
  fuzz::append(body, input.all());
  FrameHeader header;
  sign(header, body);
  require(header.length == body.size() && intact(header, body.data()));
  if (body.empty()) return;
  body[flipped / 8u % body.size()] ^= static_cast<std::byte>(1u << flipped % 8u);
  require(!intact(header, body.data()));
}

void worker(fuzz::Pieces& input) {
  fuzz::Bytes given;
  fuzz::append(given, input.all());
  WorkerBody body;
  const bool taken = decode(given, body) == Status::ok;
  require(taken == (given.size() > worker_fixed_bytes));
  if (!taken) return;
  require(body.address.data() == given.data() + worker_fixed_bytes);
  require(worker_body(body) == given);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  fuzz::Pieces input(data, size);
  const auto which = input.number<std::uint8_t>();
  switch (which % 8) {
    case 0:
    case 1: header(input, which < 240); break;
    case 2: open(input); break;
    case 3: seal_or_done(input); break;
    case 4: {
      OfferBody body;
      if (round_trip(Exactly<offer_bytes>(input), body)) check_content(body.what);
      break;
    }
    case 5: {
      RefusedBody body;
      if (round_trip(Exactly<refused_bytes>(input), body)) check_content(body.expected);
      break;
    }
    case 6: {
      RingName name;
      static_cast<void>(round_trip(Exactly<ring_name_bytes>(input), name));
      signature(input);
      break;
    }
    default: worker(input); break;
  }
  return 0;
}
