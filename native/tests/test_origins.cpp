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

TEST(who_has_proved_itself_once_is_expected_from_where_it_came) {
  ControlConfig config;
  config.half_open_max = 2;
  Peer peer(2, config);
  settle(peer);
  const auto greets = [&](Wire& wire) {
    wire.write(peer.hello(Purpose::data_lane));
    return wire.next<frames::Welcome>().has_value();
  };
  Wire first = Wire::dial_from("127.0.0.6", peer.control.port());
  CHECK(greets(first));
  std::vector<Wire> members;  // more than there are places for strangers
  for (int i = 0; i < 5; ++i) members.push_back(Wire::dial_from("127.0.0.6", peer.control.port()));
  std::vector<Wire> crowd;
  for (int i = 0; i < 8; ++i) crowd.push_back(Wire::dial_from("127.0.0.2", peer.control.port()));
  CHECK(eventually([&] { return peer.control.counters().dropped == 6; }));
  for (Wire& member : members) CHECK(greets(member));
}

TEST(no_more_origins_are_kept_as_proven_than_so_many_and_none_without_an_address) {
  KnownOrigins known;
  known.prove({});
  CHECK(!known.holds({}));
  const auto number = [](std::size_t n) {
    Origin origin;
    origin.bytes = {1, static_cast<std::uint8_t>(n >> 8), static_cast<std::uint8_t>(n)};
    return origin;
  };
  for (std::size_t n = 0; n <= KnownOrigins::proven_max; ++n) known.prove(number(n));
  CHECK(!known.holds(number(0)) && known.holds(number(1)));
  known.expect({number(0)});
  CHECK(known.holds(number(0)) && known.holds(number(KnownOrigins::proven_max)));
  known.expect({});
  CHECK(!known.holds(number(0)) && known.holds(number(1)));
}

namespace {

using Stage = Place::Stage;

/// Places by origin and stage, numbered from 1 in order of arrival.
std::vector<Place> places(std::initializer_list<std::pair<const char*, Stage>> some) {
  std::vector<Place> held;
  for (const auto& [origin, stage] : some) held.push_back({held.size() + 1, at(origin), stage});
  return held;
}

constexpr const char* crowded = "10.0.0.1";
constexpr const char* other = "10.0.0.2";

std::optional<std::uint64_t> place_among(const std::vector<Place>& held, const char* newcomer) {
  return place_for(at(newcomer), held, {held.size(), held.size()});
}

}  // namespace

TEST(while_there_is_a_place_nobody_goes) {
  const auto held = places({{crowded, Stage::silent}, {crowded, Stage::silent}});
  CHECK(place_for(at(crowded), held, {3, 3}) == std::uint64_t{0});
  CHECK(place_for(at(crowded), held, {3, 2}) == std::uint64_t{1});  // of one origin no more
  CHECK(place_for(at(other), held, {3, 2}) == std::uint64_t{0});
  CHECK(!place_for(at(other), {}, {0, 0}));
}

TEST(of_the_fullest_origin_the_eldest_silent_goes_before_the_newest_that_waits) {
  CHECK(place_among(places({{crowded, Stage::under_way},
                            {crowded, Stage::waiting},
                            {crowded, Stage::silent},
                            {crowded, Stage::silent},
                            {other, Stage::silent}}),
                    "10.0.0.3") == std::uint64_t{3});
  CHECK(place_among(places({{crowded, Stage::under_way},
                            {crowded, Stage::waiting},
                            {crowded, Stage::waiting},
                            {other, Stage::silent}}),
                    "10.0.0.3") == std::uint64_t{3});
}

TEST(who_is_under_way_stays_while_another_has_more_than_the_newcomer_would) {
  auto held = places({{crowded, Stage::under_way},
                      {crowded, Stage::under_way},
                      {crowded, Stage::under_way},
                      {other, Stage::silent},
                      {other, Stage::silent}});
  CHECK(place_among(held, "10.0.0.3") == std::uint64_t{4});
  held.pop_back();  // but a crowd that stalls its handshakes puts out nobody who has one place
  CHECK(place_among(held, "10.0.0.3") == std::uint64_t{1});
}

TEST(a_crowd_of_one_origin_puts_out_its_silent_and_then_nobody) {
  auto held = places({{crowded, Stage::under_way},
                      {crowded, Stage::waiting},
                      {crowded, Stage::silent},
                      {other, Stage::silent}});
  CHECK(place_among(held, crowded) == std::uint64_t{3});
  held[2].stage = Stage::waiting;
  CHECK(!place_among(held, crowded));
  CHECK(place_among(held, other) == std::uint64_t{3});
}

TEST(beyond_the_half_open_limit_the_eldest_from_the_fullest_origin_goes) {
  ControlConfig config;
  config.half_open_max = 3;
  Peer peer(2, config);
  settle(peer);
  Wire elder = Wire::dial_from("127.0.0.5", peer.control.port());
  Wire younger = Wire::dial_from("127.0.0.5", peer.control.port());
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
