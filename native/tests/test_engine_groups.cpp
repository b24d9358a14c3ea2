// native/tests/test_engine_groups.cpp — groups, planned leaves and exclusion between real engines.
// Ownership: each test owns its world.
// Threads:   the test's, one per rank, and one that plays the coordinator.
// Errors:    CHECKs.
#include <algorithm>
#include <atomic>
#include <functional>

#include "raw_peer.hpp"

using namespace world;

namespace {

constexpr std::size_t count = 50'000;

std::vector<float> filled(std::size_t rank, std::size_t size = count) {
  return std::vector<float>(size, static_cast<float>(rank + 1));
}

bool all_are(const std::vector<float>& data, float value) {
  return std::all_of(data.begin(), data.end(), [=](float x) { return x == value; });
}

/// What `call` failed with, or nothing.
std::string code_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const EngineFailure& failure) {
    return failure.code();
  }
  return {};
}

/// Ranks 0 and 1 are group 0, ranks 2 and 3 are group 1.
World two_groups() {
  World world(4);
  world.members[2].member.group = world.members[3].member.group = 1;
  world.install(1, world.everybody());
  return world;
}

void wait_until(const std::function<bool()>& holds) {
  const double deadline_s = monotonic_s() + 20;
  while (!holds() && monotonic_s() < deadline_s) std::this_thread::yield();
  CHECK(holds());
}

/// A FLUSH without a verdict yet: what does every one of `ranks` hold?
std::vector<Report> fence_all(World& world, const std::vector<std::size_t>& ranks, Epoch target) {
  std::vector<Report> reports;
  for (const std::size_t rank : ranks) {
    reports.push_back(world.engines[rank]->fence_for_test(1, target));
  }
  return reports;
}

TEST(each_group_reduces_for_itself) {
  World world = two_groups();
  World::all(world.everybody(), [&](std::size_t rank) {
    Engine& engine = *world.engines[rank];
    for (int i = 0; i < 5; ++i) {
      auto data = filled(rank);
      const BegunStep begun = engine.begin_step("step", 20);
      CHECK(begun.rank == static_cast<int>(rank % 2));
      CHECK(begun.world_size == 2);
      engine.post(post_of(begun.step, 0, data.data(), data.data(), data.size(), Dtype::f32,
                          ReduceOp::sum, Algorithm::automatic));
      engine.seal(begun.step);
      CHECK(engine.wait_step(begun.step, 20));
      const StepResult result = engine.result(begun.step);
      CHECK(result.state == StepState::committed);
      CHECK(all_are(data, rank < 2 ? 3.0f : 7.0f));
      CHECK(result.contributors.size() == 2);
      CHECK(result.contributors[0] == peer_id(rank < 2 ? 0 : 2));
      CHECK(result.groups.size() == 4);
      CHECK(std::count(result.groups.begin(), result.groups.end(), result.groups[0]) == 2);
      engine.release(begun.step);
    }
  });
}

