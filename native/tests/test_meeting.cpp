// native/tests/test_meeting.cpp — two that nobody can dial meet at a third, and find another.
// Ownership: see relay_world.hpp.
// Threads:   see there.
// Errors:    CHECK.
#include "relay_world.hpp"

namespace {

using namespace world;

constexpr double route_patience_s = 3;  // of a coordinator, with a way through a third

TEST(who_cannot_be_dialled_dials_and_nobody_relays) {
  for (const std::size_t hidden : {std::size_t{0}, std::size_t{2}}) {
    HiddenWorld world(3, {hidden});
    world.install_all(1);
    world.sum(6, algorithms);
    for (const std::size_t rank : world.everybody()) {
      CHECK(world.engines[rank]->stats().control.tunnels == 0);
    }
  }
}

TEST(two_that_cannot_be_dialled_meet_at_the_third_without_being_told_to) {
  HiddenWorld world(3, {0, 2});
  world.install_all(1);
  world.sum(6, algorithms);
  const EngineStats via = world.engines[1]->stats();
  CHECK(via.control.tunnels == 1 && via.control.relayed_bytes > 6 * count);
}

TEST(of_a_few_that_cannot_be_dialled_each_pair_meets_and_at_another_place_if_one_is_closed) {
  HiddenWorld world(5, {0, 2, 4});
  for (const std::size_t rank : {std::size_t{0}, std::size_t{2}, std::size_t{4}}) {
    world.directory[rank][1].endpoint.port = nobody;  // and rank 1 cannot dial them
  }
  world.install_all(1);
  const auto met = [&] { return world.engines[3]->stats().control.tunnels == 3; };
  CHECK(eventually(met));
}

TEST(when_the_place_where_two_have_met_dies_they_meet_at_another_at_once) {
  HiddenWorld world(4, {0, 2});
  world.install_all(1);
  world.sum(2, algorithms);
  CHECK(world.engines[1]->stats().control.tunnels == 1);
  world.engines[1].reset();
  const std::vector<std::size_t> left{0, 2, 3};
  // As long as it is in the view they look for each other there, where nobody listens any more.
  for (const std::size_t rank : {std::size_t{0}, std::size_t{2}}) {
    CHECK(eventually([&] { return world.engines[rank]->stats().lanes == 1; }));
  }
  ::poll(nullptr, 0, 300);
  for (const std::size_t rank : left) {
    std::vector<MemberEntry> entries = world.directory[rank];
    entries.erase(entries.begin() + 1);
    world.engines[rank]->install(world.view_of(2, left, Pause::none), entries, 0, {});
  }
  const double began_s = monotonic_s();
  World::all(left, [&](std::size_t rank) {
    std::vector<float> data(count, static_cast<float>(rank + 1));
    CHECK(sum_step(*world.engines[rank], data, Algorithm::direct, 20));
    CHECK(std::all_of(data.begin(), data.end(), [](float x) { return x == 8; }));
  });
  CHECK(monotonic_s() - began_s < route_patience_s);
  CHECK(world.engines[3]->stats().control.tunnels == 1);
}

TEST(a_route_is_taken_though_both_ends_wait_at_a_place_that_does_not_answer) {
  rig::Gate mute;  // takes connections, as one that was stopped
  HiddenWorld world(4, {0, 2});
  for (const std::size_t rank : {std::size_t{0}, std::size_t{2}}) {
    world.directory[rank][1].endpoint.port = mute.port();
  }
  world.install_all(1);
  world.coordinator.greet(peer_id(2));
  ::poll(nullptr, 0, 300);
  CHECK(world.engines[3]->stats().control.tunnels == 0);
  const double began_s = monotonic_s();
  world.coordinator.say(peer_id(0), frames::Routes{1, 1, {{peer_id(2), peer_id(3)}}});
  world.coordinator.say(peer_id(2), frames::Routes{1, 1, {{peer_id(0), peer_id(3)}}});
  CHECK(eventually([&] { return world.engines[3]->stats().control.tunnels == 1; }));
  CHECK(monotonic_s() - began_s < route_patience_s);
}

}  // namespace
