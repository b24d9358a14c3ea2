// native/include/pccl/control_frames.hpp — the messages of the native control connections.
//
// Bytes: docs/PROTOCOL.md, "Control framing" and "Native control frames".  A frame is a head of
// twelve bytes (the body's length, the body's check, the head's check) and the body; the body
// starts with 0xC1 (no MessagePack value starts so: one port serves both), a type and a version.
// Integers are little endian.  A body has exactly the size its fields need.
//
// Ownership: plain values; encode and decode borrow for the call.
// Threads:   pure functions.
// Errors:    decode says Status::protocol for everything it does not know, leaves `out` unspecified
//            then, and allocates no more than a small multiple of the body.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <variant>
#include <vector>

#include "pccl/control.hpp"
#include "pccl/report.hpp"
#include "pccl/status.hpp"
#include "pccl/types.hpp"

namespace pccl::frames {

inline constexpr std::byte mark{0xC1};
inline constexpr std::uint8_t version_known = 4;
inline constexpr std::size_t length_bytes = 4;
inline constexpr std::size_t head_bytes = 12;
inline constexpr std::size_t prefix_bytes = 3;                     // mark, type, version
inline constexpr std::uint32_t first_body_bytes_max = 4 * 1024;    // from strangers
inline constexpr std::uint32_t read_body_bytes_max = 64 * 1024;    // what this side reads at all
inline constexpr std::size_t text_bytes_max = 2048;
inline constexpr std::size_t peers_max = 1024;  // as many as a coordinator admits
inline constexpr std::size_t steps_max = 4096;  // far above the steps that can be open at once

enum class Type : std::uint8_t {
  hello = 1, welcome = 2, refused = 3, heartbeat = 4, pong = 5,
  flush = 6, report = 7, suspect = 8, evicted = 9, peer_beat = 10,
  routes = 11, relay = 12, call = 13,
};

/// Why a HELLO was refused.
enum class Refusal : std::uint8_t {
  version = 1, run = 2, secret = 3, incarnation = 4, limit = 5, purpose = 6, unreachable = 7,
  generation = 8,  // of a coordinator on an old copy of its journal; it heals
  security = 9,    // one side is of a secured run, the other is not, or cannot prove its name
};

struct Hello {
  Purpose purpose = Purpose::coordinator;
  RunId run_id;
  PeerId peer;                  // the sender
  Incarnation incarnation = 0;  // the sender's
  Secret secret;                // the listener's; towards the coordinator the sender's own
  std::uint32_t series = 0;     // of a lane: the dialler's lanes of an older one are over
  Generation generation = 0;    // towards a coordinator: the newest one followed; else 0
  Epoch epoch = 0;              // towards a coordinator: the one in force; else 0
  friend bool operator==(const Hello&, const Hello&) = default;
};
struct Welcome {
  Generation generation = 0;  // 0 from peers
};
struct Refused {
  std::uint8_t code = 0;  // a Refusal
  std::string text;
};
struct Heartbeat {
  HeartbeatStatus status;
  std::uint32_t lag_ms = 0;  // how late the sender's timer was
  std::uint32_t rtt_us = 0;  // from a heartbeat to its PONG, smoothed; 0: not known
};
struct Pong {
  Generation generation = 0;
  Epoch epoch = 0;  // of the durable view
};
struct Flush {
  Generation generation = 0;
  Epoch target = 0;
};
struct Evicted {
  Generation generation = 0;
  std::string text;
};
struct PeerBeat {
  Epoch epoch = 0;
  StepId watermark = 0;
  std::uint64_t progress = 0;
};

/// The whole table of the receiving peer; it replaces the one before.
struct Routes {
  Generation generation = 0;
  Epoch epoch = 0;
  std::vector<Route> routes;
};
/// After a HELLO of purpose relay: whom the bytes to come are for.
struct Relay {
  PeerId peer;
  Incarnation incarnation = 0;
  std::uint64_t call = 0;  // 0: a lane; else the sender's number for this call, a stream
  bool answers = false;    // that peer has called the sender
};
/// To a peer that nobody can dial: `peer` waits at the sender of this to open a stream to it.
struct Call {
  PeerId peer;
  Incarnation incarnation = 0;
  std::uint64_t call = 0;
};

/// In the order of Type: index() + 1 is the type's number.
using Frame = std::variant<Hello, Welcome, Refused, Heartbeat, Pong, Flush, Report, Suspect,
                           Evicted, PeerBeat, Routes, Relay, Call>;

/// What is in front of a body.
struct Head {
  std::uint32_t length = 0;
  std::uint32_t body_check = 0;
};
[[nodiscard]] std::array<std::byte, head_bytes> head_of(std::span<const std::byte> body) noexcept;
/// False: damaged.  Whether the length is allowed is for the reader to say.
bool decode_head(std::span<const std::byte, head_bytes> bytes, Head& out) noexcept;

/// Appends a whole frame, head first.  Texts and lists of peers are hints and are cut to their
/// limits; a Report is a promise and is never cut: beyond steps_max it is Status::exhausted.  A
/// Suspect without a code is Status::usage.  Nothing is appended then.
Status encode(const Frame& frame, std::vector<std::byte>& out);
/// `body` without the head; its check is the reader's.
Status decode(std::span<const std::byte> body, Frame& out);
/// The version byte, and the purpose of something that may be a HELLO of a later version; 0 and 255
/// if the body is too short.  For telling a stranger what was wrong.
[[nodiscard]] std::uint8_t version_of(std::span<const std::byte> body) noexcept;
[[nodiscard]] std::uint8_t purpose_of(std::span<const std::byte> body) noexcept;

}  // namespace pccl::frames