TEST(groups_may_post_different_things_in_one_step) {
  World world = two_groups();
  World::all(world.everybody(), [&](std::size_t rank) {
    auto data = filled(rank, rank < 2 ? 1000 : 70'000);
    CHECK(sum_step(*world.engines[rank], data, Algorithm::automatic));
    CHECK(all_are(data, rank < 2 ? 3.0f : 7.0f));
  });
}

TEST(a_group_that_is_complete_commits_nothing_while_another_has_lost_a_member) {
  World world = two_groups();
  const std::vector<std::size_t> left{0, 1, 2};
  std::atomic<int> sealed{0};
  std::thread coordinator([&] {
    // Group 0 has all it needs; rank 3 never takes part and dies.
    wait_until([&] {
      const EngineStats stats = world.engines[2]->stats();
      return stats.executor.frames_received >= 4 && sealed == 3;  // SEAL and DONE of two
    });
    world.engines[3]->close();
    const auto reports = fence_all(world, left, 2);
    for (const Report& report : reports) {
      CHECK(report.watermark == 0 && report.committed.empty());
      CHECK(report.open.size() == 1 && report.open[0].sealed);
    }
    CHECK(reports[0].open[0].complete && reports[1].open[0].complete);
    CHECK(!reports[2].open[0].complete);
    world.install(2, left);
  });
  World::all(left, [&](std::size_t rank) {
    Engine& engine = *world.engines[rank];
    auto data = filled(rank);
    const BegunStep begun = engine.begin_step("step", 20);
    engine.post(post_of(begun.step, 0, data.data(), data.data(), data.size(), Dtype::f32,
                        ReduceOp::sum, Algorithm::automatic));
    engine.seal(begun.step);
    ++sealed;
    CHECK(engine.wait_step(begun.step, 20));
    const StepResult result = engine.result(begun.step);
    CHECK(result.state == StepState::committed);
    CHECK(result.retries == 1 && result.epoch == 2);
    CHECK(all_are(data, 3.0f));  // 1 + 2 in group 0, and 3 alone in group 1
    engine.release(begun.step);
  });
  coordinator.join();
}

TEST(a_peer_that_is_planned_out_finishes_what_it_began_and_begins_no_more) {
  World world(3);
  world.install(1, world.everybody());
  const std::vector<std::size_t> stay{0, 1};
  for (const std::size_t rank : world.everybody()) {
    world.engines[rank]->activate(world.view_of(2, stay, Pause::none), world.entries_of(stay), 2,
                                  "");
  }
  World::all(world.everybody(), [&](std::size_t rank) {
    Engine& engine = *world.engines[rank];
    for (int i = 0; i < 4; ++i) {
      auto data = filled(rank);
      if (rank == 2 && i == 2) {
        CHECK(code_of([&] { (void)engine.begin_step("step", 20); }) == "left");
        CHECK(code_of([&] { (void)engine.begin_step("step", 20); }) == "left");
        engine.close();
        return;
      }
      CHECK(sum_step(engine, data, Algorithm::automatic));
      CHECK(all_are(data, i < 2 ? 6.0f : 3.0f));
    }
  });
}

TEST(a_step_that_still_runs_when_its_peer_has_left_commits) {
  World world(2);
  world.install(1, world.everybody());
  const std::vector<std::size_t> stay{0};
  for (const std::size_t rank : world.everybody()) {
    world.engines[rank]->activate(world.view_of(2, stay, Pause::none), world.entries_of(stay), 1,
                                  "");
  }
  std::vector<std::vector<float>> data{filled(0), filled(1)};
  std::vector<StepId> steps;
  for (const std::size_t rank : world.everybody()) {
    Engine& engine = *world.engines[rank];
    steps.push_back(engine.begin_step("step", 20).step);
  }
  CHECK(code_of([&] { (void)world.engines[1]->begin_step("step", 1); }) == "left");
  CHECK(world.engines[0]->begin_step("step", 20).epoch == 2);
  for (const std::size_t rank : world.everybody()) {
    Engine& engine = *world.engines[rank];
    engine.post(post_of(steps[rank], 0, data[rank].data(), data[rank].data(), count, Dtype::f32,
                        ReduceOp::sum, Algorithm::automatic));
    engine.seal(steps[rank]);
  }
  World::all(world.everybody(), [&](std::size_t rank) {
    CHECK(world.engines[rank]->wait_step(steps[rank], 20));
    CHECK(world.engines[rank]->result(steps[rank]).state == StepState::committed);
    CHECK(all_are(data[rank], 3.0f));
  });
}

TEST(an_excluded_peer_gets_its_inputs_back_and_comes_in_again) {
  World world(3);
  world.install(1, world.everybody());
  const std::vector<std::size_t> stay{0, 1};
  std::vector<std::vector<float>> data{filled(0), filled(1), filled(2)};
  std::vector<StepId> steps(3);
  // All have begun and posted; rank 2 seals nothing, so nobody is done.
  World::all(world.everybody(), [&](std::size_t rank) {
    Engine& engine = *world.engines[rank];
    steps[rank] = engine.begin_step("step", 20).step;
    engine.post(post_of(steps[rank], 0, data[rank].data(), data[rank].data(), count, Dtype::f32,
                        ReduceOp::sum, Algorithm::automatic));
    if (rank != 2) engine.seal(steps[rank]);
  });
  (void)fence_all(world, stay, 2);
  world.install(2, stay);
  world.engines[2]->exclude(1, 2, "too slow");
  CHECK(world.engines[2]->wait_step(steps[2], 20));
  const StepResult failed = world.engines[2]->result(steps[2]);
  CHECK(failed.state == StepState::failed && failed.code == SuspectCode::excluded);
  CHECK(failed.text == "too slow");
  CHECK(data[2] == filled(2));
  world.engines[2]->release(steps[2]);
  World::all(stay, [&](std::size_t rank) {
    CHECK(world.engines[rank]->wait_step(steps[rank], 20));
    CHECK(all_are(data[rank], 3.0f));
  });
  // The steps have told; from now on it waits as a newcomer does, and is let in at step 1.
  CHECK(code_of([&] { (void)world.engines[2]->begin_step("step", 0.05); }) == "timeout");
  const auto events = world.engines[2]->drain_events();
  CHECK(std::any_of(events.begin(), events.end(), [](const EngineEvent& event) {
    return event.kind == EngineEvent::Kind::at_entry;
  }));
  for (const std::size_t rank : stay) {
    world.engines[rank]->activate(world.view_of(3, world.everybody(), Pause::none),
                                  world.entries_of(world.everybody()), 1, "step");
  }
  View view = world.view_of(3, world.everybody(), Pause::none);
  view.members[2].first_step = 1;
  world.engines[2]->install(view, world.entries_of(world.everybody()), 0, {});
  World::all(world.everybody(), [&](std::size_t rank) {
    auto next = filled(rank);
    CHECK(sum_step(*world.engines[rank], next, Algorithm::automatic));
    CHECK(all_are(next, 6.0f));
  });
}

TEST(an_exclusion_between_steps_is_told_once) {
  World world(2);
  world.install(1, world.everybody());
  world.engines[1]->exclude(1, 2, "too slow");
  CHECK(code_of([&] { (void)world.engines[1]->begin_step("step", 1); }) == "excluded");
  CHECK(code_of([&] { (void)world.engines[1]->begin_step("step", 0.05); }) == "timeout");
}

TEST(a_paused_view_that_raises_ends_the_wait_at_the_gate) {
  World world(2);
  world.install(1, world.everybody());
  (void)fence_all(world, {0}, 2);
  std::thread coordinator([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    world.engines[0]->install(world.view_of(2, {0}, Pause::raises), world.entries_of({0}), 0, {});
  });
  CHECK(code_of([&] { (void)world.engines[0]->begin_step("step", 20); }) == "underflow");
  coordinator.join();
}

// --- nothing of the past changes a buffer (G4) ---

constexpr Descriptor summed{Dtype::f32, ReduceOp::sum, {}, Algorithm::direct, count, false};

/// A raw peer's contribution to the engine's shard, or its first slice; its rank is 1 of 2.
void contribute(RawPeer& raw, Epoch epoch, StepId step, float value, bool whole = true) {
  PlanRequest request;
  request.algorithm = Algorithm::direct;
  request.size = 2;
  request.count = count;
  const Plan plan = make_plan(request);
  for (std::uint32_t slice = 0; slice < (whole ? plan.shards[1].slices : 1); ++slice) {
    FrameHeader header{.type = FrameType::data, .epoch = epoch, .step = step};
    header.shard = 1;
    header.phase = Phase::reduce;
    header.slice = slice;
    header.descriptor = static_cast<std::uint32_t>(summed.digest());
    const std::vector<float> payload(slice_elements(plan, plan.shards[1], slice), value);
    raw.say(header, std::as_bytes(std::span(payload)));
  }
}

StepId post_one(Engine& engine, std::vector<float>& data) {
  const BegunStep begun = engine.begin_step("step", 20);
  engine.post(post_of(begun.step, 0, data.data(), data.data(), data.size(), Dtype::f32,
                      ReduceOp::sum, Algorithm::direct));
  engine.seal(begun.step);
  return begun.step;
}

TEST(late_frames_change_nothing_after_an_exclusion) {
  World world(1);
  install_with_raw(world, 1);
  RawPeer raw(world, 0);
  Engine& engine = *world.engines[0];
  auto data = filled(0);
  const StepId step = post_one(engine, data);
  raw.open(1, step, 0, summed);
  contribute(raw, 1, step, 5.0f);
  wait_until([&] { return engine.stats().executor.frames_received > 0; });
  engine.exclude(1, 2, "too slow");
  CHECK(data == filled(0));
  contribute(raw, 1, step, 5.0f);  // sent before the others knew
  raw.done(1, step, {}, {});
  const auto before = engine.stats().executor.frames_discarded;
  contribute(raw, 1, step, 5.0f);
  wait_until([&] { return engine.stats().executor.frames_discarded > before; });
  CHECK(data == filled(0));
  CHECK(engine.result(step).state == StepState::failed);
  CHECK(engine.stats().executor.lanes_refused == 0);
}

TEST(a_leaver_touches_no_step_after_its_own) {
  auto shared = filled(0);  // longer than the engine, which gives back what a step has not done
  auto own = filled(0);
  World world(1);
  install_with_raw(world, 1);
  RawPeer raw(world, 0);
  Engine& engine = *world.engines[0];
  engine.activate(world.view_of(2, {0}, Pause::none), world.entries_of({0}), 1, "");
  CHECK(post_one(engine, shared) == 0);
  const BegunStep begun = engine.begin_step("step", 20);
  CHECK(begun.step == 1 && begun.epoch == 2 && begun.world_size == 1);
  engine.post(post_of(1, 0, own.data(), own.data(), own.size(), Dtype::f32, ReduceOp::sum,
                      Algorithm::direct));
  const auto before = engine.stats().executor.frames_discarded;
  contribute(raw, 1, 1, 5.0f, false);  // of the older view, which is over for this step
  wait_until([&] { return engine.stats().executor.frames_discarded > before; });
  CHECK(engine.stats().executor.lanes_refused == 0);
  contribute(raw, 2, 1, 5.0f, false);  // of a view that it is not in
  wait_until([&] { return engine.stats().executor.lanes_refused == 1; });
  CHECK(own == filled(0));
  engine.seal(1);
  CHECK(engine.wait_step(1, 20));
  CHECK(engine.result(1).state == StepState::committed);
}

TEST(a_frame_of_another_group_ends_its_lane_before_a_byte_is_written) {
  World world(1);
  world.members[0].member.group = 1;
  View view = world.view_of(1, world.everybody(), Pause::none);
  auto entries = world.entries_of(world.everybody());
  Member stranger = raw_entry().member;
  view.members.insert(view.members.begin(), stranger);  // of group 0
  entries.insert(entries.begin(), raw_entry());
  Engine& engine = *world.engines[0];
  engine.install(view, entries, 0, {});
  RawPeer raw(world, 0);
  auto data = filled(0);
  const BegunStep begun = engine.begin_step("step", 20);
  engine.post(post_of(begun.step, 0, data.data(), data.data(), data.size(), Dtype::f32,
                      ReduceOp::sum, Algorithm::direct));
  contribute(raw, 1, begun.step, 5.0f, false);
  wait_until([&] { return engine.stats().executor.lanes_refused == 1; });
  CHECK(data == filled(0));
}

}  // namespace
