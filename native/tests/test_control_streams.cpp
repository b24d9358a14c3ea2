// native/tests/test_control_streams.cpp — streams: connections that the host's program takes over.
// Ownership: see control_rig.hpp.
// Threads:   the test's and each Control's own.
// Errors:    CHECK.
#include <sys/socket.h>

#include <string_view>

#include "control_rig.hpp"

namespace {

using namespace rig;

constexpr std::uint16_t nowhere = 1;  // nobody listens there: the coordinator is away

/// Says HELLO until the peer is known to be admitted.
Wire stream_to(Peer& peer) {
  peer.admit(nowhere);
  std::optional<Wire> wire;
  CHECK(eventually([&] {
    wire.emplace(Wire::dial(peer.control.port()));
    wire->write(peer.hello(Purpose::stream));
    return wire->next<frames::Welcome>().has_value();
  }));
  return std::move(*wire);
}

TEST(a_stream_is_handed_over_with_nothing_read_beyond_its_hello) {
  Peer peer(2);
  Wire wire = stream_to(peer);
  CHECK(peer.host.sees([](auto& seen) { return !seen.streams.empty(); }));
  const char word[] = "after";
  wire.write(word, sizeof word);
  char heard[sizeof word] = {};
  CHECK(peer.host.sees([&](auto& seen) {
    return ::recv(seen.streams.back().second.get(), heard, sizeof heard, MSG_PEEK) ==
           static_cast<ssize_t>(sizeof word);
  }));
  CHECK(std::string_view(heard) == "after");
  CHECK(peer.host.look([](auto& seen) { return seen.lanes.empty(); }));
}

TEST(a_stream_needs_the_secret_of_the_one_it_is_for) {
  Peer peer(2);
  const Wire known = stream_to(peer);
  auto hello = peer.hello(Purpose::stream);
  hello.secret.bytes[0] ^= 1;
  Wire wire = Wire::dial(peer.control.port());
  wire.write(hello);
  const auto refusal = wire.next<frames::Refused>();
  CHECK(refusal && refusal->code == 3);
  CHECK(wire.ends());
}

}  // namespace
