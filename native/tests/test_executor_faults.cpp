// native/tests/test_executor_faults.cpp — aborts and lost lanes at any moment; all sums exact.
// Ownership: each test owns its world.
// Threads:   one per rank, one that plays the coordinator, one per proxy.
// Errors:    CHECKs.
#include <algorithm>
#include <barrier>
#include <cstring>
#include <random>

#include "engine_world.hpp"
#include "fragile_world.hpp"

using namespace world;

namespace {

constexpr Algorithm algorithms[] = {Algorithm::exchange, Algorithm::direct, Algorithm::ring};

/// One kind of operation, with inputs whose results are exact in it.
struct Kind {
  Dtype dtype;
  ReduceOp op;
};
constexpr Kind kinds[] = {{Dtype::f32, ReduceOp::sum},
                          {Dtype::f16, ReduceOp::sum},
                          {Dtype::f64, ReduceOp::avg}};

unsigned small_integer(std::size_t rank, std::size_t i) {
  return static_cast<unsigned>((i * 31 + rank * 7) % 251);
}

/// IEEE half precision of an integer below 2048.
std::uint16_t half(unsigned value) {
  if (value == 0) return 0;
  const unsigned exponent = 31u - static_cast<unsigned>(__builtin_clz(value));
  return static_cast<std::uint16_t>((exponent + 15) << 10 | ((value << (10 - exponent)) & 0x3ff));
}

double weight_of(Kind kind, std::size_t rank) {
  return kind.op == ReduceOp::avg ? static_cast<double>(1u << rank) : 1.0;
}

std::vector<std::byte> encoded(Kind kind, const std::vector<double>& values) {
  std::vector<std::byte> bytes(values.size() * size_of(kind.dtype));
  for (std::size_t i = 0; i < values.size(); ++i) {
    std::byte* at = bytes.data() + i * size_of(kind.dtype);
    const auto f32 = static_cast<float>(values[i]);
    const auto f16 = half(static_cast<unsigned>(values[i]));
    if (kind.dtype == Dtype::f64) std::memcpy(at, &values[i], 8);
    if (kind.dtype == Dtype::f32) std::memcpy(at, &f32, 4);
    if (kind.dtype == Dtype::f16) std::memcpy(at, &f16, 2);
  }
  return bytes;
}

std::vector<std::byte> input_of(Kind kind, std::size_t rank, std::size_t count) {
  std::vector<double> values(count);
  for (std::size_t i = 0; i < count; ++i) values[i] = small_integer(rank, i);
  return encoded(kind, values);
}

std::vector<std::byte> result_of(Kind kind, const std::vector<std::size_t>& ranks,
                                 std::size_t count) {
  std::vector<double> values(count);
  double weights = 0;
  for (const std::size_t rank : ranks) weights += weight_of(kind, rank);
  for (std::size_t i = 0; i < count; ++i) {
    for (const std::size_t rank : ranks) {
      values[i] += weight_of(kind, rank) * small_integer(rank, i);
    }
    if (kind.op == ReduceOp::avg) values[i] /= weights;
  }
  return encoded(kind, values);
}

/// Freezes everybody in some order, applies the one recovery rule, and installs the same members.
Verdict flush(World& world, Epoch target, StepId step, bool fail, std::mt19937& dice) {
  auto order = world.everybody();
  std::shuffle(order.begin(), order.end(), dice);
  bool known = false;
  bool complete = true;
  for (const std::size_t rank : order) {
    const Report report = world.engines[rank]->fence_for_test(1, target);
    known = known || report.watermark > step;
    const bool here = report.open.size() == 1 && report.open[0].complete;
    complete = complete && (here || report.watermark > step);
  }
  Verdict verdict = fail ? Verdict::fail : Verdict::retry;
  if (known || complete) verdict = Verdict::commit;
  for (const std::size_t rank : order) {
    world.engines[rank]->install(world.view_of(target, world.everybody(), Pause::none),
                                 world.entries_of(world.everybody()), 0,
                                 {{step, verdict, SuspectCode::deadline, "late"}});
  }
  return verdict;
}

/// Rounds of one in-place operation, each flushed at a random moment of it.
void abort_at_random(Algorithm algorithm, Kind kind, int rounds, int (&seen)[4]) {
  constexpr std::size_t count = check::sanitized ? 50'001 : 150'001;
  World world(3);
  world.install(1, world.everybody());
  const auto sum = result_of(kind, world.everybody(), count);
  std::vector<std::vector<std::byte>> inputs;
  for (std::size_t rank = 0; rank < 3; ++rank) inputs.push_back(input_of(kind, rank, count));
  std::barrier round_starts(4);
  std::thread coordinator([&] {
    std::mt19937 dice(static_cast<unsigned>(algorithm) * 100 + static_cast<unsigned>(kind.dtype));
    for (int round = 0; round < rounds; ++round) {
      round_starts.arrive_and_wait();
      std::this_thread::sleep_for(std::chrono::microseconds(dice() % 2500));
      const bool fail = dice() % 2 == 0;
      const auto step = static_cast<StepId>(round);
      ++seen[static_cast<int>(flush(world, static_cast<Epoch>(round + 2), step, fail, dice))];
    }
  });
  World::all(world.everybody(), [&](std::size_t rank) {
    Engine& engine = *world.engines[rank];
    std::mt19937 dice(static_cast<unsigned>(rank));
    for (int round = 0; round < rounds; ++round) {
      auto data = inputs[rank];
      round_starts.arrive_and_wait();
      std::this_thread::sleep_for(std::chrono::microseconds(dice() % 500));
      const BegunStep begun = engine.begin_step("step", 20);
      CHECK(begun.step == static_cast<StepId>(round));
      engine.post(post_of(begun.step, 0, data.data(), data.data(), count, kind.dtype, kind.op,
                          algorithm, weight_of(kind, rank)));
      engine.seal(begun.step);
      CHECK(engine.wait_step(begun.step, 20));
      const StepState state = engine.result(begun.step).state;
      CHECK(state != StepState::open);
      CHECK(data == (state == StepState::committed ? sum : inputs[rank]));
      engine.release(begun.step);
    }
  });
  coordinator.join();
}

/// Steps of everything there is, while lanes are cut in mid-operation; nothing is flushed.
void cut_lanes(Algorithm algorithm, std::uint16_t lanes, int rounds) {
  constexpr std::size_t count = 200'003;
  FragileWorld world(3, lanes);
  std::vector<std::vector<std::byte>> results;
  for (const Kind kind : kinds) results.push_back(result_of(kind, world.everybody(), count));
  World::all(world.everybody(), [&](std::size_t rank) {
    Engine& engine = *world.engines[rank];
    std::vector<std::vector<std::byte>> inputs;
    for (const Kind kind : kinds) inputs.push_back(input_of(kind, rank, count));
    std::mt19937 dice(static_cast<unsigned>(rank) + 10u * lanes);
    for (int round = 0; round < rounds; ++round) {
      if (rank != 0) world.proxies[rank]->cut();  // nobody dials the lowest name
      auto data = inputs;
      const BegunStep begun = engine.begin_step("step", 30);
      for (std::size_t tag = 0; tag < data.size(); ++tag) {
        // Late posts: the others' frames are early here, and may be lost early, too.
        if (dice() % 3 == 0) std::this_thread::sleep_for(std::chrono::microseconds(dice() % 3000));
        engine.post(post_of(begun.step, static_cast<Tag>(tag), data[tag].data(), data[tag].data(),
                            count, kinds[tag].dtype, kinds[tag].op, algorithm,
                            weight_of(kinds[tag], rank)));
      }
      engine.seal(begun.step);
      const bool decided = engine.wait_step(begun.step, 30);
      CHECK(decided);
      if (!decided) return;
      CHECK(engine.result(begun.step).state == StepState::committed);
      CHECK(engine.result(begun.step).retries == 0);
      for (std::size_t tag = 0; tag < data.size(); ++tag) {
        CHECK(data[tag] == results[tag]);
      }
      engine.release(begun.step);
    }
  });
  std::printf("  algorithm %d, %d lanes: %d cuts\n", static_cast<int>(algorithm), int{lanes},
              world.cuts());
  CHECK(world.cuts() > 0);
}

}  // namespace

