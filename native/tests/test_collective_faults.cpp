// native/tests/test_collective_faults.cpp — collectives that are fenced at any moment: inputs come
// back, those that can run again do, and those that mean nothing among fewer members end for all.
// Ownership: each test owns its world.
// Threads:   one per rank, and the test's main thread as the coordinator.
// Errors:    CHECKs.
#include <random>

#include "collective_world.hpp"
#include "control_rig.hpp"
#include "fragile_world.hpp"

using namespace world;

namespace {

constexpr std::size_t large = 300'000;

/// Waits until bytes have moved at some engine, then a little longer, so that fences fall anywhere.
void wait_for_bytes(World& world, std::uint64_t some, std::uint32_t extra_us,
                    double patience_s) {
  const double deadline_s = monotonic_s() + patience_s;
  const auto moved = [&] {
    std::uint64_t sum = 0;
    for (const auto& engine : world.engines) sum += engine->stats().progress;
    return sum;
  };
  while (moved() < some && monotonic_s() < deadline_s) std::this_thread::yield();
  std::this_thread::sleep_for(std::chrono::microseconds(extra_us));
}

}  // namespace

TEST(a_fence_at_any_moment_gives_every_input_back_and_the_next_attempt_is_exact) {
  std::mt19937 dice(11);
  for (const Collective kind : every_collective) {
    for (const bool in_place : {false, true}) {
      World world(3);
      Epoch epoch = 1;
      world.install(epoch, world.everybody());
      for (int round = 0; round < (check::sanitized ? 3 : 8); ++round, ++epoch) {
        const Case what{.kind = kind, .size = 3, .root = 1, .count = large, .in_place = in_place};
        std::vector<std::unique_ptr<Side>> sides;
        std::vector<StepId> steps;
        for (const std::size_t rank : world.everybody()) {
          sides.push_back(std::make_unique<Side>(what, rank));
          steps.push_back(world.engines[rank]->begin_step("step", 20).step);
          world.engines[rank]->post(sides[rank]->posted(steps[rank], 0));
          world.engines[rank]->seal(steps[rank]);
        }
        std::this_thread::sleep_for(std::chrono::microseconds(dice() % 3000));
        bool all_complete = true;
        std::vector<Report> reports;
        for (const auto& engine : world.engines) {
          reports.push_back(engine->fence_for_test(1, epoch + 1));
          if (reports.back().open.empty()) continue;  // it has committed
          CHECK(reports.back().open[0].bound == bound(kind));
          all_complete = all_complete && reports.back().open[0].complete;
        }
        // The recovery rule: undone unless all hold it.
        const Decision decision{steps[0], all_complete ? Verdict::commit : Verdict::fail,
                                SuspectCode::deadline, "late"};
        world.install(epoch + 1, world.everybody(), {decision});
        for (const std::size_t rank : world.everybody()) {
          CHECK(world.engines[rank]->wait_step(steps[rank], 10));
          const StepResult result = world.engines[rank]->result(steps[rank]);
          if (result.state == StepState::failed) CHECK(sides[rank]->kept());
          if (result.state == StepState::committed) CHECK(sides[rank]->right(world.everybody()));
          world.engines[rank]->release(steps[rank]);
        }
      }
      const Case again{.kind = kind, .size = 3, .root = 2, .count = 5'000, .in_place = in_place};
      World::all(world.everybody(), [&](std::size_t rank) {
        Side side(again, rank);
        CHECK(run_side(*world.engines[rank], side).state == StepState::committed);
        CHECK(side.right(world.everybody()));
      });
    }
  }
}

namespace {

/// The root is rank 1.  Who is lost posts nothing; the others get as far as they can, then it is
/// flushed out.
void run_again_without_the_lost(const Case& what, const std::vector<std::size_t>& survivors) {
  World world(what.size);
  world.install(1, world.everybody());
  std::vector<std::unique_ptr<Side>> sides;
  for (std::size_t rank = 0; rank < what.size; ++rank) {
    sides.push_back(std::make_unique<Side>(what, rank));
  }
  for (const std::size_t rank : survivors) {
    CHECK(world.engines[rank]->begin_step("step", 20).step == 0);
  }
  std::thread coordinator([&] {
    wait_for_bytes(world, 1, 1500, survivors.size() > 1 ? 10 : 0.05);  // a root may only receive
    for (const std::size_t rank : survivors) (void)world.engines[rank]->fence_for_test(1, 2);
    world.install(2, survivors, {{0, Verdict::retry, SuspectCode::none, {}}});
  });
  World::all(survivors, [&](std::size_t rank) {
    Engine& engine = *world.engines[rank];
    engine.post(sides[rank]->posted(0, 0));
    engine.seal(0);
    CHECK(engine.wait_step(0, 20));
    const StepResult result = engine.result(0);
    CHECK(result.state == StepState::committed && result.retries == 1);
    CHECK(result.contributors.size() == survivors.size());
    CHECK(sides[rank]->right(survivors));
    engine.release(0);
  });
  coordinator.join();
}

}  // namespace

TEST(what_does_not_depend_on_the_lost_member_runs_again_without_it) {
  for (const Collective kind : every_collective) {
    if (bound(kind) || kind == Collective::barrier) continue;
    for (const bool in_place : {false, true}) {
      Case what{.kind = kind, .size = 4, .root = 1, .count = large, .in_place = in_place};
      run_again_without_the_lost(what, {0, 1, 2});
      what.size = 3;  // another algorithm for the two that are left, and none for one
      run_again_without_the_lost(what, {1, 2});
      run_again_without_the_lost(what, {1});
    }
  }
  run_again_without_the_lost({.kind = Collective::barrier, .size = 3, .root = 1}, {1});
}

namespace {

/// Rank 2 of three is flushed out; returns what each survivor tells the coordinator of the retry.
std::vector<Suspect> told_after_a_loss(const Case& what, bool post_late) {
  rig::Gate gate;
  World world(3, 1, gate.port());
  std::vector<rig::Wire> wires;  // of those that have something to say
  std::vector<rig::Wire> silent;
  for (std::size_t i = 0; i < 3; ++i) {
    rig::Wire wire = gate.accept();
    const auto hello = wire.next<frames::Hello>();
    wire.write(frames::Frame{frames::Welcome{1}});
    (hello && hello->peer == peer_id(2) ? silent : wires).push_back(std::move(wire));
  }
  world.install(1, world.everybody());
  const std::vector<std::size_t> survivors{0, 1};
  std::vector<std::unique_ptr<Side>> sides;
  StepId step = 0;
  const auto post_all = [&] {
    for (const std::size_t rank : survivors) {
      world.engines[rank]->post(sides[rank]->posted(step, 0));
      world.engines[rank]->seal(step);
    }
  };
  for (const std::size_t rank : survivors) {
    sides.push_back(std::make_unique<Side>(what, rank));
    step = world.engines[rank]->begin_step("step", 20).step;
  }
  if (!post_late) post_all();
  std::this_thread::sleep_for(std::chrono::milliseconds(3));
  for (const std::size_t rank : survivors) (void)world.engines[rank]->fence_for_test(1, 2);
  world.install(2, survivors, {{step, Verdict::retry, SuspectCode::none, {}}});
  if (post_late) post_all();
  std::vector<Suspect> told;
  for (rig::Wire& wire : wires) {
    if (const auto said = wire.next<Suspect>()) told.push_back(*said);
  }
  for (const std::size_t rank : survivors) {
    const Report report = world.engines[rank]->fence_for_test(1, 3);
    CHECK(report.open.size() == 1 && !report.open[0].complete);
  }
  world.install(3, survivors, {{step, Verdict::fail, SuspectCode::view_changed, "gone"}});
  for (const std::size_t rank : survivors) {
    CHECK(world.engines[rank]->wait_step(step, 10));
    CHECK(world.engines[rank]->result(step).state == StepState::failed);
    CHECK(world.engines[rank]->result(step).code == SuspectCode::view_changed);
    CHECK(sides[rank]->kept());
  }
  return told;
}

}  // namespace

TEST(what_depends_on_a_lost_member_is_run_by_nobody_and_told_by_all) {
  for (const Collective kind : every_collective) {
    if (!bound(kind)) continue;
    for (const bool late : {false, true}) {
      for (const bool in_place : {false, true}) {
        const auto told = told_after_a_loss(
            {.kind = kind, .size = 3, .root = 1, .count = large, .in_place = in_place}, late);
        CHECK(told.size() == 2);
        for (const Suspect& said : told) {
          CHECK(said.code == SuspectCode::view_changed && said.epoch == 2);
          CHECK(said.text.find("03000000 is gone") != std::string::npos);
        }
      }
    }
  }
}

TEST(without_its_root_a_rooted_collective_is_run_by_nobody) {
  for (const Collective kind : {Collective::broadcast, Collective::reduce}) {
    const Case what{.kind = kind, .size = 3, .root = 2, .count = large};
    const auto told = told_after_a_loss(what, false);
    CHECK(told.size() == 2);
    for (const Suspect& said : told) CHECK(said.code == SuspectCode::view_changed);
  }
}

namespace {

/// One step of every collective at once, with every lane of the world in danger.
void run_all(FragileWorld& world, std::size_t count, bool uneven) {
  World::all(world.everybody(), [&](std::size_t rank) {
    Engine& engine = *world.engines[rank];
    std::vector<Side> sides;
    for (const Collective kind : every_collective) {
      sides.emplace_back(Case{.kind = kind, .size = 3, .root = 1, .count = count,
                              .uneven = uneven && may_be_uneven(kind), .in_place = true},
                         rank);
    }
    const BegunStep begun = engine.begin_step("step", 30);
    for (Tag tag = 0; tag < sides.size(); ++tag) engine.post(sides[tag].posted(begun.step, tag));
    engine.seal(begun.step);
    const bool decided = engine.wait_step(begun.step, 30);
    CHECK(decided);
    if (!decided) return engine.fail("test", "the step stands still");
    CHECK(engine.result(begun.step).state == StepState::committed);
    CHECK(engine.result(begun.step).retries == 0);
    for (const Side& side : sides) CHECK(side.right(world.everybody()));
    engine.release(begun.step);
  });
}

}  // namespace

TEST(lanes_that_die_in_the_middle_of_any_collective_lose_nothing) {
  for (const auto& [lanes, shared_memory] :
       {std::pair{std::uint16_t{1}, false}, {std::uint16_t{3}, false}, {std::uint16_t{2}, true}}) {
    FragileWorld world(3, lanes, 9, shared_memory);
    for (int round = 0; round < (check::sanitized ? 4 : 12); ++round) {
      for (const std::size_t rank : {1u, 2u}) world.proxies[rank]->cut();  // nobody dials rank 0
      run_all(world, 150'001, round % 2 == 1);
    }
    std::printf("  %d lanes: %d cuts\n", int{lanes}, world.cuts());
    CHECK(world.cuts() > 0);
  }
}

TEST(a_flipped_bit_in_what_is_only_copied_costs_a_lane_and_no_element) {
  FragileWorld world(3);
  run_all(world, 50'000, false);
  int turned = 0;
  constexpr std::size_t places[] = {24, 28, header_bytes, header_bytes + 999};
  for (const std::size_t at : places) {
    for (const FrameType type : {FrameType::data, FrameType::open}) {
      if (type == FrameType::open && at > header_bytes) continue;
      world.proxies[1]->flip({type, Phase::gather, at, 5});
      run_all(world, 50'000, true);
      turned = world.proxies[1]->flips();
    }
  }
  CHECK(turned >= 6);
  std::uint64_t refused = 0;
  for (const auto& engine : world.engines) refused += engine->stats().executor.lanes_refused;
  CHECK(refused + 1 >= static_cast<std::uint64_t>(turned));
}
