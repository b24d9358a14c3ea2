// native/tests/test_tls_engine.cpp — engines of a secured run: exact sums, and who is kept out.
// Ownership: each test owns its world.
// Threads:   one per rank.
// Errors:    CHECKs.
#include "engine_world.hpp"
#include "raw_peer.hpp"
#include "tls_rig.hpp"

using namespace world;

namespace {

std::vector<float> pattern(std::size_t rank, std::size_t count) {
  std::vector<float> data(count);
  for (std::size_t i = 0; i < count; ++i) data[i] = static_cast<float>((i * 31 + rank * 7) % 251);
  return data;
}

bool exact(const std::vector<float>& data, std::size_t ranks) {
  for (std::size_t i = 0; i < data.size(); ++i) {
    float sum = 0;
    for (std::size_t rank = 0; rank < ranks; ++rank) {
      sum += static_cast<float>((i * 31 + rank * 7) % 251);
    }
    if (data[i] != sum) return false;
  }
  return true;
}

}  // namespace

TEST(sums_over_encrypted_lanes_are_exact) {
  const rig_tls::Authority authority;
  for (const std::size_t size : {2u, 3u}) {
    for (const std::uint16_t lanes : {std::uint16_t{1}, std::uint16_t{3}}) {
      World world(size, lanes, 9, false, [&](std::size_t) { return authority.context(); });
      world.install(1, world.everybody());
      World::all(world.everybody(), [&](std::size_t rank) {
        for (const Algorithm algorithm :
             {Algorithm::exchange, Algorithm::direct, Algorithm::ring}) {
          for (const std::size_t count : {0u, 1u, 7u, 1000u, 70001u, 3000001u}) {
            auto data = pattern(rank, count);
            CHECK(sum_step(*world.engines[rank], data, algorithm));
            CHECK(exact(data, size));
          }
        }
      });
      CHECK(world.lanes_ended_by_silence_alone());
      for (const auto& engine : world.engines) {
        CHECK(engine->stats().executor.bytes_by_memory == 0);
        CHECK(engine->stats().control.unproven == 0);
      }
    }
  }
}

TEST(payloads_of_a_secured_run_go_through_memory_only_if_that_is_allowed) {
  const rig_tls::Authority authority;
  World world(2, 1, 9, true, [&](std::size_t) { return authority.context(); });
  world.install(1, world.everybody());
  World::all(world.everybody(), [&](std::size_t rank) {
    for (int round = 0; round < 4; ++round) {
      auto data = pattern(rank, 1000003);
      CHECK(sum_step(*world.engines[rank], data, Algorithm::direct));
      CHECK(exact(data, 2));
    }
  });
  CHECK(world.engines[0]->stats().executor.bytes_by_memory > 0);
}

namespace {

/// Whether two ranks get a step through within `timeout_s`.
bool sums(World& world, double timeout_s) {
  world.install(1, world.everybody());
  std::atomic<int> done{0};
  World::all(world.everybody(), [&](std::size_t rank) {
    auto data = pattern(rank, 1000);
    const BegunStep begun = world.engines[rank]->begin_step("step", timeout_s);
    world.engines[rank]->post(post_of(begun.step, 0, data.data(), data.data(), data.size(),
                                      Dtype::f32, ReduceOp::sum, Algorithm::automatic));
    world.engines[rank]->seal(begun.step);
    if (world.engines[rank]->wait_step(begun.step, timeout_s)) ++done;
    world.engines[rank]->fail("closed", "the test is over");
  });
  return done == 2;
}

}  // namespace

TEST(a_certificate_of_another_ca_opens_no_lane) {
  const rig_tls::Authority ours;
  const rig_tls::Authority theirs;
  World world(2, 1, 9, false,
              [&](std::size_t rank) { return (rank == 0 ? ours : theirs).context(); });
  CHECK(!sums(world, 0.7));
  CHECK(world.engines[0]->stats().lanes + world.engines[1]->stats().lanes == 0);
  CHECK(world.engines[0]->stats().control.unproven > 0);
}

TEST(an_expired_certificate_opens_no_lane) {
  const rig_tls::Authority authority;
  World world(2, 1, 9, false, [&](std::size_t rank) {
    return authority.context(authority.issue(-7200, rank == 0 ? 3600 : -60));
  });
  CHECK(!sums(world, 0.7));
  CHECK(world.engines[0]->stats().control.unproven > 0);
}

TEST(a_renewed_certificate_of_the_same_key_is_taken_and_another_key_is_not) {
  const rig_tls::Authority authority;
  World world(2, 1, 9, false, [&](std::size_t) { return authority.context(); });
  std::string code;
  try {
    world.engines[0]->set_tls(authority.context());
  } catch (const EngineFailure& failure) {
    code = failure.code();
  }
  CHECK(code == "usage");
  CHECK(sums(world, 20));
}

TEST(a_plain_peer_and_a_secured_one_refuse_each_other) {
  const rig_tls::Authority authority;
  for (const std::size_t secured : {0u, 1u}) {
    World world(2, 1, 9, false, [&](std::size_t rank) {
      return rank == secured ? authority.context() : nullptr;
    });
    CHECK(!sums(world, 0.7));
    CHECK(world.engines[0]->stats().lanes + world.engines[1]->stats().lanes == 0);
    CHECK(world.engines[0]->stats().control.dropped + world.engines[1]->stats().control.dropped >
          0);
  }
}