TEST(an_abort_at_any_moment_restores_the_input_bit_for_bit_and_a_retry_is_exact) {
  int seen[4] = {};
  for (const Algorithm algorithm : algorithms) {
    for (const Kind kind : kinds) abort_at_random(algorithm, kind, check::sanitized ? 8 : 20, seen);
  }
  std::printf("  %d committed, %d retried, %d failed\n", seen[1], seen[2], seen[3]);
  CHECK(seen[2] > 5 && seen[3] > 5);  // else the moments are badly chosen
}

TEST(one_of_three_lanes_dies_in_mid_operation_and_nothing_is_lost) {
  for (const Algorithm algorithm : algorithms) cut_lanes(algorithm, 3, check::sanitized ? 4 : 12);
}

TEST(the_only_lane_dies_in_mid_operation_and_nothing_is_lost) {
  for (const Algorithm algorithm : algorithms) cut_lanes(algorithm, 1, check::sanitized ? 2 : 4);
}

TEST(threads_of_one_process_post_and_wait_for_several_steps_at_once) {
  World world(2);
  world.install(1, world.everybody());
  constexpr std::size_t steps = 4, threads = 4, tags = 6;
  World::all(world.everybody(), [&](std::size_t rank) {
    Engine& engine = *world.engines[rank];
    for (int round = 0; round < 5; ++round) {
      std::vector<StepId> ids;
      for (std::size_t i = 0; i < steps; ++i) ids.push_back(engine.begin_step("step", 20).step);
      const Kind kind = kinds[0];
      const auto count_of = [](std::size_t tag) { return 1 + tag * 9973; };
      std::barrier posted(threads);
      std::vector<std::vector<std::byte>> data(steps * tags);
      std::vector<std::thread> workers;
      for (std::size_t t = 0; t < threads; ++t) {
        workers.emplace_back([&, t] {
          std::mt19937 dice(static_cast<unsigned>(rank * 8 + t));
          std::vector<std::size_t> mine;
          for (std::size_t i = t; i < steps * tags; i += threads) mine.push_back(i);
          std::shuffle(mine.begin(), mine.end(), dice);
          for (const std::size_t i : mine) {
            const std::size_t count = count_of(i % tags);
            data[i] = input_of(kind, rank, count);
            engine.post(post_of(ids[i / tags], static_cast<Tag>(i % tags), data[i].data(),
                                data[i].data(), count, kind.dtype, kind.op,
                                Algorithm::automatic));
          }
          posted.arrive_and_wait();
          engine.seal(ids[t]);  // as many threads as steps
          for (std::size_t i = 0; i < steps; ++i) CHECK(engine.wait_step(ids[(i + t) % steps], 20));
          for (const std::size_t i : mine) {
            CHECK(data[i] == result_of(kind, world.everybody(), count_of(i % tags)));
          }
        });
      }
      for (std::thread& worker : workers) worker.join();
      for (const StepId id : ids) engine.release(id);
    }
  });
}

