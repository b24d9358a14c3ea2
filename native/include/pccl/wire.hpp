// native/include/pccl/wire.hpp — the header in front of everything on a data lane.
// Bytes: docs/PROTOCOL.md, "Data frames".  64 bytes, little endian, then `length` bytes of payload.
// Ownership: plain values; encode and decode borrow their spans for the call.
// Threads:   pure functions.
// Errors:    decode says Status::protocol for anything it does not know; sizes that depend on an
//            operation are checked by the executor, against the posted operation, before a write.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "pccl/codec.hpp"
#include "pccl/dtype.hpp"
#include "pccl/plan.hpp"
#include "pccl/status.hpp"
#include "pccl/types.hpp"

namespace pccl {

enum class FrameType : std::uint8_t {
  open = 1,  // an operation was posted here: its descriptor; grants what exceeds the eager budget
  data = 2,  // one slice
  seal = 3,  // the step's last operation was posted: how many, and the digest of them all
  done = 4,  // the step's results are all here: manifest and result digest
  have = 5,  // which slices of one transfer have arrived (a lane died)
  ask = 6,   // please send your `have`s (a lane died)
  // Of messages from one program to another, which belong to no step:
  offer = 7,       // a message is to be sent: what it is
  message = 8,     // one chunk of it
  grant = 9,       // it is being received: all of it may come
  received = 10,   // all of it is where it was to go
  refused = 11,    // it will not be received: why, and what was expected
  withdrawn = 12,  // the sender has forgotten it
  held = 13,       // which of its chunks have arrived (a lane died)
  // Of the lane alone, where both ends are on one machine:
  memory = 14,  // payloads may come through a ring of the sender's: its name
  opened = 15,  // the ring is open here
  room = 16,    // the ring that was full has room again
  // Of the lane alone, before anything else:
  worker = 17,  // a UCX worker can be reached here; empty: this side does without
};

inline constexpr std::size_t header_bytes = 64;
inline constexpr std::uint32_t have_bytes_max = 256 * 1024;  // 2 Mi slices: 512 GiB a shard

inline constexpr std::uint32_t chunk_bytes_max = 256 * 1024;
/// As many chunks as one HELD can name.
inline constexpr std::uint64_t message_bytes_max =
    std::uint64_t{have_bytes_max} * 8 * chunk_bytes_max;

inline constexpr std::uint8_t flag_hashed = 1;  // payload_hash holds XXH3-128's low half
/// It does not: both ends are on one machine and have opened a ring.  Only of contributions, which
/// are added up and gone; what stays is checked where it stays.
inline constexpr std::uint8_t flag_unhashed = 2;
inline constexpr std::uint8_t flag_ring = 4;  // the payload is the next one in the lane's ring

/// What the payload of DATA is hashed with: another slice's bytes are no good here.
constexpr std::uint64_t slice_seed(std::uint16_t shard, std::uint32_t slice) noexcept {
  return std::uint64_t{shard} << 32U | slice;
}

/// The same for MESSAGE.
constexpr std::uint64_t chunk_seed(std::uint64_t number, std::uint32_t chunk) noexcept {
  return number << 32U | chunk;
}

struct FrameHeader {
  FrameType type = FrameType::data;
  Epoch epoch = 0;
  StepId step = 0;
  Tag tag = 0;
  std::uint32_t group = 0;
  std::uint16_t shard = 0;
  Phase phase = Phase::reduce;
  std::uint8_t flags = 0;
  std::uint32_t slice = 0;
  std::uint32_t length = 0;
  std::uint32_t descriptor = 0;  // low half of OpenBody::digest()
  double weight = 1.0;           // of what a reduce frame carries (a partial sum's is a sum)
  std::uint64_t payload_hash = 0;
};

/// What an operation is; equal on all its participants.  `count`: elements of the whole or, where
/// there are parts, of one part; 0 if they are `uneven`, for nobody needs to know all of them.
struct Descriptor {
  Dtype dtype = Dtype::f32;
  ReduceOp op = ReduceOp::sum;
  Codec codec{};  // what travels of all-reduce is quantised by it
  Algorithm algorithm = Algorithm::automatic;
  std::uint64_t count = 0;
  bool deterministic = false;
  Collective collective = Collective::all_reduce;
  bool uneven = false;  // parts have sizes of their own, compared pair by pair
  PeerId root{};        // zeros without one; by name, since ranks belong to a view

  friend bool operator==(const Descriptor&, const Descriptor&) = default;
  [[nodiscard]] std::uint64_t digest() const noexcept;
};

/// The body of OPEN: what one peer has for the other and expects of it, in elements.
struct OpenBody {
  Descriptor descriptor;
  std::uint64_t sends = 0;
  std::uint64_t receives = 0;
  /// What frames of the operation say they belong to: its low half is FrameHeader::descriptor.
  [[nodiscard]] std::uint64_t digest() const noexcept;
  /// The same as the other end should see it.
  [[nodiscard]] OpenBody mirrored() const noexcept { return {descriptor, receives, sends}; }
};

/// What a message is made of; both ends must say the same.  `nothing`: the program's call was
/// refused where it was made, and this stands for it, so that the other end's is an error, too.
struct Content {
  Dtype dtype = Dtype::u8;
  std::uint64_t count = 0;
  bool nothing = false;  // then of u8[0]

