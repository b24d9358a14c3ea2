// native/tests/test_planned_links.cpp — links that are lost before their view is in force.
// Ownership: see fragile_world.hpp.
// Threads:   see there.
// Errors:    CHECK.
#include <algorithm>
#include <vector>

#include "fragile_world.hpp"

namespace {

using namespace world;
using Kind = EngineEvent::Kind;

constexpr Epoch planned = 2;

bool wait_until(double patience_s, const std::function<bool()>& so) {
  const double until_s = monotonic_s() + patience_s;
  while (!so()) {
    if (monotonic_s() >= until_s) return false;
    ::poll(nullptr, 0, 10);
  }
  return true;
}

/// Engine 1 is a member, and engine 0 a newcomer: its name sorts first, so it alone dials.
struct Planned : World {
  Planned() : World(2, 1, 9, false), proxy(engines[1]->port(), 1) {
    members[1].endpoint.port = proxy.port();
    install(1, {1});
    engines[0]->prepare_view(1, planned, entries_of({0, 1}));
    CHECK(told(0, Kind::links_up, 5));
  }
  /// Whether an engine says so of the plan.
  bool told(std::size_t rank, Kind kind, double patience_s) {
    return wait_until(patience_s, [&] {
      const auto events = engines[rank]->drain_events();
      return std::any_of(events.begin(), events.end(), [&](const EngineEvent& event) {
        return event.kind == kind && event.number == planned;
      });
    });
  }
  /// Nothing more is heard by the connections that there are; others can be made.
  void cut() {
    proxy.deafen(true, false);
    for (const auto& engine : engines) {
      CHECK(wait_until(10, [&] { return engine->stats().executor.lanes_lost > 0; }));
    }
  }
  LaneProxy proxy;
};

TEST(a_link_that_is_lost_before_the_other_end_hears_of_the_plan_is_dialled_again) {
  Planned plan;
  plan.cut();
  // It was stopped, and hears of the plan only now: it dials nobody.
  plan.engines[1]->prepare_view(1, planned, plan.entries_of({0, 1}));
  CHECK(plan.told(1, Kind::links_up, 5));
}

TEST(an_end_that_was_ready_says_so_when_it_cannot_open_a_link_again) {
  Planned plan;
  plan.engines[1].reset();
  CHECK(plan.told(0, Kind::links_failed, 10));
  // Nobody may tell it that the other one is gone for good: it tries no more.
  CHECK(!plan.told(0, Kind::links_failed, 6));
}

TEST(links_of_a_plan_that_is_over_are_not_dialled_again) {
  Planned plan;
  plan.engines[0]->cancel_plan(1, planned);
  plan.cut();
  CHECK(!wait_until(1, [&] { return plan.engines[0]->stats().lanes > 0; }));
}

}  // namespace
