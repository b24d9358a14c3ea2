// native/tests/test_engine.cpp — engines over loopback: exact sums, aborts, lost lanes, mismatches.
// Ownership: each test owns its world.
// Threads:   one per rank.
// Errors:    CHECKs.
#include "engine_world.hpp"

using namespace world;

namespace {

constexpr Algorithm algorithms[] = {Algorithm::automatic, Algorithm::exchange, Algorithm::direct,
                                    Algorithm::ring};

std::vector<float> pattern(std::size_t rank, std::size_t count) {
  std::vector<float> data(count);
  for (std::size_t i = 0; i < count; ++i) {
    data[i] = static_cast<float>((i * 31 + rank * 7) % 251);
  }
  return data;
}

float expected(const std::vector<std::size_t>& ranks, std::size_t i) {
  float sum = 0;
  for (const std::size_t rank : ranks) sum += static_cast<float>((i * 31 + rank * 7) % 251);
  return sum;
}

bool exact(const std::vector<float>& data, const std::vector<std::size_t>& ranks) {
  for (std::size_t i = 0; i < data.size(); ++i) {
    if (data[i] != expected(ranks, i)) return false;
  }
  return true;
}

}  // namespace

TEST(every_algorithm_sums_exactly_on_every_rank) {
  for (const std::size_t size : {1u, 2u, 3u, 5u}) {
    World world(size);
    world.install(1, world.everybody());
    World::all(world.everybody(), [&](std::size_t rank) {
      for (const Algorithm algorithm : algorithms) {
        for (const std::size_t count : {0u, 1u, 7u, 1000u, 70001u, 500000u}) {
          auto data = pattern(rank, count);
          CHECK(sum_step(*world.engines[rank], data, algorithm));
          CHECK(exact(data, world.everybody()));
        }
      }
    });
  }
}

TEST(several_lanes_carry_one_operation) {
  World world(3, 3);
  world.install(1, world.everybody());
  World::all(world.everybody(), [&](std::size_t rank) {
    for (int round = 0; round < 20; ++round) {
      auto data = pattern(rank, 300007);
      CHECK(sum_step(*world.engines[rank], data, Algorithm::direct));
      CHECK(exact(data, world.everybody()));
    }
  });
}

TEST(many_tags_of_one_step_commit_together_in_any_order) {
  World world(3);
  world.install(1, world.everybody());
  World::all(world.everybody(), [&](std::size_t rank) {
    Engine& engine = *world.engines[rank];
    for (int round = 0; round < 5; ++round) {
      std::vector<std::vector<float>> inputs;
      for (Tag tag = 0; tag < 40; ++tag) inputs.push_back(pattern(rank + tag, 1 + tag * 977u));
      auto outputs = inputs;
      const BegunStep begun = engine.begin_step("step", 20);
      for (Tag i = 0; i < 40; ++i) {
        const Tag tag = rank == 1 ? 39 - i : i;  // one peer posts backwards
        engine.post(post_of(begun.step, tag, inputs[tag].data(), outputs[tag].data(),
                            inputs[tag].size(), Dtype::f32, ReduceOp::sum, Algorithm::automatic));
      }
      engine.seal(begun.step);
      CHECK(engine.wait_step(begun.step, 20));
      for (Tag tag = 0; tag < 40; ++tag) {
        CHECK(exact(outputs[tag], {tag, tag + 1, tag + 2}));
        CHECK(inputs[tag] == pattern(rank + tag, 1 + tag * 977u));
      }
      engine.release(begun.step);
    }
  });
}

TEST(half_precision_is_accumulated_in_single_and_rounded_once) {
  World world(3);
  world.install(1, world.everybody());
  for (const Algorithm algorithm : algorithms) {
    World::all(world.everybody(), [&](std::size_t rank) {
      Engine& engine = *world.engines[rank];
      // 2048 + 1 + 1: in f16 each addition of 1 would be lost, in f32 the sum is 2050.
      std::vector<std::uint16_t> data(100001, rank == 0 ? 0x6800 : 0x3c00);
      const BegunStep begun = engine.begin_step("step", 20);
      engine.post(post_of(begun.step, 0, data.data(), data.data(), data.size(), Dtype::f16,
                          ReduceOp::sum, algorithm));
      engine.seal(begun.step);
      CHECK(engine.wait_step(begun.step, 20));
      for (const std::uint16_t value : data) CHECK(value == 0x6801);
      engine.release(begun.step);
    });
  }
}

TEST(a_weighted_average_divides_by_the_weights_that_contributed) {
  World world(3);
  world.install(1, world.everybody());
  for (const Algorithm algorithm : algorithms) {
    for (const bool deterministic : {false, true}) {
      World::all(world.everybody(), [&](std::size_t rank) {
        Engine& engine = *world.engines[rank];
        std::vector<double> data(50021, static_cast<double>(rank * 4));
        const BegunStep begun = engine.begin_step("step", 20);
        engine.post(post_of(begun.step, 0, data.data(), data.data(), data.size(), Dtype::f64,
                            ReduceOp::avg, algorithm, static_cast<double>(rank + 1),
                            deterministic));
        engine.seal(begun.step);
        CHECK(engine.wait_step(begun.step, 20));
        for (const double value : data) CHECK(value == (0 * 1 + 4 * 2 + 8 * 3) / 6.0);
        engine.release(begun.step);
      });
    }
  }
}

