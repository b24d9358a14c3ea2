// native/tests/test_calls.cpp — streams to a peer that nobody can dial: it is called to a relay.
// Ownership: see control_rig.hpp.
// Threads:   see there.
// Errors:    CHECK.
#include <algorithm>
#include <cstring>
#include <vector>

#include "control_rig.hpp"

namespace {

using namespace pccl;
using rig::eventually;
using rig::Gate;
using rig::Peer;
using rig::Wire;
using rig::id;

constexpr std::uint16_t nobody = 9;

ControlConfig hasty() {
  ControlConfig config;
  config.handshake_timeout_s = 0.3;
  return config;
}

/// Rank 3, hidden, which has dialled the relay; its caller is whoever says hello() there.
struct Hidden {
  explicit Hidden(bool knows_caller = true) : relay(2, hasty()), peer(3, hasty()) {
    relay.host.met = {{id<PeerId>(3), 3, {}, "127.0.0.1", 0},
                      {id<PeerId>(77), 70, {}, "127.0.0.1", 0}};
    peer.host.met = {relay.endpoint()};
    if (knows_caller) peer.host.met.push_back({id<PeerId>(77), 70, {}, "127.0.0.1", 0});
    relay.admit(nobody);
    peer.admit(nobody);
  }
  void dials() {
    DialRequest request;
    request.peer = relay.endpoint();
    request.lanes = 0;
    peer.control.connect(request);
    CHECK(relay.host.sees([](const auto& seen) {
      return std::find(seen.beats.begin(), seen.beats.end(), id<PeerId>(3)) != seen.beats.end();
    }));
  }
  Wire asks(std::uint64_t call, bool answers = false) {
    Wire wire = Wire::dial(relay.control.port());
    wire.write(relay.hello(Purpose::relay));
    wire.write(frames::Relay{id<PeerId>(3), 3, call, answers});
    return wire;
  }
  /// What the far end of the stream that has come at place `at` reads and writes.
  Wire taken(std::size_t at) {
    CHECK(peer.host.sees([&](const auto& seen) { return seen.streams.size() > at; }));
    return peer.host.look([&](auto& seen) {
      CHECK(seen.streams[at].first == id<PeerId>(77));
      const int fd = seen.streams[at].second.get();
      ::fcntl(fd, F_SETFL, ::fcntl(fd, F_GETFL) & ~O_NONBLOCK);
      return Wire(std::move(seen.streams[at].second));
    });
  }
  Peer relay;
  Peer peer;
};

TEST(a_stream_reaches_a_peer_that_nobody_can_dial_also_several_at_once) {
  Hidden hidden;
  hidden.dials();
  std::vector<Wire> callers;
  for (std::uint64_t call = 1; call <= 3; ++call) callers.push_back(hidden.asks(call));
  for (std::size_t i = 0; i < callers.size(); ++i) {
    CHECK(callers[i].next<frames::Welcome>().has_value());  // the relay's
    callers[i].write(hidden.peer.hello(Purpose::stream));
    CHECK(callers[i].next<frames::Welcome>().has_value());  // the peer's own
    Wire far = hidden.taken(i);
    callers[i].write(std::string("what?"));
    const auto got = far.read(5);
    CHECK(got && std::memcmp(got->data(), "what?", 5) == 0);
    far.write(std::string("that!"));
    const auto back = callers[i].read(5);
    CHECK(back && std::memcmp(back->data(), "that!", 5) == 0);
    CHECK(hidden.relay.control.counters().tunnels == callers.size() - i);
    (i % 2 == 0 ? far : callers[i]).close();
    CHECK((i % 2 == 0 ? callers[i] : far).ends());
    CHECK(eventually([&] {
      return hidden.relay.control.counters().tunnels == callers.size() - i - 1;
    }));
  }
  CHECK(hidden.peer.host.look([](const auto& seen) { return seen.failed.empty(); }));
}

TEST(the_relay_may_be_the_caller_itself) {
  Hidden hidden;
  hidden.peer.host.met.push_back({id<PeerId>(2), 2, id<Secret>(2), "127.0.0.1",
                                  hidden.relay.control.port()});
  hidden.dials();
  Wire wire = Wire::dial(hidden.relay.control.port());
  frames::Hello own = hidden.relay.hello(Purpose::relay);
  own.peer = id<PeerId>(2);
  own.incarnation = 2;
  wire.write(own);
  wire.write(frames::Relay{id<PeerId>(3), 3, 1, false});
  CHECK(wire.next<frames::Welcome>().has_value());
  wire.write(hidden.peer.hello(Purpose::stream));
  CHECK(wire.next<frames::Welcome>().has_value());
  Wire far = hidden.taken(0);
}

TEST(who_cannot_be_called_is_refused_at_once_and_nobody_waits_for_it) {
  Hidden hidden;  // which the relay has no word with
  const double began_s = monotonic_s();
  const auto refusal = hidden.asks(1).next<frames::Refused>();
  CHECK(refusal && refusal->code == 7);
  CHECK(monotonic_s() - began_s < 0.25);  // and not a handshake's time
  CHECK(hidden.relay.control.counters().tunnels == 0);
}

TEST(an_answer_that_nobody_waits_for_is_refused) {
  Hidden hidden;
  hidden.dials();
  Wire early = hidden.asks(5, true);  // nobody has called
  CHECK(early.next<frames::Refused>().has_value());
  CHECK(eventually([&] { return hidden.relay.control.counters().tunnels == 0; }));
}

TEST(a_peer_that_does_not_know_who_calls_does_not_come) {
  Hidden hidden(false);
  hidden.dials();
  const auto refusal = hidden.asks(1).next<frames::Refused>();
  CHECK(refusal && refusal->code == 7);
  CHECK(eventually([&] { return hidden.relay.control.counters().tunnels == 0; }));
  CHECK(hidden.peer.host.look([](const auto& seen) { return seen.streams.empty(); }));
}

TEST(a_storm_of_calls_sends_a_peer_no_more_than_its_share_of_ways) {
  Gate nowhere;  // takes connections and says nothing: a relay that has been stopped
  Hidden hidden;
  hidden.peer.host.met.front().port = nowhere.port();
  hidden.dials();
  std::vector<Wire> callers;
  for (std::uint64_t call = 1; call <= 64; ++call) callers.push_back(hidden.asks(call));
  for (Wire& caller : callers) CHECK(caller.next<frames::Refused>().has_value());
  // It goes on to beat, and what was in vain told nobody of a link that failed.
  const auto heard = [&] {
    return hidden.relay.host.look([](const auto& seen) { return seen.beats.size(); });
  };
  const std::size_t before = heard();
  CHECK(eventually([&] { return heard() > before; }));
  CHECK(hidden.peer.host.look([](const auto& seen) { return seen.failed.empty(); }));
}

}  // namespace
