// native/tests/test_ucx_engine.cpp — engines whose lanes go through UCX; skipped without it.
// Ownership: each test owns its world.
// Threads:   one per rank.
// Errors:    CHECKs.
#include <algorithm>
#include <atomic>
#include <chrono>

#include "engine_world.hpp"
#include "tls_rig.hpp"
#include "ucx_rig.hpp"

using namespace world;

namespace {

/// Empty, with a word to whoever reads the log, where there is no UCX.
std::vector<std::string> libraries() {
  return ucx_worker() ? ucx_libraries() : std::vector<std::string>{};
}

std::vector<float> numbers(std::size_t rank, std::size_t count) {
  std::vector<float> data(count);
  for (std::size_t i = 0; i < count; ++i) data[i] = static_cast<float>((i * 31 + rank * 7) % 251);
  return data;
}

bool is_sum(const std::vector<float>& data, const std::vector<std::size_t>& ranks) {
  for (std::size_t i = 0; i < data.size(); ++i) {
    float sum = 0;
    for (const std::size_t rank : ranks) sum += static_cast<float>((i * 31 + rank * 7) % 251);
    if (data[i] != sum) return false;
  }
  return true;
}

/// All lanes are through UCX when the first operation is done.
bool all_through_ucx(const World& world) {
  return std::all_of(world.engines.begin(), world.engines.end(), [&](const auto& engine) {
    const UcxReport report = engine->stats().ucx;
    return report.through_ucx >= world.engines.size() - 1 && report.declined == 0;
  });
}

/// How many of `rounds` small sums took rank 0 longer than a reactor that sleeps through its news.
/// Between them the caller stays away for some milliseconds, so that reactor thread and caller take
/// turns in moving the frames.
int slow_rounds(World& world, int rounds) {
  std::atomic<int> slow{0};
  World::all(world.everybody(), [&](std::size_t rank) {
    for (int round = 0; round < rounds; ++round) {
      std::this_thread::sleep_for(std::chrono::microseconds(700 * (round % 6)));
      auto data = numbers(rank, 5);
      const double began_s = monotonic_s();
      CHECK(sum_step(*world.engines[rank], data, Algorithm::exchange));
      if (rank == 0 && monotonic_s() - began_s > 0.04) ++slow;
      CHECK(is_sum(data, world.everybody()));
    }
  });
  return slow;
}

}  // namespace

TEST(every_algorithm_sums_exactly_over_ucx_also_on_several_lanes) {
  const auto found = libraries();
  if (found.empty()) return;
  for (const std::size_t size : {2u, 4u}) {
    for (const std::uint16_t lanes : {std::uint16_t{1}, std::uint16_t{3}}) {
      World world(size, lanes, 9, false, {}, found);
      world.install(1, world.everybody());
      World::all(world.everybody(), [&](std::size_t rank) {
        for (const auto algorithm : {Algorithm::exchange, Algorithm::direct, Algorithm::ring}) {
          for (const std::size_t count : {1u, 1000u, 70'001u, 500'000u}) {
            auto data = numbers(rank, count);
            CHECK(sum_step(*world.engines[rank], data, algorithm));
            CHECK(is_sum(data, world.everybody()));
          }
        }
      });
      CHECK(all_through_ucx(world));
    }
  }
}

// What the reactor thread moved after a caller had begun to drive was dropped, and the caller slept
// for a whole idle poll.  A busy machine makes rounds slow, too: as many over sockets.
TEST(news_that_come_while_reactor_and_caller_change_places_wake_the_caller) {
  const auto found = libraries();
  if (found.empty()) return;
  constexpr int rounds = 150;
  World over_ucx(2, 1, 9, false, {}, found);
  World over_tcp(2, 1, 9, false);
  for (World* world : {&over_ucx, &over_tcp}) world->install(1, world->everybody());
  int slow_ucx = 0;
  int slow_tcp = 0;
  for (int i = 0; i < 3; ++i) {
    slow_ucx += slow_rounds(over_ucx, rounds);
    slow_tcp += slow_rounds(over_tcp, rounds);
  }
  CHECK(all_through_ucx(over_ucx));
  CHECK(slow_ucx <= 3 * slow_tcp + 3 * rounds / 30);
}

TEST(a_fence_amid_a_large_sum_gives_the_inputs_back_and_a_lost_peers_receives_are_cancelled) {
  const auto found = libraries();
  if (found.empty()) return;
  World world(3, 1, 9, false, {}, found);
  world.install(1, world.everybody());
  World::all(world.everybody(), [&](std::size_t rank) {
    auto data = numbers(rank, 100);
    CHECK(sum_step(*world.engines[rank], data, Algorithm::direct));
  });
  CHECK(all_through_ucx(world));
  constexpr std::size_t count = 4'000'000;
  std::vector<std::vector<float>> data;
  for (const std::size_t rank : {0u, 1u}) data.push_back(numbers(rank, count));
  StepId step = 0;
  for (const std::size_t rank : {0u, 1u}) {
    Engine& engine = *world.engines[rank];
    step = engine.begin_step("step", 10).step;
    engine.post(post_of(step, 0, data[rank].data(), data[rank].data(), count, Dtype::f32,
                        ReduceOp::sum, Algorithm::direct));
    engine.seal(step);
  }
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  world.engines[2].reset();  // amid what the two send to it
  for (const std::size_t rank : {0u, 1u}) (void)world.engines[rank]->fence_for_test(1, 2);
  // Nothing writes to the callers' memory after the fence, whatever UCX is still about to do.
  const auto fenced = data;
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  CHECK(data == fenced);
  world.install(2, {0, 1}, {{step, Verdict::retry, SuspectCode::none, {}}});
  World::all({0, 1}, [&](std::size_t rank) {
    Engine& engine = *world.engines[rank];
    CHECK(engine.wait_step(step, 20));
    CHECK(engine.result(step).state == StepState::committed);
    CHECK(is_sum(data[rank], {0, 1}));
    const double until_s = monotonic_s() + 5;
    // One stream is left, and of the other's messages UCX holds none.
    while (engine.stats().ucx.streams != 1 && monotonic_s() < until_s) {
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    CHECK(engine.stats().ucx.streams == 1);
    while (engine.stats().ucx.requests != 0 && monotonic_s() < until_s) {
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    CHECK(engine.stats().ucx.requests == 0);
  });
}

// Before any library is looked for: so it is where there is none, too.
TEST(a_secured_engine_does_not_take_ucx_which_encrypts_nothing) {
  const rig_tls::Authority authority;
  std::string code;
  try {
    World world(1, 1, 9, false, [&](std::size_t) { return authority.context(); }, {"no-such"});
  } catch (const EngineFailure& failure) {
    code = failure.code();
  }
  CHECK(code == "usage");
}
