// native/tests/test_origins.cpp — whose turn it is among strangers who want a handshake.
// Ownership: values.
// Threads:   one; time is an argument.
// Errors:    CHECKs.
#include "control/origins.hpp"

#include <vector>

#include "check.hpp"

using namespace pccl;

namespace {

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
