// native/tests/raw_peer.hpp — a member that is a plain socket: it says whatever the test likes.
// Ownership: owns its socket.
// Threads:   the test's.
// Errors:    CHECKs; every wait ends by rig::patience_s.
#pragma once

#include <array>
#include <optional>
#include <span>
#include <vector>

#include "control_rig.hpp"
#include "engine_world.hpp"
#include "pccl/wire.hpp"
#include "pccl/xxh3.hpp"

namespace world {

/// The name that sorts before all engines', so that it dials them.
inline PeerId raw_id() { return PeerId{}; }
inline constexpr Incarnation raw_incarnation = 500;

inline MemberEntry raw_entry() {
  return {{raw_id(), raw_incarnation, 0},
          {raw_id(), raw_incarnation, {}, "127.0.0.1", 9},
          2};
}

struct Heard {
  FrameHeader header;
  rig::Bytes payload;
};

class RawPeer {
 public:
  /// Opens a data lane to that engine, by the book.
  RawPeer(World& world, std::size_t rank) : wire(rig::Wire::dial(world.engines[rank]->port())) {
    frames::Hello hello;
    hello.purpose = Purpose::data_lane;
    hello.peer = raw_id();
    hello.incarnation = raw_incarnation;
    hello.secret = world.members[rank].endpoint.secret;
    wire.write(frames::Frame{hello});
    CHECK(wire.next<frames::Welcome>().has_value());
  }
  /// Says a frame with its body's hash, unless the test has put another one in.
  void say(FrameHeader header, std::span<const std::byte> body = {}) {
    const std::uint64_t given = header.payload_hash;
    sign(header, body);
    if (given != 0) {
      header.payload_hash = given;
    } else if (header.type == FrameType::data) {
      header.payload_hash = xxh3_128(body, slice_seed(header.shard, header.slice)).low;
    }
    std::array<std::byte, header_bytes> front;
    encode(header, front);
    wire.write(front.data(), front.size());
    if (!body.empty()) wire.write(body.data(), body.size());
  }
  void open(Epoch epoch, StepId step, Tag tag, const OpenBody& opened) {
    FrameHeader header{.type = FrameType::open, .epoch = epoch, .step = step, .tag = tag};
    std::array<std::byte, open_bytes> body;
    encode(opened, body);
    say(header, body);
  }
  /// Of an operation that has the same size everywhere.
  void open(Epoch epoch, StepId step, Tag tag, const Descriptor& descriptor) {
    open(epoch, step, tag, OpenBody{descriptor, descriptor.count, descriptor.count});
  }
  void seal(Epoch epoch, StepId step, Digest manifest, std::uint64_t operations) {
    std::array<std::byte, seal_bytes> body;
    encode(SealBody{manifest, operations}, body);
    say({.type = FrameType::seal, .epoch = epoch, .step = step}, body);
  }
  void done(Epoch epoch, StepId step, Digest manifest, Digest digest) {
    std::array<std::byte, done_bytes> body;
    encode(DoneBody{manifest, digest}, body);
    say({.type = FrameType::done, .epoch = epoch, .step = step}, body);
  }
  /// The next frame, or none if nothing comes for that long.
  std::optional<Heard> hear(int timeout_ms) {
    if (wire.silent_for(timeout_ms)) return std::nullopt;
    const auto front = wire.read(header_bytes);
    if (!front) return std::nullopt;
    Heard heard;
    CHECK(decode(std::span<const std::byte, header_bytes>(front->data(), header_bytes),
                 heard.header) == Status::ok);
    if (heard.header.length > 0) {
      auto payload = wire.read(heard.header.length);
      if (!payload) return std::nullopt;
      heard.payload = std::move(*payload);
    }
    return heard;
  }

  rig::Wire wire;
};

/// The raw peer's rank is 0, the engines follow.
inline void install_with_raw(World& world, Epoch epoch, std::vector<Decision> decisions = {}) {
  View view = world.view_of(epoch, world.everybody(), Pause::none);
  auto entries = world.entries_of(world.everybody());
  view.members.insert(view.members.begin(), raw_entry().member);
  entries.insert(entries.begin(), raw_entry());
  for (const auto& engine : world.engines) engine->install(view, entries, 0, decisions);
}

}  // namespace world
