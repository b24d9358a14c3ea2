// native/tests/test_lane.cpp — what one lane reads in one turn, over a socket pair.
// Ownership: each test owns both ends.
// Threads:   one.
// Errors:    CHECKs.
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "check.hpp"
#include "pccl/lane.hpp"
#include "pccl/link.hpp"

using namespace pccl;

namespace {

/// Takes every payload into its own memory, and counts frames.
struct Taker final : FrameSink {
  Status place(Link&, const FrameHeader& header, Placement& placement) override {
    memory.resize(header.length);
    placement.kind = Placement::Kind::control;
    placement.target = memory.data();
    return Status::ok;
  }
  Status delivered(Link&, const FrameHeader&, Placement&) override {
    ++frames;
    return Status::ok;
  }
  std::vector<std::byte> memory;
  int frames = 0;
};

/// A lane, and the other end of its socket.
struct Rig {
  Rig() {
    std::array<int, 2> ends{};
    CHECK(::socketpair(AF_UNIX, SOCK_STREAM, 0, ends.data()) == 0);
    lane = std::make_unique<Lane>(make_socket_conduit(Fd(ends[0])), 0u, 0.0);
    other = Fd(ends[1]);
  }

  void send(FrameType type, std::size_t length) {
    FrameHeader header;
    header.type = type;
    header.length = static_cast<std::uint32_t>(length);
    header.flags = length == 0 ? 0 : flag_hashed;  // whoever the lane serves looks at the hash
    std::vector<std::byte> bytes(header_bytes + length, std::byte{7});
    encode(header, std::span<std::byte, header_bytes>(bytes.data(), header_bytes));
    CHECK(::write(other.get(), bytes.data(), bytes.size()) ==
          static_cast<ssize_t>(bytes.size()));
  }

  Status receive() { return lane->receive(link, taker, std::size_t{1} << 20, more); }

  Fd other;
  std::unique_ptr<Lane> lane;
  Link link{PeerId{}, Incarnation{1}, 0.0};
  Taker taker;
  bool more = false;
};

}  // namespace

// A socket that gave less than it was asked for is not asked again in the same turn; so the end
// that stands behind a frame is found in the next turn, of which the poller tells.
TEST(a_short_read_ends_the_turn_and_the_end_behind_it_is_found_in_the_next) {
  for (const std::size_t length : {std::size_t{0}, std::size_t{100}, std::size_t{64 * 1024}}) {
    Rig rig;
    rig.send(length == 0 ? FrameType::ask : FrameType::data, length);
    CHECK(::shutdown(rig.other.get(), SHUT_WR) == 0);
    CHECK(rig.receive() == Status::ok);
    CHECK(rig.taker.frames == 1 && !rig.more);
    CHECK(rig.lane->bytes_received == header_bytes + length);
    CHECK(rig.receive() == Status::closed);
    CHECK(rig.taker.frames == 1);
  }
}

TEST(a_frame_that_comes_in_two_parts_is_delivered_once_with_the_second) {
  Rig rig;
  FrameHeader header;
  header.type = FrameType::ask;
  std::array<std::byte, header_bytes> bytes;
  encode(header, bytes);
  CHECK(::write(rig.other.get(), bytes.data(), 20) == 20);
  CHECK(rig.receive() == Status::ok && rig.taker.frames == 0);
  CHECK(::write(rig.other.get(), bytes.data() + 20, header_bytes - 20) == header_bytes - 20);
  CHECK(rig.receive() == Status::ok && rig.taker.frames == 1);
  CHECK(rig.receive() == Status::ok && rig.taker.frames == 1);
}
