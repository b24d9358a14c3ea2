// native/tests/test_waiting.cpp — who looks for events: a waiting caller, or the reactor thread.
#include <atomic>
#include <thread>

#include "check.hpp"
#include "pccl/polling.hpp"
#include "pccl/standby.hpp"

namespace pccl {
namespace {

constexpr double limit_s = 1e-4;
constexpr double soon_s = 1e-5;
constexpr double hog_s = 3e-3;  // what something that computes takes of a processor

Polling patient() {
  Polling polling;
  polling.set_limit(limit_s);
  return polling;
}

/// Waits once; says whether the wait looked, and was given its processor back after `took_s`.
bool waits_looking(Polling& polling, double took_s) {
  polling.begin(0);
  const bool looked = polling.looks(soon_s);
  if (looked) polling.offered(took_s);
  polling.end();
  return looked;
}

int waits_asleep(Polling& polling) {
  int count = 0;
  while (!waits_looking(polling, soon_s)) ++count;
  return count;
}

TEST(a_wait_looks_until_its_limit_and_for_longer_once_it_has_found_something) {
  Polling polling = patient();
  polling.begin(1.0);
  CHECK(polling.looks(1.0 + soon_s));
  CHECK(!polling.looks(1.0 + limit_s + soon_s));
  polling.found(1.0 + limit_s);
  CHECK(polling.looks(1.0 + limit_s + soon_s));
}

TEST(without_a_limit_a_wait_sleeps_at_once) {
  Polling polling;
  polling.begin(1.0);
  CHECK(!polling.looks(1.0));
}

TEST(a_processor_that_comes_back_soon_is_offered_again) {
  Polling polling = patient();
  for (int i = 0; i < 100; ++i) CHECK(waits_looking(polling, soon_s));
}

TEST(a_wait_whose_processor_was_taken_for_long_sleeps_and_so_do_the_next) {
  Polling polling = patient();
  polling.begin(0);
  polling.offered(hog_s);
  CHECK(!polling.looks(soon_s));
  polling.found(soon_s);
  CHECK(!polling.looks(2 * soon_s));
  polling.end();
  CHECK(waits_asleep(polling) == Polling::asleep_min);
}

TEST(beside_something_that_computes_offers_become_ever_rarer) {
  Polling polling = patient();
  int last = 0;
  for (int i = 0; i < 20; ++i) {
    polling.begin(0);
    polling.offered(hog_s);
    polling.end();
    int asleep = 0;
    for (polling.begin(0); !polling.looks(soon_s); polling.begin(0)) ++asleep;
    CHECK(asleep >= last && asleep <= Polling::asleep_max);
    last = asleep;
  }
  CHECK(last == Polling::asleep_max);
}

TEST(waits_that_go_well_make_the_next_penalty_small_again) {
  Polling polling = patient();
  for (int i = 0; i < 4; ++i) {
    while (!waits_looking(polling, hog_s)) continue;
  }
  for (int i = 0; i < 2 * Polling::asleep_max; ++i) (void)waits_looking(polling, soon_s);
  CHECK(waits_looking(polling, hog_s));
  CHECK(waits_asleep(polling) == Polling::asleep_min);
}

TEST(who_is_on_leave_comes_back_by_itself) {
  Standby standby;
  CHECK(!standby.on_leave());
  standby.leave(monotonic_s() + 0.02);
  standby.wait(0.001);
  CHECK(!standby.on_leave());
}

TEST(a_leave_may_be_cut_short_and_prolonged_while_it_lasts) {
  Standby standby;
  standby.leave(Standby::for_good_s);
  std::atomic<bool> back{false};
  std::thread reactor([&] {
    standby.wait(0.001);
    back = true;
  });
  standby.leave(monotonic_s() + 3600);
  CHECK(!back);
  standby.leave(0);  // nobody calls: it sees so by itself
  reactor.join();
  CHECK(back);
}

TEST(a_call_ends_a_wait_and_is_not_lost_on_who_does_not_wait_yet) {
  Standby standby;
  standby.leave(Standby::for_good_s);
  standby.call();
  standby.wait(3600);
  std::thread reactor([&] { standby.wait(3600); });
  standby.call();
  reactor.join();
  CHECK(standby.on_leave());
}

}  // namespace
}  // namespace pccl
