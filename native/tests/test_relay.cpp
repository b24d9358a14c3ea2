// native/tests/test_relay.cpp — two members that do not reach each other, and a third that carries.
// Ownership: see engine_world.hpp, control_rig.hpp.
// Threads:   see there.
// Errors:    CHECK.
#include <algorithm>
#include <cstring>
#include <thread>
#include <vector>

#include "lane_proxy.hpp"
#include "relay_world.hpp"

namespace {

using namespace world;

TEST(a_third_member_carries_the_lane_and_every_sum_is_exact) {
  BrokenWorld world(3);
  world.install_all(1);
  std::thread program([&] { world.sum(6, algorithms); });
  world.route_through(1);
  CHECK(world.relayed(true));
  program.join();
  const EngineStats via = world.engines[1]->stats();
  CHECK(via.control.tunnels == 1 && via.control.relayed_bytes > 6 * count);
  CHECK(world.engines[0]->stats().control.tunnels == 0);
}

TEST(a_tunnel_that_dies_in_mid_transfer_is_dialled_again_and_nothing_is_lost) {
  BrokenWorld world(3);
  LaneProxy proxy(world.engines[1]->port(), 1);
  world.directory[0][1].endpoint.port = proxy.port();
  world.install_all(1);
  std::thread first([&] { world.sum(1, algorithms); });
  world.route_through(1);
  first.join();
  // One cut in each round, so that the rest of it gets through however slow the machine is; and as
  // many rounds as it takes, however fast.
  const int wanted = check::sanitized ? 4 : 24;
  for (int round = 0; round < 4 * wanted && proxy.cuts() < wanted; ++round) {
    std::thread program([&] { world.sum(3, algorithms); });
    ::poll(nullptr, 0, round % 8);  // another moment of the round each time
    proxy.cut(true);
    program.join();
  }
  std::printf("  %d cuts\n", proxy.cuts());
  CHECK(proxy.cuts() >= wanted);
}

TEST(when_the_relay_goes_the_link_is_down_again_until_another_one_carries) {
  BrokenWorld world(4);
  auto proxy = std::make_unique<LaneProxy>(world.engines[1]->port(), 1);
  world.directory[0][1].endpoint.port = proxy->port();
  world.install_all(1);
  world.route_through(1);
  CHECK(world.relayed(true));
  world.sum(1, algorithms);
  // Rank 0 loses its way to rank 1, and with it the tunnel.
  world.directory[0][1].endpoint.port = nobody;
  world.install_all(2);
  proxy.reset();
  CHECK(world.coordinator.until(peer_id(3), [](const HeartbeatStatus& status) {
    return status.down == std::vector<PeerId>{peer_id(0)};
  }));
  CHECK(world.engines[1]->stats().control.tunnels == 0);
  std::thread program([&] { world.sum(2, algorithms); });
  // Now two links are broken, and one relay mends both.
  const std::vector<Route> table = {{peer_id(1), peer_id(2)}, {peer_id(3), peer_id(2)}};
  world.coordinator.greet(peer_id(1));
  world.coordinator.say(peer_id(0), frames::Routes{1, 2, table});
  program.join();
  CHECK(world.coordinator.until(peer_id(0), [](const HeartbeatStatus& status) {
    return status.relayed == std::vector<PeerId>{peer_id(1), peer_id(3)};
  }));
  CHECK(world.engines[2]->stats().control.tunnels == 2);
}

TEST(a_direct_way_that_works_again_takes_the_place_of_the_tunnel_in_the_middle_of_a_step) {
  BrokenWorld world(3);
  world.install_all(1);
  std::thread program([&] { world.sum(check::sanitized ? 4 : 12, algorithms); });
  world.route_through(1);
  CHECK(world.relayed(true));
  world.directory[0][2].endpoint = world.members[2].endpoint;
  world.engines[0]->prepare_view(1, 2, world.directory[0]);  // it learns the new address
  CHECK(world.relayed(false));
  program.join();
  CHECK(eventually([&] { return world.engines[1]->stats().control.tunnels == 0; }));
  // The table is still there; it matters only while there is no lane.
  world.sum(1, algorithms);
  CHECK(world.relayed(false));
}

TEST(withdrawing_a_route_does_not_cut_the_only_lane) {
  BrokenWorld world(3);
  world.install_all(1);
  world.route_through(1);
  CHECK(world.relayed(true));
  for (const std::size_t end : {std::size_t{0}, std::size_t{2}}) {
    world.coordinator.say(peer_id(end), frames::Routes{1, 1, {}});
  }
  world.sum(3, algorithms);
  CHECK(world.relayed(true));
}

TEST(a_tunnel_of_which_one_end_does_not_know_the_relay_outlives_a_new_view) {
  BrokenWorld world(3);
  world.install_all(1);
  world.coordinator.say(peer_id(0), frames::Routes{1, 1, {{peer_id(2), peer_id(1)}}});
  CHECK(world.relayed(true));
  const auto cut = [&] { return world.engines[2]->stats().executor.lanes_silent; };
  const std::uint64_t before = cut();
  world.install_all(2);
  CHECK(cut() == before);
  world.sum(1, algorithms);
}

TEST(a_flush_in_the_middle_of_a_relayed_step_gives_the_input_back_and_the_retry_is_exact) {
  BrokenWorld world(3);
  world.install_all(1);
  world.route_through(1);
  CHECK(world.relayed(true));
  for (Epoch epoch = 2; epoch < 8; ++epoch) {
    const StepId step = epoch - 2;
    std::thread program([&] { world.sum(1, {algorithms[epoch % 3]}); });
    ::poll(nullptr, 0, static_cast<int>(epoch) / 2);
    bool known = false, complete = true;
    for (const auto& engine : world.engines) {
      const Report report = engine->fence_for_test(1, epoch);
      known = known || report.watermark > step;
      complete = complete && (report.watermark > step ||
                              (report.open.size() == 1 && report.open[0].complete));
    }
    const Verdict verdict = known || complete ? Verdict::commit : Verdict::retry;
    world.install_all(epoch, {{step, verdict, SuspectCode::none, {}}});
    program.join();
  }
  CHECK(world.relayed(true));
}

using rig::Gate;
using rig::Peer;
using rig::Wire;
using rig::id;

TEST(that_an_abandoned_dial_has_failed_does_not_end_the_one_under_way) {
  Gate relay;  // says nothing
  BrokenWorld world(3);
  world.directory[0][1].endpoint.port = relay.port();
  world.install_all(1);
  world.coordinator.say(peer_id(0), frames::Routes{1, 1, {{peer_id(2), peer_id(1)}}});
  std::vector<Wire> wires;
  for (bool asked = false; !asked && wires.size() < 8;) {
    wires.push_back(relay.accept());
    const auto hello = wires.back().next<frames::Hello>();
    asked = hello && hello->purpose == Purpose::relay;
  }
  world.engines[0]->connect_failed_for_test(peer_id(2), 3);
  CHECK(!relay.rings(500));
}

// --- the relay's own door, against plain sockets ---

ControlConfig hasty() {
  ControlConfig config;
  config.handshake_timeout_s = 0.3;
  return config;
}

/// A relay that knows one peer, at that port.
struct Carrier : Peer {
  explicit Carrier(std::uint16_t port) : Peer(2, hasty()) {
    host.carried = {id<PeerId>(3), 30, {}, "127.0.0.1", port};
    host.met = {{id<PeerId>(77), 70, {}, "127.0.0.1", 0}};
    admit(nobody);
    CHECK(eventually([&] {
      Wire wire = Wire::dial(control.port());
      wire.write(hello(Purpose::data_lane));
      return wire.next<frames::Welcome>().has_value();
    }));
  }
  Wire asks(PeerId peer, Incarnation incarnation) {
    Wire wire = Wire::dial(control.port());
    wire.write(hello(Purpose::relay));
    wire.write(frames::Relay{peer, incarnation});
    return wire;
  }
};

TEST(a_tunnel_carries_bytes_both_ways_and_ends_when_one_end_does) {
  Gate target;
  Carrier relay(target.port());
  for (const bool near_end : {false, true}) {
    Wire near = relay.asks(id<PeerId>(3), 30);
    CHECK(near.next<frames::Welcome>().has_value());
    Wire far = target.accept();
    const std::string much(3'000'000, 'x');  // more than all buffers hold
    std::thread writer([&] { near.write("ping" + much); });
    const auto got = far.read(4 + much.size());
    CHECK(got && std::memcmp(got->data(), "ping", 4) == 0 && got->back() == std::byte{'x'});
    writer.join();
    far.write(std::string("pong"));
    const auto back = near.read(4);
    CHECK(back && std::memcmp(back->data(), "pong", 4) == 0);
    CHECK(relay.control.counters().tunnels == 1);
    (near_end ? near : far).close();
    CHECK((near_end ? far : near).ends());
    CHECK(eventually([&] { return relay.control.counters().tunnels == 0; }));
  }
}

TEST(who_is_not_known_not_there_or_does_not_answer_is_refused_with_a_reason) {
  Gate target;
  const std::uint16_t port = target.port();
  Carrier relay(port);
  for (const auto& [peer, incarnation] : {std::pair{id<PeerId>(4), Incarnation{30}},
                                          std::pair{id<PeerId>(3), Incarnation{31}}}) {
    Wire wire = relay.asks(peer, incarnation);
    const auto refusal = wire.next<frames::Refused>();
    CHECK(refusal && refusal->code == 7);
    CHECK(wire.ends());
  }
  Carrier useless(nobody);
  Wire wire = useless.asks(id<PeerId>(3), 30);
  const auto refusal = wire.next<frames::Refused>();
  CHECK(refusal && refusal->code == 7);
  CHECK(wire.ends());
  CHECK(eventually([&] { return useless.control.counters().tunnels == 0; }));
}

TEST(a_stranger_gets_no_tunnel_and_silence_after_a_hello_is_not_waited_for) {
  Gate target;
  Carrier relay(target.port());
  Wire stranger = Wire::dial(relay.control.port());
  frames::Hello hello = relay.hello(Purpose::relay);
  hello.secret = id<Secret>(9);
  stranger.write(hello);
  const auto refusal = stranger.next<frames::Refused>();
  CHECK(refusal && refusal->code == 3);
  Wire mute = Wire::dial(relay.control.port());
  mute.write(relay.hello(Purpose::relay));
  CHECK(mute.ends());
  Wire confused = Wire::dial(relay.control.port());
  confused.write(relay.hello(Purpose::relay));
  confused.write(frames::Pong{1, 2});
  CHECK(confused.ends());
  CHECK(!target.rings(20) && relay.control.counters().tunnels == 0);
}

TEST(who_is_not_of_the_view_any_more_is_carried_nowhere_though_it_knows_the_secret) {
  Gate target;
  Carrier relay(target.port());
  Wire wire = Wire::dial(relay.control.port());
  frames::Hello hello = relay.hello(Purpose::relay);
  hello.incarnation = 71;  // another life of a peer that is known
  wire.write(hello);
  wire.write(frames::Relay{id<PeerId>(3), 30});
  const auto refusal = wire.next<frames::Refused>();
  CHECK(refusal && refusal->code == 7);
  CHECK(!target.rings(20) && relay.control.counters().tunnels == 0);
}

TEST(one_peer_cannot_have_more_tunnels_than_its_share) {
  Gate target;
  Carrier relay(target.port());
  std::vector<Wire> wires;
  for (std::size_t i = 0; i < 64; ++i) {
    wires.push_back(relay.asks(id<PeerId>(3), 30));
    CHECK(wires.back().next<frames::Welcome>().has_value());
    wires.push_back(target.accept());
  }
  Wire more = relay.asks(id<PeerId>(3), 30);
  const auto refusal = more.next<frames::Refused>();
  CHECK(refusal && refusal->code == 5);
  wires.clear();
  CHECK(eventually([&] { return relay.control.counters().tunnels == 0; }));
  Wire again = relay.asks(id<PeerId>(3), 30);
  CHECK(again.next<frames::Welcome>().has_value());
}

}  // namespace
