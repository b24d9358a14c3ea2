// native/tests/test_dialler.cpp — when a dial that was refused returns.
// Ownership: see control_rig.hpp.
// Threads:   the test's and a Control's own.
// Errors:    CHECK.
#include "control/dialler.hpp"

#include <algorithm>
#include <set>

#include "control_rig.hpp"

namespace {

using namespace rig;

constexpr std::uint16_t nowhere = 1;  // nobody listens there: the coordinator is away

TEST(pauses_between_tries_double_to_a_second_and_no_two_dials_keep_in_step) {
  double longest_s = 0.05;
  for (int refusals = 0; refusals < 40; ++refusals) {
    std::set<double> seen;
    for (std::uint64_t dice = 0; dice < 100; ++dice) {
      const double pause_s = retry_pause_s(refusals, 100, dice);
      CHECK(pause_s >= longest_s / 2 && pause_s <= longest_s);
      seen.insert(pause_s);
    }
    CHECK(seen.size() == 100 && *seen.rbegin() - *seen.begin() > 0.4 * longest_s);
    longest_s = std::min(2 * longest_s, 1.0);
  }
}

TEST(pauses_between_tries_shrink_towards_the_end_of_the_time_there_is) {
  double left_s = 5;
  int tries = 0;
  while (left_s > 0.05) {
    left_s -= retry_pause_s(tries, left_s, static_cast<std::uint64_t>(tries));
    ++tries;
  }
  CHECK(left_s > -0.05 && tries > 8 && tries < 40);
}

TEST(who_is_refused_again_and_again_returns_less_and_less_often) {
  Peer a(1);
  Gate gate;
  a.admit(nowhere);
  a.control.connect({{id<PeerId>(2), 2, id<Secret>(2), "127.0.0.1", gate.port()}, 1, 20.0});
  const double start_s = monotonic_s();
  int rings = 0;
  while (monotonic_s() < start_s + 1.5) {
    if (!gate.rings(20)) continue;
    gate.accept().close();
    ++rings;
  }
  CHECK(rings >= 2 * 3 && rings <= 2 * 9);  // a lane and peer control; every 50 ms it were 60
}

}  // namespace
