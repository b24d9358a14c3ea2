// native/tests/test_origins.cpp — whose place and whose turn it is among strangers at the port.
// Ownership: values.
// Threads:   the test's and a Control's own; of turns, time is an argument.
// Errors:    CHECKs.
#include "control/origins.hpp"

#include <vector>

#include "control_rig.hpp"

using namespace rig;

namespace {

constexpr std::uint16_t nowhere = 1;  // nobody listens there: the coordinator is away

void settle(Peer& peer) {
  peer.admit(nowhere);
  CHECK(eventually([&] {
    Wire probe = Wire::dial(peer.control.port());
    probe.write(peer.hello(Purpose::peer_control));
    return probe.next<frames::Welcome>().has_value();
  }));
}

bool gets_a_lane(Peer& peer) {
  Wire wire = Wire::dial(peer.control.port());
  wire.write(peer.hello(Purpose::data_lane));
  return wire.next<frames::Welcome>().has_value();
}

Origin at(const char* literal) {
  const auto origin = origin_of(std::string(literal));
  CHECK(origin.has_value());
  return origin.value_or(Origin{});
}

std::vector<std::uint64_t> granted(HandshakePace& pace, double now_s) {
  std::vector<std::uint64_t> serials;
  while (const auto serial = pace.grant(now_s)) serials.push_back(*serial);
  return serials;
}

}  // namespace

TEST(an_address_is_counted_by_itself_and_of_ipv6_by_its_network) {
  CHECK(at("10.0.0.1") == at("::ffff:10.0.0.1"));
  CHECK(!(at("10.0.0.1") == at("10.0.0.2")));
  CHECK(at("2001:db8:1:2::1") == at("2001:db8:1:2:ffff::9"));
  CHECK(!(at("2001:db8:1:2::1") == at("2001:db8:1:3::1")));
  CHECK(!origin_of(std::string("host.example")).has_value());
}

TEST(origins_take_turns_however_many_wait_behind_one) {
  HandshakePace pace(1, 100);
  for (std::uint64_t serial = 1; serial <= 5; ++serial) pace.ask(serial, at("10.0.0.1"));
  pace.ask(6, at("10.0.0.2"));
  CHECK(granted(pace, 0) == (std::vector<std::uint64_t>{1, 6, 2, 3, 4, 5}));
}

TEST(who_comes_late_waits_for_one_turn_of_a_crowd_and_not_for_all_of_them) {
  HandshakePace pace(1, 2);
  for (std::uint64_t serial = 1; serial <= 5; ++serial) pace.ask(serial, at("10.0.0.1"));
  CHECK(granted(pace, 0) == (std::vector<std::uint64_t>{1, 2}));
  pace.ask(6, at("10.0.0.2"));
  CHECK(granted(pace, 2) == (std::vector<std::uint64_t>{3, 6}));
}

TEST(so_many_begin_at_once_and_so_many_a_second) {
  HandshakePace pace(10, 3);
  for (std::uint64_t serial = 1; serial <= 20; ++serial) pace.ask(serial, at("10.0.0.1"));
  CHECK(granted(pace, 100).size() == 3);
  const auto wait_s = pace.wait_s(100);
  CHECK(wait_s && *wait_s > 0.09 && *wait_s < 0.11);
  CHECK(granted(pace, 100.21).size() == 2);
  CHECK(granted(pace, 1000).size() == 3);  // what nobody used is not kept beyond the burst
}

TEST(who_is_gone_takes_no_turn) {
  HandshakePace pace(1, 10);
  pace.ask(1, at("10.0.0.1"));
  pace.ask(2, at("10.0.0.1"));
  pace.forget(1);
  CHECK(granted(pace, 0) == std::vector<std::uint64_t>{2});
  CHECK(pace.waiting() == 0 && !pace.wait_s(0));
}

TEST(beyond_the_half_open_limit_the_eldest_from_the_fullest_origin_goes) {
  ControlConfig config;
  config.half_open_max = 3;
  Peer peer(2, config);
  settle(peer);
  Wire elder = Wire::dial(peer.control.port());
  Wire younger = Wire::dial(peer.control.port());
  Wire lonely = Wire::dial_from("127.0.0.2", peer.control.port());
  Wire newcomer = Wire::dial_from("127.0.0.3", peer.control.port());
  CHECK(elder.ends());
  CHECK(eventually([&] { return peer.control.counters().dropped == 1; }));
  for (Wire* wire : {&younger, &lonely, &newcomer}) {
    wire->write(peer.hello(Purpose::data_lane));
    CHECK(wire->next<frames::Welcome>().has_value());
  }
  CHECK(gets_a_lane(peer));
}

TEST(who_comes_from_where_a_member_is_has_a_place_however_many_others_there_are) {
  ControlConfig config;
  config.half_open_max = 2;
  Peer peer(2, config);
  settle(peer);
  peer.control.expect({"127.0.0.4", "not an address"});
  CHECK(gets_a_lane(peer));  // so it has been heard
  std::vector<Wire> members;
  for (int i = 0; i < 4; ++i) members.push_back(Wire::dial_from("127.0.0.4", peer.control.port()));
  std::vector<Wire> crowd;
  for (int i = 0; i < 8; ++i) crowd.push_back(Wire::dial_from("127.0.0.2", peer.control.port()));
  CHECK(eventually([&] { return peer.control.counters().dropped == 6; }));
  for (Wire& member : members) {
    member.write(peer.hello(Purpose::data_lane));
    CHECK(member.next<frames::Welcome>().has_value());
  }
}
