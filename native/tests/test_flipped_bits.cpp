// native/tests/test_flipped_bits.cpp — a bit that turns on the way, in any frame of any phase.
//
// It is caught and never summed, and costs the lane it came by: no step is retried, nobody is
// accused, and every sum is exact.
//
// Ownership: see fragile_world.hpp.
// Threads:   see there.
// Errors:    CHECK.
#include <algorithm>
#include <atomic>
#include <vector>

#include "fragile_world.hpp"
#include "listener.hpp"
#include "raw_peer.hpp"

namespace {

using namespace world;

constexpr std::size_t count = 6000;  // two slices of each phase between two peers

/// Where fields of a header begin.
constexpr std::size_t fields[] = {0, 2, 3, 4, 8, 16, 20, 24, 26, 27, 28, 32, 36, 40, 48, 56, 60};

std::vector<Flip> flips_of(FrameType type, Phase phase, std::size_t payload) {
  std::vector<Flip> flips;
  unsigned bit = 0;
  for (const std::size_t at : fields) flips.push_back({type, phase, at, bit++ % 8});
  if (payload == 0) return flips;
  for (const std::size_t at : {std::size_t{0}, payload / 2, payload - 1}) {
    flips.push_back({type, phase, header_bytes + at, bit++ % 8});
  }
  return flips;
}

std::vector<Flip> all_flips() {
  std::vector<Flip> all;
  const auto add = [&](FrameType type, Phase phase, std::size_t payload) {
    const auto some = flips_of(type, phase, payload);
    for (std::size_t i = 0; i < some.size(); i += check::sanitized ? 3 : 1) all.push_back(some[i]);
  };
  add(FrameType::open, Phase::reduce, open_bytes);
  add(FrameType::data, Phase::reduce, 4000);
  add(FrameType::data, Phase::gather, 4000);
  add(FrameType::seal, Phase::reduce, seal_bytes);
  add(FrameType::done, Phase::reduce, done_bytes);
  // These are said only after a lane has died: the flip before sees to that.
  for (const FrameType type : {FrameType::have, FrameType::ask}) {
    for (const Flip& flip : flips_of(type, Phase::reduce, type == FrameType::have ? 1 : 0)) {
      if (check::sanitized && flip.at % 3 != 0) continue;
      all.push_back({FrameType::data, Phase::reduce, header_bytes, 0});
      all.push_back(flip);
    }
  }
  return all;
}

/// One step on all engines; every sum is exact and nothing was retried.
bool step(World& world) {
  std::atomic<bool> good{true};
  World::all(world.everybody(), [&](std::size_t rank) {
    Engine& engine = *world.engines[rank];
    std::vector<float> data(count, static_cast<float>(rank + 1));
    const BegunStep begun = engine.begin_step("step", 20);
    engine.post(post_of(begun.step, 0, data.data(), data.data(), count, Dtype::f32, ReduceOp::sum,
                        Algorithm::direct));
    engine.seal(begun.step);
    if (!engine.wait_step(begun.step, 15)) {
      good = false;
      engine.fail("test", "the step stands still");
      return;
    }
    const StepResult result = engine.result(begun.step);
    const auto whole = static_cast<float>(world.engines.size() * (world.engines.size() + 1) / 2);
    if (result.state != StepState::committed || result.retries != 0 ||
        !std::all_of(data.begin(), data.end(), [&](float x) { return x == whole; })) {
      good = false;
    }
    engine.release(begun.step);
  });
  return good;
}

TEST(a_flipped_bit_in_any_frame_of_any_phase_costs_a_lane_and_no_sum) {
  FragileWorld world(2);
  LaneProxy& proxy = *world.proxies[1];
  CHECK(step(world));
  const std::vector<Flip> flips = all_flips();
  int turned = 0;
  for (const Flip& flip : flips) {
    const int before = proxy.flips();
    proxy.flip(flip);
    const bool exact = step(world);
    CHECK(exact);
    if (!exact) {
      std::fprintf(stderr, "  type %d phase %d byte %zu bit %u\n", static_cast<int>(flip.type),
                   static_cast<int>(flip.phase), flip.at, flip.bit);
      return;
    }
    turned += proxy.flips() - before;
  }
  const auto refused = world.engines[0]->stats().executor.lanes_refused +
                       world.engines[1]->stats().executor.lanes_refused;
  std::printf("  %zu flips planned, %d made, %llu lanes refused\n", flips.size(), turned,
              static_cast<unsigned long long>(refused));
  // HAVE and ASK follow only where slices were missing still.
  CHECK(turned > static_cast<int>(flips.size() * 3 / 4));
  // A flip in what nobody waits for any more may be noticed only during the next step.
  CHECK(refused + 1 >= static_cast<std::uint64_t>(turned));
}

TEST(a_frame_that_was_damaged_before_its_operation_was_posted_comes_again) {
  FragileWorld world(2);
  CHECK(step(world));
  for (const std::size_t at : {header_bytes, header_bytes + 2000}) {
    world.proxies[1]->flip({FrameType::data, Phase::reduce, at, 3});
    std::vector<float> data[2];
    const auto early = [&] { return world.engines[1]->stats().executor.frames_early; };
    const std::uint64_t before = early();
    // Rank 0 sends eagerly; rank 1 begins long after that has arrived.
    World::all({0, 1}, [&](std::size_t rank) {
      data[rank].assign(count, 1.0f);
      if (rank == 1) {
        CHECK(rig::eventually([&] { return early() > before; }));
        ::poll(nullptr, 0, 20);
      }
      CHECK(sum_step(*world.engines[rank], data[rank], Algorithm::direct));
      CHECK(data[rank] == std::vector<float>(count, 2.0f));
    });
  }
  CHECK(world.proxies[1]->flips() == 2);
}

/// Rank 0 reaches rank 2 only through rank 1, and rank 1 through a proxy that damages frames.
TEST(a_bit_that_turns_inside_a_tunnel_of_one_machine_is_caught) {
  Listener coordinator;
  World world(3, 1, coordinator.port());
  coordinator.greet(peer_id(0));
  coordinator.greet(peer_id(2));
  LaneProxy proxy(world.engines[1]->port(), 1);
  auto seen_by_0 = world.members;
  seen_by_0[1].endpoint.port = proxy.port();
  seen_by_0[2].endpoint.port = 9;
  for (MemberEntry& entry : world.members) entry.host_key = 0;  // as the engines' own: one machine
  for (MemberEntry& entry : seen_by_0) entry.host_key = 0;
  const View view = world.view_of(1, world.everybody(), Pause::none);
  for (std::size_t rank = 0; rank < 3; ++rank) {
    world.engines[rank]->install(view, rank == 0 ? seen_by_0 : world.members, 0, {});
  }
  for (const std::size_t end : {std::size_t{0}, std::size_t{2}}) {
    const PeerId other = peer_id(2 - end);
    CHECK(coordinator.until(peer_id(end), [&](const HeartbeatStatus& status) {
      return status.down == std::vector<PeerId>{other};
    }));
  }
  // Both have said so: the tunnel of the one that is told first ends the other's complaint, too.
  for (const std::size_t end : {std::size_t{0}, std::size_t{2}}) {
    coordinator.say(peer_id(end), frames::Routes{1, 1, {{peer_id(2 - end), peer_id(1)}}});
  }
  CHECK(coordinator.until(peer_id(0), [](const HeartbeatStatus& status) {
    return status.relayed == std::vector<PeerId>{peer_id(2)};
  }));
  CHECK(step(world));
  for (const Phase phase : {Phase::reduce, Phase::gather}) {
    for (const std::size_t at : {header_bytes + 0, header_bytes + 1001}) {
      proxy.flip({FrameType::data, phase, at, 6}, true);
      CHECK(step(world));
    }
  }
  CHECK(proxy.flips() == 4);
}

}  // namespace