  friend bool operator==(const Content&, const Content&) = default;
  [[nodiscard]] std::uint64_t bytes() const noexcept { return count * size_of(dtype); }
  [[nodiscard]] std::uint32_t chunks() const noexcept {
    return static_cast<std::uint32_t>((bytes() + chunk_bytes_max - 1) / chunk_bytes_max);
  }
  [[nodiscard]] std::uint32_t chunk_bytes(std::uint32_t chunk) const noexcept {
    const std::uint64_t begin = std::uint64_t{chunk} * chunk_bytes_max;
    return static_cast<std::uint32_t>(std::min<std::uint64_t>(chunk_bytes_max, bytes() - begin));
  }
};

/// The body of OFFER.  `eager`: the first chunk comes without a grant.  `after`: the message before
/// this one that is not settled, 0 if there is none; those between are over and never come.
struct OfferBody {
  Content what;
  bool eager = false;
  std::uint64_t after = 0;
};

enum class RefusalCode : std::uint8_t {
  differs = 1,   // something else was expected
  given_up = 2,  // whoever received it does not any more
};

struct RefusedBody {
  Content expected;
  RefusalCode code = RefusalCode::differs;
};

/// The body of MEMORY: what the other side needs to open a payload ring.
struct RingName {
  std::uint32_t process = 0;
  std::uint32_t descriptor = 0;
  std::uint32_t bytes = 0;
  std::array<std::byte, 16> token{};
};

inline constexpr std::size_t offer_bytes = 24;
inline constexpr std::size_t refused_bytes = 16;
inline constexpr std::size_t descriptor_bytes = 32;
inline constexpr std::size_t open_bytes = descriptor_bytes + 16;
inline constexpr std::size_t seal_bytes = 24;
inline constexpr std::size_t done_bytes = 32;
inline constexpr std::size_t ring_name_bytes = 32;
/// With the address that UCX makes, which grows with the machine's interfaces.
inline constexpr std::size_t worker_bytes_max = 8192;
inline constexpr std::size_t worker_fixed_bytes = 12;  // before the address

/// How to reach its sender's worker, and what that calls the stream.
struct WorkerBody {
  std::uint64_t name = 0;
  std::uint16_t ucx_major = 0;  // only another of the same version is sure to read the address
  std::uint16_t ucx_minor = 0;
  std::span<const std::byte> address;
};
struct SealBody {
  Digest manifest;
  std::uint64_t operations = 0;
};
struct DoneBody {
  Digest manifest;
  Digest digest;
};

/// Fills in length and hash of a control frame's body.
void sign(FrameHeader& header, std::span<const std::byte> body) noexcept;
/// The body of a control frame is what was sent: they are always hashed.
[[nodiscard]] bool intact(const FrameHeader& header, const std::byte* body) noexcept;

void encode(const FrameHeader& header, std::span<std::byte, header_bytes> out) noexcept;
/// Says in an encoded header that the payload is in the ring.
void mark_in_ring(std::span<std::byte, header_bytes> header) noexcept;
Status decode(std::span<const std::byte, header_bytes> bytes, FrameHeader& header) noexcept;
void encode(const Descriptor& descriptor, std::span<std::byte, descriptor_bytes> out) noexcept;
Status decode(std::span<const std::byte, descriptor_bytes> bytes, Descriptor& out) noexcept;
void encode(const OpenBody& body, std::span<std::byte, open_bytes> out) noexcept;
Status decode(std::span<const std::byte, open_bytes> bytes, OpenBody& out) noexcept;
void encode(const SealBody& body, std::span<std::byte, seal_bytes> out) noexcept;
void decode(std::span<const std::byte, seal_bytes> bytes, SealBody& out) noexcept;
void encode(const DoneBody& body, std::span<std::byte, done_bytes> out) noexcept;
void decode(std::span<const std::byte, done_bytes> bytes, DoneBody& out) noexcept;
void encode(const OfferBody& body, std::span<std::byte, offer_bytes> out) noexcept;
Status decode(std::span<const std::byte, offer_bytes> bytes, OfferBody& out) noexcept;
void encode(const RefusedBody& body, std::span<std::byte, refused_bytes> out) noexcept;
Status decode(std::span<const std::byte, refused_bytes> bytes, RefusedBody& out) noexcept;
void encode(const RingName& name, std::span<std::byte, ring_name_bytes> out) noexcept;
Status decode(std::span<const std::byte, ring_name_bytes> bytes, RingName& out) noexcept;
/// The address becomes a part of `body`, of at least one byte.
Status decode(std::span<const std::byte> body, WorkerBody& out) noexcept;
[[nodiscard]] std::vector<std::byte> worker_body(const WorkerBody& body);

}  // namespace pccl
