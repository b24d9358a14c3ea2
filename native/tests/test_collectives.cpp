// native/tests/test_collectives.cpp — all collectives over loopback: exact values on every rank, in
// and out of place, in equal and unequal parts, of every type; mismatches of sizes name both.
// Ownership: each test owns its world.
// Threads:   one per rank.
// Errors:    CHECKs.
#include "collective_world.hpp"
#include "raw_peer.hpp"

using namespace world;

namespace {

void check_exact(World& world, const Case& what) {
  World::all(world.everybody(), [&](std::size_t rank) {
    Side side(what, rank);
    const StepResult result = run_side(*world.engines[rank], side);
    const bool good = result.state == StepState::committed && side.right(world.everybody());
    CHECK(good);
    if (good) return;
    std::fprintf(stderr, "  collective %d, size %zu, rank %zu, root %zu, count %zu%s%s: %s\n",
                 static_cast<int>(what.kind), what.size, rank, what.root, what.count,
                 what.uneven ? ", uneven" : "", what.in_place ? ", in place" : "",
                 result.text.c_str());
  });
}

std::vector<Algorithm> algorithms_of(Collective kind) {
  switch (kind) {
    case Collective::all_gather: return {Algorithm::direct, Algorithm::ring};
    case Collective::broadcast: return {Algorithm::flat, Algorithm::tree, Algorithm::direct};
    case Collective::reduce: return {Algorithm::flat, Algorithm::direct};
    default: return {Algorithm::automatic};
  }
}

}  // namespace