TEST(an_aborted_step_gives_the_input_back_and_runs_again_with_the_survivors) {
  World world(3);
  world.install(1, world.everybody());
  const std::vector<std::size_t> survivors{0, 1};
  // Rank 2 posts nothing, so the others get stuck half-way; then it is flushed out.
  std::vector<std::vector<float>> data{pattern(0, 400000), pattern(1, 400000)};
  std::thread coordinator([&] {
    const double deadline_s = monotonic_s() + 10;
    const auto stuck = [&](std::size_t rank) { return world.engines[rank]->stats().progress > 0; };
    while (!(stuck(0) && stuck(1)) && monotonic_s() < deadline_s) std::this_thread::yield();
    world.install(1, {});
    for (const std::size_t rank : survivors) {
      const double before_s = monotonic_s();
      const Report report = world.engines[rank]->fence_for_test(1, 2);
      CHECK(monotonic_s() - before_s < 0.010 * 20);  // 10 ms, on a machine that may be overloaded
      CHECK(report.epoch == 1);
      CHECK(report.open.size() == 1 && !report.open[0].complete);
    }
    world.install(2, survivors, {{0, Verdict::retry, SuspectCode::none, {}}});
  });
  World::all(survivors, [&](std::size_t rank) {
    CHECK(sum_step(*world.engines[rank], data[rank], Algorithm::direct));
    CHECK(exact(data[rank], survivors));
  });
  coordinator.join();
}

TEST(a_failed_step_gives_the_input_back_and_the_next_one_works) {
  World world(2);
  world.install(1, world.everybody());
  std::vector<std::vector<float>> data{pattern(0, 1000), pattern(1, 2000)};
  std::thread coordinator([&] {
    // Both sides notice that the counts differ; what they say reaches nobody here, so: decide.
    const double deadline_s = monotonic_s() + 10;
    while (world.engines[0]->stats().open_steps + world.engines[1]->stats().open_steps < 2 &&
           monotonic_s() < deadline_s) {
      std::this_thread::yield();
    }
    for (const auto& engine : world.engines) (void)engine->fence_for_test(1, 2);
    world.install(2, world.everybody(), {{0, Verdict::fail, SuspectCode::descriptor, "differ"}});
  });
  World::all(world.everybody(), [&](std::size_t rank) {
    Engine& engine = *world.engines[rank];
    const BegunStep begun = engine.begin_step("step", 20);
    engine.post(post_of(begun.step, 0, data[rank].data(), data[rank].data(), data[rank].size(),
                        Dtype::f32, ReduceOp::sum, Algorithm::automatic));
    engine.seal(begun.step);
    CHECK(engine.wait_step(begun.step, 20));
    CHECK(engine.result(begun.step).state == StepState::failed);
    CHECK(engine.result(begun.step).text == "differ");
    CHECK(data[rank] == pattern(rank, rank == 0 ? 1000 : 2000));
    engine.release(begun.step);
  });
  coordinator.join();
  World::all(world.everybody(), [&](std::size_t rank) {
    auto next = pattern(rank, 5000);
    CHECK(sum_step(*world.engines[rank], next, Algorithm::automatic));
    CHECK(exact(next, world.everybody()));
  });
}

TEST(a_joiner_comes_in_at_the_activation_step_and_aborts_nothing) {
  World world(3);
  const std::vector<std::size_t> first{0, 1};
  world.install(1, first);
  World::all(world.everybody(), [&](std::size_t rank) {
    Engine& engine = *world.engines[rank];
    for (int i = 0; i < 4 && rank < 2; ++i) {
      auto data = pattern(rank, 3000);
      CHECK(sum_step(engine, data, Algorithm::automatic));
      CHECK(exact(data, i < 2 ? first : world.everybody()));
      if (i != 1) continue;
      // Both promise, then both are told to switch at the same step.
      CHECK(engine.hold(1, 2) == 2);
      engine.activate(world.view_of(2, world.everybody(), Pause::none),
                      world.entries_of(world.everybody()), 2, "step");
    }
    if (rank == 2) {
      View view = world.view_of(2, world.everybody(), Pause::none);
      view.members[2].first_step = 2;
      engine.install(view, world.entries_of(world.everybody()), 0, {});
      for (int i = 2; i < 4; ++i) {
        auto data = pattern(rank, 3000);
        CHECK(sum_step(engine, data, Algorithm::automatic));
        CHECK(exact(data, world.everybody()));
      }
    }
  });
}

TEST(closing_ends_every_wait_with_a_reason) {
  World world(2);
  world.install(1, world.everybody());
  auto data = pattern(0, 100);
  std::thread closer([&] {
    const double deadline_s = monotonic_s() + 10;
    while (world.engines[0]->stats().open_steps == 0 && monotonic_s() < deadline_s) {
      std::this_thread::yield();
    }
    world.engines[0]->fail("evicted", "you were slow");
  });
  std::string code;
  try {
    (void)sum_step(*world.engines[0], data, Algorithm::automatic);
  } catch (const EngineFailure& failure) {
    code = failure.code();
  }
  closer.join();
  CHECK(code == "evicted");
  CHECK(data == pattern(0, 100));
}
