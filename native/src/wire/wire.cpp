// native/src/wire/wire.cpp — data frame headers to bytes and back.
// Ownership: none.
// Threads:   pure functions.
// Errors:    decode returns Status::protocol.
#include "pccl/wire.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "pccl/xxh3.hpp"

namespace pccl {
namespace {

static_assert(std::endian::native == std::endian::little, "wire integers are copied as they are");

constexpr std::uint16_t magic = 0x6370;  // "pc"
constexpr std::uint8_t version = 4;
constexpr std::size_t checked_bytes = 60;  // the check covers what is in front of it

template <class T>
void put(std::byte* out, std::size_t offset, T value) noexcept {
  std::memcpy(out + offset, &value, sizeof value);
}

template <class T>
T get(const std::byte* bytes, std::size_t offset) noexcept {
  T value;
  std::memcpy(&value, bytes + offset, sizeof value);
  return value;
}

std::uint32_t check_of(const std::byte* bytes) noexcept {
  return static_cast<std::uint32_t>(xxh3_64({bytes, checked_bytes}));
}

/// Most bodies have one size only; false for a type that does not exist.
bool length_fits(std::uint8_t type, std::uint32_t length) noexcept {
  switch (static_cast<FrameType>(type)) {
    case FrameType::open: return length == open_bytes;
    case FrameType::seal: return length == seal_bytes;
    case FrameType::done: return length == done_bytes;
    case FrameType::offer: return length == offer_bytes;
    case FrameType::refused: return length == refused_bytes;
    case FrameType::memory: return length == ring_name_bytes;
    case FrameType::ask:
    case FrameType::grant:
    case FrameType::received:
    case FrameType::withdrawn:
    case FrameType::opened:
    case FrameType::room: return length == 0;
    case FrameType::data: return length > 0 && length <= slice_bytes_max;
    case FrameType::message: return length > 0 && length <= chunk_bytes_max;
    case FrameType::have:
    case FrameType::held: return length > 0 && length <= have_bytes_max;
    case FrameType::worker: return length <= worker_bytes_max;
  }
  return false;
}

/// No body comes without its hash: a bit may flip on any way, loopback included.  But what is
/// written to memory and read from it is as safe there as it is in the tensors.
bool flags_fit(FrameType type, Phase phase, std::uint32_t length, std::uint8_t flags) noexcept {
  if (length == 0) return flags == 0;
  if (type != FrameType::data && type != FrameType::message) return flags == flag_hashed;
  const bool contribution = type == FrameType::data && phase == Phase::reduce;
  return flags == flag_hashed || flags == (flag_hashed | flag_ring) ||
         (contribution && flags == (flag_unhashed | flag_ring));
}

constexpr std::uint8_t dtype_of_nothing = 255;

void put_content(std::byte* p, const Content& what) noexcept {
  put(p, 0, what.nothing ? dtype_of_nothing : static_cast<std::uint8_t>(what.dtype));
  put(p, 8, what.count);
}

/// Reads and checks what a message is made of.
Status get_content(const std::byte* p, Content& out) noexcept {
  const auto dtype = get<std::uint8_t>(p, 0);
  const auto count = get<std::uint64_t>(p, 8);
  if (dtype == dtype_of_nothing) {
    out = {.nothing = true};
    return count == 0 ? Status::ok : Status::protocol;
  }
  if (dtype >= dtype_count) return Status::protocol;
  out = {static_cast<Dtype>(dtype), count};
  return out.count <= message_bytes_max / size_of(out.dtype) ? Status::ok : Status::protocol;
}

constexpr std::uint8_t stochastic_bit = 0x80;

/// Reads a descriptor's codec; false: there is no such codec.
bool get_codec(const std::byte* p, Codec& out) noexcept {
  const auto how = get<std::uint8_t>(p, 7);
  out = {static_cast<CodecKind>(get<std::uint8_t>(p, 2)),
         static_cast<std::uint8_t>(how & ~stochastic_bit), (how & stochastic_bit) != 0};
  return out.valid();
}

bool is_zero(const std::byte* begin, const std::byte* end) noexcept {
  return std::all_of(begin, end, [](std::byte byte) { return byte == std::byte{0}; });
}

}  // namespace

void sign(FrameHeader& header, std::span<const std::byte> body) noexcept {
  header.length = static_cast<std::uint32_t>(body.size());
  if (body.empty()) return;
  header.flags = flag_hashed;
  header.payload_hash = xxh3_128(body).low;
}

bool intact(const FrameHeader& header, const std::byte* body) noexcept {
  if (header.length == 0) return true;
  return (header.flags & flag_hashed) != 0 &&
         xxh3_128({body, header.length}).low == header.payload_hash;
}

std::uint64_t Descriptor::digest() const noexcept {
  std::byte bytes[descriptor_bytes];
  encode(*this, bytes);
  return xxh3_64(bytes);
}

std::uint64_t OpenBody::digest() const noexcept {
  // Where parts are even the descriptor says it all.
  if (!descriptor.uneven) return descriptor.digest();
  std::byte bytes[open_bytes];
  encode(*this, bytes);
  return xxh3_64(bytes);
}

void encode(const FrameHeader& header, std::span<std::byte, header_bytes> out) noexcept {
  std::byte* p = out.data();
  put(p, 0, magic);
  put(p, 2, version);
  put(p, 3, static_cast<std::uint8_t>(header.type));
  put(p, 4, header.epoch);
  put(p, 8, header.step);
  put(p, 16, header.tag);
  put(p, 20, header.group);
  put(p, 24, header.shard);
  put(p, 26, static_cast<std::uint8_t>(header.phase));
  put(p, 27, header.flags);
  put(p, 28, header.slice);
  put(p, 32, header.length);
  put(p, 36, header.descriptor);
  put(p, 40, header.weight);
  put(p, 48, header.payload_hash);
  put(p, 56, std::uint32_t{0});
  put(p, 60, check_of(p));
}

void mark_in_ring(std::span<std::byte, header_bytes> header) noexcept {
  std::byte* p = header.data();
  p[27] |= std::byte{flag_ring};
  put(p, 60, check_of(p));
}

Status decode(std::span<const std::byte, header_bytes> bytes, FrameHeader& header) noexcept {
  const std::byte* p = bytes.data();
  if (get<std::uint16_t>(p, 0) != magic || get<std::uint8_t>(p, 2) != version) {
    return Status::protocol;
  }
  if (get<std::uint32_t>(p, 60) != check_of(p) || get<std::uint32_t>(p, 56) != 0) {
    return Status::protocol;
  }
  const auto type = get<std::uint8_t>(p, 3);
  const auto phase = get<std::uint8_t>(p, 26);
  const auto length = get<std::uint32_t>(p, 32);
  if (!length_fits(type, length) || phase > 1) return Status::protocol;
  header.type = static_cast<FrameType>(type);
  header.epoch = get<Epoch>(p, 4);
  header.step = get<StepId>(p, 8);
  header.tag = get<Tag>(p, 16);
  header.group = get<std::uint32_t>(p, 20);
  header.shard = get<std::uint16_t>(p, 24);
  header.phase = static_cast<Phase>(phase);
  header.flags = get<std::uint8_t>(p, 27);
  if (!flags_fit(header.type, header.phase, length, header.flags)) return Status::protocol;
  header.slice = get<std::uint32_t>(p, 28);
  header.length = length;
  header.descriptor = get<std::uint32_t>(p, 36);
  header.weight = get<double>(p, 40);
  header.payload_hash = get<std::uint64_t>(p, 48);
  if (!std::isfinite(header.weight) || header.weight < 0) return Status::protocol;
  return Status::ok;
}

void encode(const Descriptor& descriptor, std::span<std::byte, descriptor_bytes> out) noexcept {
  std::byte* p = out.data();
  std::memset(p, 0, descriptor_bytes);
  put(p, 0, static_cast<std::uint8_t>(descriptor.dtype));
  put(p, 1, static_cast<std::uint8_t>(descriptor.op));
  put(p, 2, static_cast<std::uint8_t>(descriptor.codec.kind));
  put(p, 3, static_cast<std::uint8_t>(descriptor.algorithm));
  put(p, 4, static_cast<std::uint8_t>(descriptor.deterministic ? 1 : 0));
  put(p, 5, static_cast<std::uint8_t>(descriptor.collective));
  put(p, 6, static_cast<std::uint8_t>(descriptor.uneven ? 1 : 0));
  put(p, 7, static_cast<std::uint8_t>(descriptor.codec.block_log2 |
                                      (descriptor.codec.stochastic ? stochastic_bit : 0U)));
  put(p, 8, descriptor.count);
  std::memcpy(p + 16, descriptor.root.bytes.data(), descriptor.root.bytes.size());
}

Status decode(std::span<const std::byte, descriptor_bytes> bytes, Descriptor& out) noexcept {
  const std::byte* p = bytes.data();
  const auto dtype = get<std::uint8_t>(p, 0);
  const auto op = get<std::uint8_t>(p, 1);
  const auto algorithm = get<std::uint8_t>(p, 3);
  const auto collective = get<std::uint8_t>(p, 5);
  if (dtype >= dtype_count || op >= reduce_op_count || algorithm >= algorithm_count ||
      collective >= collective_count || get<std::uint8_t>(p, 4) > 1 ||
      get<std::uint8_t>(p, 6) > 1 || !get_codec(p, out.codec)) {
    return Status::protocol;
  }
  out.dtype = static_cast<Dtype>(dtype);
  out.op = static_cast<ReduceOp>(op);
  out.algorithm = static_cast<Algorithm>(algorithm);
  out.deterministic = get<std::uint8_t>(p, 4) != 0;
  out.collective = static_cast<Collective>(collective);
  out.uneven = get<std::uint8_t>(p, 6) != 0;
  out.count = get<std::uint64_t>(p, 8);
  std::memcpy(out.root.bytes.data(), p + 16, out.root.bytes.size());
  return Status::ok;
}

void encode(const OpenBody& body, std::span<std::byte, open_bytes> out) noexcept {
  encode(body.descriptor, out.first<descriptor_bytes>());
  put(out.data(), descriptor_bytes, body.sends);
  put(out.data(), descriptor_bytes + 8, body.receives);
}

Status decode(std::span<const std::byte, open_bytes> bytes, OpenBody& out) noexcept {
  out.sends = get<std::uint64_t>(bytes.data(), descriptor_bytes);
  out.receives = get<std::uint64_t>(bytes.data(), descriptor_bytes + 8);
  return decode(bytes.first<descriptor_bytes>(), out.descriptor);
}

void encode(const SealBody& body, std::span<std::byte, seal_bytes> out) noexcept {
  put(out.data(), 0, body.manifest.low);
  put(out.data(), 8, body.manifest.high);
  put(out.data(), 16, body.operations);
}

void decode(std::span<const std::byte, seal_bytes> bytes, SealBody& out) noexcept {
  out.manifest = {get<std::uint64_t>(bytes.data(), 0), get<std::uint64_t>(bytes.data(), 8)};
  out.operations = get<std::uint64_t>(bytes.data(), 16);
}

void encode(const DoneBody& body, std::span<std::byte, done_bytes> out) noexcept {
  put(out.data(), 0, body.manifest.low);
  put(out.data(), 8, body.manifest.high);
  put(out.data(), 16, body.digest.low);
  put(out.data(), 24, body.digest.high);
}

void decode(std::span<const std::byte, done_bytes> bytes, DoneBody& out) noexcept {
  out.manifest = {get<std::uint64_t>(bytes.data(), 0), get<std::uint64_t>(bytes.data(), 8)};
  out.digest = {get<std::uint64_t>(bytes.data(), 16), get<std::uint64_t>(bytes.data(), 24)};
}

void encode(const OfferBody& body, std::span<std::byte, offer_bytes> out) noexcept {
  std::byte* p = out.data();
  std::memset(p, 0, offer_bytes);
  put_content(p, body.what);
  put(p, 1, static_cast<std::uint8_t>(body.eager ? 1 : 0));
  put(p, 16, body.after);
}

Status decode(std::span<const std::byte, offer_bytes> bytes, OfferBody& out) noexcept {
  const std::byte* p = bytes.data();
  const auto eager = get<std::uint8_t>(p, 1);
  if (eager > 1 || !is_zero(p + 2, p + 8)) return Status::protocol;
  out.eager = eager != 0;
  out.after = get<std::uint64_t>(p, 16);
  return get_content(p, out.what);
}

void encode(const RefusedBody& body, std::span<std::byte, refused_bytes> out) noexcept {
  std::byte* p = out.data();
  std::memset(p, 0, refused_bytes);
  put_content(p, body.expected);
  put(p, 1, static_cast<std::uint8_t>(body.code));
}

Status decode(std::span<const std::byte, refused_bytes> bytes, RefusedBody& out) noexcept {
  const std::byte* p = bytes.data();
  const auto code = get<std::uint8_t>(p, 1);
  if (code < 1 || code > 2 || !is_zero(p + 2, p + 8)) return Status::protocol;
  out.code = static_cast<RefusalCode>(code);
  return get_content(p, out.expected);
}

void encode(const RingName& name, std::span<std::byte, ring_name_bytes> out) noexcept {
  std::byte* p = out.data();
  put(p, 0, name.process);
  put(p, 4, name.descriptor);
  put(p, 8, name.bytes);
  put(p, 12, std::uint32_t{0});
  std::memcpy(p + 16, name.token.data(), name.token.size());
}

Status decode(std::span<const std::byte, ring_name_bytes> bytes, RingName& out) noexcept {
  const std::byte* p = bytes.data();
  out.process = get<std::uint32_t>(p, 0);
  out.descriptor = get<std::uint32_t>(p, 4);
  out.bytes = get<std::uint32_t>(p, 8);
  std::memcpy(out.token.data(), p + 16, out.token.size());
  return get<std::uint32_t>(p, 12) == 0 ? Status::ok : Status::protocol;
}

std::vector<std::byte> worker_body(const WorkerBody& body) {
  std::vector<std::byte> bytes(worker_fixed_bytes + body.address.size());
  put(bytes.data(), 0, body.name);
  put(bytes.data(), 8, body.ucx_major);
  put(bytes.data(), 10, body.ucx_minor);
  std::copy(body.address.begin(), body.address.end(), bytes.begin() + worker_fixed_bytes);
  return bytes;
}

Status decode(std::span<const std::byte> body, WorkerBody& out) noexcept {
  if (body.size() <= worker_fixed_bytes) return Status::protocol;
  out.name = get<std::uint64_t>(body.data(), 0);
  out.ucx_major = get<std::uint16_t>(body.data(), 8);
  out.ucx_minor = get<std::uint16_t>(body.data(), 10);
  out.address = body.subspan(worker_fixed_bytes);
  return Status::ok;
}

}  // namespace pccl