TEST(every_collective_is_exact_on_every_rank_in_and_out_of_place) {
  for (const std::size_t size : {1u, 2u, 3u, 5u}) {
    World world(size);
    world.install(1, world.everybody());
    for (const Collective kind : every_collective) {
      for (const Algorithm algorithm : algorithms_of(kind)) {
        for (const std::size_t count : {0u, 1u, 7u, 70'001u}) {
          for (const bool in_place : {false, true}) {
            check_exact(world, {.kind = kind, .size = size, .root = size - 1, .count = count,
                                .in_place = in_place, .algorithm = algorithm});
          }
        }
      }
    }
  }
}

TEST(unequal_parts_arrive_where_they_belong_and_empty_ones_too) {
  for (const std::size_t size : {1u, 2u, 3u, 5u}) {
    World world(size, 2);
    world.install(1, world.everybody());
    for (const Collective kind : every_collective) {
      if (!may_be_uneven(kind)) continue;
      for (const std::size_t count : {0u, 3u, 70'001u}) {
        for (const bool in_place : {false, true}) {
          check_exact(world, {.kind = kind, .size = size, .root = size / 2, .count = count,
                              .uneven = true, .in_place = in_place});
        }
      }
    }
  }
}

TEST(every_rank_can_be_the_root) {
  World world(4);
  world.install(1, world.everybody());
  for (const Collective kind : every_collective) {
    for (std::size_t root = 0; rooted(kind) && root < 4; ++root) {
      for (const std::size_t count : {100u, 40'000u}) {
        check_exact(world, {.kind = kind, .size = 4, .root = root, .count = count});
      }
    }
  }
}

TEST(reductions_in_rank_order_give_the_same_sums) {
  World world(3);
  world.install(1, world.everybody());
  for (const Collective kind : {Collective::reduce, Collective::reduce_scatter}) {
    for (const Algorithm algorithm : algorithms_of(kind)) {
      for (const bool in_place : {false, true}) {
        check_exact(world, {.kind = kind, .size = 3, .root = 1, .count = 90'001,
                            .in_place = in_place, .algorithm = algorithm, .deterministic = true});
      }
    }
  }
}

TEST(half_precision_is_accumulated_in_single_also_by_owners_without_an_output) {
  World world(3);
  world.install(1, world.everybody());
  for (const bool deterministic : {false, true}) {
    for (const Algorithm algorithm : {Algorithm::flat, Algorithm::direct}) {
      World::all(world.everybody(), [&](std::size_t rank) {
        Engine& engine = *world.engines[rank];
        std::vector<std::uint16_t> data(100001, rank == 0 ? 0x6800 : 0x3c00);  // 2048 + 1 + 1
        const BegunStep begun = engine.begin_step("step", 20);
        Posted posted = post_of(begun.step, 0, data.data(), rank == 0 ? data.data() : nullptr,
                                data.size(), Dtype::f16, ReduceOp::sum, algorithm, 1.0,
                                deterministic);
        posted.descriptor.collective = Collective::reduce;
        posted.root_rank = 0;
        engine.post(posted);
        engine.seal(begun.step);
        CHECK(engine.wait_step(begun.step, 20));
        CHECK(engine.result(begun.step).state == StepState::committed);
        for (const std::uint16_t value : data) CHECK(value == (rank == 0 ? 0x6801 : 0x3c00));
        engine.release(begun.step);
      });
    }
  }
}

TEST(a_weighted_average_at_the_root_divides_by_all_weights) {
  World world(3);
  world.install(1, world.everybody());
  for (const Algorithm algorithm : {Algorithm::flat, Algorithm::direct}) {
    World::all(world.everybody(), [&](std::size_t rank) {
      Engine& engine = *world.engines[rank];
      std::vector<double> data(50'021, static_cast<double>(rank * 4));
      const BegunStep begun = engine.begin_step("step", 20);
      Posted posted = post_of(begun.step, 0, data.data(), rank == 2 ? data.data() : nullptr,
                              data.size(), Dtype::f64, ReduceOp::avg, algorithm,
                              static_cast<double>(rank + 1));
      posted.descriptor.collective = Collective::reduce;
      posted.descriptor.root = peer_id(2);  // by name
      engine.post(posted);
      engine.seal(begun.step);
      CHECK(engine.wait_step(begun.step, 20));
      const double due = (0 * 1 + 4 * 2 + 8 * 3) / 6.0;
      for (const double value : data) CHECK(value == (rank == 2 ? due : 4.0 * double(rank)));
      engine.release(begun.step);
    });
  }
}

TEST(elements_without_arithmetic_are_moved_and_not_reduced) {
  CHECK(!supported(Dtype::c64, ReduceOp::sum) && !supported(Dtype::f8_e5m2, ReduceOp::max));
  World world(3);
  world.install(1, world.everybody());
  for (const Dtype dtype : {Dtype::c128, Dtype::c64, Dtype::f8_e4m3fn, Dtype::boolean}) {
    World::all(world.everybody(), [&](std::size_t rank) {
      Engine& engine = *world.engines[rank];
      const std::size_t part = 9'001 * size_of(dtype);
      std::vector<std::uint8_t> data(part, static_cast<std::uint8_t>(rank + 1)), all(3 * part);
      const BegunStep begun = engine.begin_step("step", 20);
      Posted posted = post_of(begun.step, 0, data.data(), all.data(), 9'001, dtype, ReduceOp::sum,
                              Algorithm::automatic);
      posted.descriptor.collective = Collective::all_gather;
      engine.post(posted);
      engine.seal(begun.step);
      CHECK(engine.wait_step(begun.step, 20));
      for (std::size_t i = 0; i < all.size(); ++i) CHECK(all[i] == i / part + 1);
      engine.release(begun.step);
    });
  }
}

TEST(many_collectives_of_one_step_commit_together) {
  World world(3, 2);
  world.install(1, world.everybody());
  World::all(world.everybody(), [&](std::size_t rank) {
    Engine& engine = *world.engines[rank];
    std::vector<Side> sides;
    for (const Collective kind : every_collective) {
      for (const std::size_t count : {11u, 60'000u}) {
        sides.emplace_back(Case{.kind = kind, .size = 3, .root = 1, .count = count}, rank);
      }
    }
    const BegunStep begun = engine.begin_step("step", 20);
    for (Tag i = 0; i < sides.size(); ++i) {
      const Tag tag = rank == 1 ? static_cast<Tag>(sides.size() - 1 - i) : i;
      engine.post(sides[tag].posted(begun.step, tag));
    }
    engine.seal(begun.step);
    CHECK(engine.wait_step(begun.step, 20));
    CHECK(engine.result(begun.step).state == StepState::committed);
    for (const Side& side : sides) CHECK(side.right(world.everybody()));
    engine.release(begun.step);
  });
}

TEST(what_does_not_fit_the_step_is_refused_before_anything_is_sent) {
  World world(2);
  world.install(1, world.everybody());
  std::vector<float> data(8);
  Engine& engine = *world.engines[0];
  const BegunStep begun = engine.begin_step("step", 20);
  const auto refused = [&](Posted posted) {
    try {
      engine.post(posted);
    } catch (const EngineFailure& failure) {
      return failure.code() == "usage";
    }
    return false;
  };
  Posted posted = post_of(begun.step, 0, data.data(), data.data(), 4, Dtype::f32, ReduceOp::sum,
                          Algorithm::automatic);
  posted.root_rank = 0;
  CHECK(refused(posted));  // a root where none is
  posted.descriptor.collective = Collective::broadcast;
  posted.root_rank = 2;
  CHECK(refused(posted));
  posted.root_rank = -1;
  CHECK(refused(posted));
  posted.descriptor.root = peer_id(7);
  CHECK(refused(posted));
  posted.descriptor = {Dtype::f32, ReduceOp::sum, {}, Algorithm::automatic, 0, false,
                       Collective::all_to_all, true, {}};
  posted.send_counts = {1, 1, 1};
  posted.receive_counts = {1, 1};
  CHECK(refused(posted));
  CHECK(engine.stats().progress == 0);
}

TEST(counts_that_contradict_each_other_or_no_memory_can_hold_are_refused) {
  World world(2);
  world.install(1, world.everybody());
  std::vector<float> data(8);
  const BegunStep begun = world.engines[0]->begin_step("step", 20);
  const auto refused = [&](Collective kind, std::vector<std::uint64_t> sends,
                           std::vector<std::uint64_t> receives, int root = -1) {
    Posted posted{begun.step, 0, {}, nullptr, nullptr, 1.0, root, std::move(sends),
                  std::move(receives)};
    posted.input = posted.output = reinterpret_cast<std::byte*>(data.data());
    posted.descriptor.collective = kind;
    posted.descriptor.uneven = !posted.send_counts.empty() || !posted.receive_counts.empty();
    if (!posted.descriptor.uneven) posted.descriptor.count = std::uint64_t{1} << 60;
    try {
      world.engines[0]->post(posted);
    } catch (const EngineFailure& failure) {
      return failure.code() == "usage";
    }
    return false;
  };
  constexpr std::uint64_t huge = std::uint64_t{1} << 62;
  CHECK(refused(Collective::all_to_all, {2, 1}, {1, 1}));           // of oneself
  CHECK(refused(Collective::all_to_all, {1, huge}, {1, huge}));
  CHECK(refused(Collective::all_to_all, {huge, huge}, {huge, huge}));  // wraps round to 0
  CHECK(refused(Collective::gather, {1}, {2, 1}, 0));               // the root's own
  CHECK(refused(Collective::gather, {1}, {}, 0));                   // a root without an output
  CHECK(refused(Collective::gather, {1}, {1, 1}, 1));               // another with one
  CHECK(refused(Collective::scatter, {2, 1}, {1}, 0));
  CHECK(refused(Collective::scatter, {}, {1}, 0));
  CHECK(refused(Collective::scatter, {1, 1}, {1}, 1));
  CHECK(refused(Collective::reduce_scatter, {1, 1}, {1}));
  CHECK(refused(Collective::all_gather, {1}, {1, 1}));
  CHECK(refused(Collective::broadcast, {1, 1}, {}, 0));             // has no parts
  CHECK(refused(Collective::all_gather, {}, {}));                   // 2^62 bytes of each
}

TEST(a_member_that_comes_in_later_counts_neither_in_rank_nor_in_size) {
  World world(3);
  View view = world.view_of(1, world.everybody(), Pause::none);
  view.members[0].first_step = 5;
  const std::vector<std::size_t> early{1, 2};
  for (const std::size_t rank : early) {
    world.engines[rank]->install(view, world.entries_of(world.everybody()), 0, {});
  }
  World::all(early, [&](std::size_t rank) {
    Engine& engine = *world.engines[rank];
    const BegunStep begun = engine.begin_step("step", 20);
    CHECK(begun.rank == static_cast<int>(rank) - 1 && begun.world_size == 2 && begun.epoch == 1);
    Side side({.kind = Collective::all_gather, .size = 2, .count = 100},
              static_cast<std::size_t>(begun.rank));
    engine.post(side.posted(begun.step, 0));
    engine.seal(begun.step);
    CHECK(engine.wait_step(begun.step, 20));
    CHECK(engine.result(begun.step).state == StepState::committed);
    CHECK(side.right({0, 1}));
    engine.release(begun.step);
  });
}

// ---- disagreement

namespace {

/// Rank 0 of two is a raw peer; returns what the engine tells the coordinator about `theirs`.
Suspect told_of(const Posted& ours, const OpenBody& theirs) {
  rig::Gate gate;
  World world(1, 1, gate.port());
  rig::Wire coordinator = gate.accept();
  CHECK(coordinator.next<frames::Hello>().has_value());
  coordinator.write(frames::Frame{frames::Welcome{1}});
  install_with_raw(world, 1);
  RawPeer raw(world, 0);
  Engine& engine = *world.engines[0];
  const BegunStep begun = engine.begin_step("step", 20);
  Posted posted = ours;
  posted.step = begun.step;
  engine.post(posted);
  engine.seal(begun.step);
  raw.open(1, begun.step, 0, theirs);
  const Suspect told = coordinator.next<Suspect>().value_or(Suspect{});
  engine.fail("evicted", "the test is over");
  return told;
}

}  // namespace

TEST(another_root_or_collective_is_told_with_both_names) {
  std::vector<float> data(100);
  Posted ours = post_of(0, 0, data.data(), data.data(), 100, Dtype::f32, ReduceOp::sum,
                        Algorithm::automatic);
  ours.descriptor.collective = Collective::broadcast;
  ours.descriptor.root = raw_id();
  Descriptor theirs = ours.descriptor;
  theirs.root = peer_id(0);
  const Suspect root = told_of(ours, {theirs, 100, 100});
  CHECK(root.code == SuspectCode::descriptor);
  CHECK(root.text.find("broadcast(f32[100], root 00000000)") != std::string::npos);
  CHECK(root.text.find("broadcast(f32[100], root 01000000)") != std::string::npos);
  theirs.collective = Collective::reduce;
  const Suspect kind = told_of(ours, {theirs, 100, 100});
  CHECK(kind.text.find("posted reduce(sum, f32[100], root 01000000)") != std::string::npos);
}

TEST(parts_that_two_peers_count_differently_are_told_with_both_sizes) {
  std::vector<float> data(100);
  Posted ours = post_of(0, 0, data.data(), data.data() + 50, 0, Dtype::f32, ReduceOp::sum,
                        Algorithm::automatic);
  ours.descriptor.collective = Collective::all_to_all;
  ours.descriptor.uneven = true;
  ours.send_counts = {5, 20};
  ours.receive_counts = {7, 20};
  const Suspect told = told_of(ours, {ours.descriptor, 8, 5});
  CHECK(told.code == SuspectCode::descriptor && told.peers == std::vector{raw_id()});
  CHECK(told.text.find("5 elements for the other and 7 expected of it") != std::string::npos);
  CHECK(told.text.find("8 elements for the other and 5 expected of it") != std::string::npos);
}