TEST(a_failed_engine_never_touches_its_callers_memory_again) {
  const Kind kind = kinds[0];
  auto data = input_of(kind, 0, 100'000);
  auto theirs = input_of(kind, 1, 100'000);
  World world(2);
  world.install(1, world.everybody());
  const BegunStep begun = world.engines[0]->begin_step("step", 20);
  world.engines[0]->post(post_of(begun.step, 0, data.data(), data.data(), 100'000, kind.dtype,
                                 kind.op, Algorithm::direct));
  world.engines[0]->seal(begun.step);
  world.engines[0]->fail("coordinator_lost", "nobody decides");
  CHECK(data == input_of(kind, 0, 100'000));
  // What the others and the coordinator say now comes too late.
  const BegunStep other = world.engines[1]->begin_step("step", 20);
  world.engines[1]->post(post_of(other.step, 0, theirs.data(), theirs.data(), 100'000, kind.dtype,
                                 kind.op, Algorithm::direct));
  world.engines[1]->seal(other.step);
  CHECK(!world.engines[1]->wait_step(other.step, 0.1));
  (void)world.engines[0]->fence_for_test(1, 2);
  world.install(2, world.everybody());
  CHECK(!world.engines[1]->wait_step(other.step, 0.1));
  CHECK(world.engines[0]->result(begun.step).state == StepState::open);
  CHECK(data == input_of(kind, 0, 100'000));
}
