// native/tests/test_tls_lanes.cpp — encrypted lanes that are relayed, renewed, rekeyed, harmed on
// their way, and fenced while they stand still.
// Ownership: each test owns its world.
// Threads:   one per rank.
// Errors:    CHECKs.
#include <algorithm>
#include <atomic>

#include "control_rig.hpp"
#include "tls_world.hpp"

using namespace world;
using rig::eventually;

// --- through a relay

TEST(a_relay_carries_encrypted_lanes_of_which_it_hears_nothing) {
  const rig_tls::Authority authority;
  for (const bool secured : {true, false}) {
    const Contexts tls = [&](std::size_t) { return secured ? authority.context() : nullptr; };
    World world(3, 1, 9, false, tls);
    TlsProxy at_relay(world.engines[1]->port());
    for (const std::size_t hidden : {0u, 2u}) world.members[hidden].endpoint.port = 0;
    world.members[1].endpoint.port = at_relay.port();
    world.install(1, world.everybody());
    sums(world, world.everybody(), 6);
    const EngineStats via = world.engines[1]->stats();
    CHECK(via.control.tunnels == 1 && via.control.relayed_bytes > 6 * count);
    // Its own share it sums itself: what it must not hear is what the two others say to each other,
    // and all that passes at its door is heard here.
    for (const float value : {mark, 3 * mark}) {
      const std::vector<float> needle(4, value);
      CHECK(at_relay.heard(std::as_bytes(std::span(needle))) == !secured);
    }
    CHECK(at_relay.heard_bytes() > 6 * count);
  }
}

// --- keys and certificates that change

TEST(sums_are_exact_whatever_the_lanes_are_sealed_by_and_however_often_keys_change) {
  const rig_tls::Authority authority;
  for (const LaneSealing& sealing : {LaneSealing{true, 64 * 1024, 3}, LaneSealing{true, 1000, 1},
                                     LaneSealing{true, 256 * 1024, 5}, LaneSealing{false}}) {
    World world(3, 2, 9, false, [&](std::size_t) {
      return std::make_shared<const TlsContext>(authority.material(authority.issue()), sealing);
    });
    world.install(1, world.everybody());
    sums(world, world.everybody(), 6, 70'001);
    CHECK(world.lanes_ended_by_silence_alone());
  }
}

namespace {

constexpr long short_s = 3;  // a certificate that is about to end is good so long, or one less

/// Steps go on while certificates are renewed and lanes die; then the first ones have ended.
bool goes_on(bool renews) {
  const rig_tls::Authority authority;
  std::vector<rig_tls::Who> whos;
  for (int i = 0; i < 2; ++i) whos.push_back(authority.issue(-300, short_s));
  const double made_s = monotonic_s();
  HarmedWorld world(2, 2, [&](std::size_t rank) { return authority.context(whos[rank]); });
  sums(world, world.everybody(), 1);
  std::atomic<bool> over{false};
  std::thread renewing([&] {
    for (int i = 0; !over; ++i) {
      for (std::size_t rank = 0; rank < 2 && renews; ++rank) {
        world.engines[rank]->set_tls(authority.context(authority.renew(whos[rank])));
      }
      if (i % 4 == 0) world.proxies[static_cast<std::size_t>(i / 4 % 2)]->cut(1000);
      ::poll(nullptr, 0, 10);
    }
  });
  while (monotonic_s() < made_s + 0.4 * static_cast<double>(short_s)) {
    sums(world, world.everybody(), 3);
  }
  over = true;
  renewing.join();
  while (monotonic_s() < made_s + static_cast<double>(short_s) + 1.2) ::poll(nullptr, 0, 20);
  for (const auto& proxy : world.proxies) proxy->cut_all();
  if (renews) {
    sums(world, world.everybody(), 3);
    CHECK(world.proxies[0]->cuts() + world.proxies[1]->cuts() > (check::sanitized ? 0 : 2));
    return world.engines[0]->stats().control.unproven == 0;
  }
  const auto unproven = [&] { return world.engines[0]->stats().control.unproven > 0; };
  const bool refused = eventually(unproven);
  CHECK(refused && world.engines[0]->stats().lanes == 0);
  for (const auto& engine : world.engines) engine->fail("closed", "the test is over");
  return !refused;
}

}  // namespace

TEST(renewed_certificates_open_the_next_lanes_while_steps_go_on) { CHECK(goes_on(true)); }

TEST(without_renewal_no_lane_comes_up_when_the_certificate_has_ended) { CHECK(!goes_on(false)); }

// --- harm on the way

TEST(a_bit_turned_in_a_lane_in_the_middle_of_an_all_reduce_costs_the_lane_and_no_sum) {
  const rig_tls::Authority authority;
  HarmedWorld world(2, 1, [&](std::size_t) { return authority.context(); });
  sums(world, world.everybody(), 1);
  TlsProxy& proxy = *world.proxies[0];
  TlsProxy& other = *world.proxies[1];
  const int rounds = check::sanitized ? 12 : 60;
  int turned = 0;
  for (int round = 0; round < rounds; ++round) {
    // Large blocks are payloads, small ones what is said around them; all over the block.
    const std::size_t least = round % 3 == 0 ? 60 : 20'000;
    const int before = proxy.flips() + other.flips();
    for (TlsProxy* one : {&proxy, &other}) {
      one->flip(least, static_cast<std::size_t>(round * 1000 / rounds));
    }
    std::atomic<bool> good{true};
    World::all(world.everybody(), [&](std::size_t rank) {
      Engine& engine = *world.engines[rank];
      std::vector<float> data(count, mark);
      const BegunStep begun = engine.begin_step("step", 20);
      engine.post(post_of(begun.step, 0, data.data(), data.data(), count, Dtype::f32,
                          ReduceOp::sum, Algorithm::direct));
      engine.seal(begun.step);
      good = engine.wait_step(begun.step, 20) && good;
      const StepResult result = engine.result(begun.step);
      good = result.state == StepState::committed && result.retries == 0 && good;
      good = std::all_of(data.begin(), data.end(), [](float x) { return x == 2 * mark; }) && good;
      engine.release(begun.step);
    });
    CHECK(good);
    if (!good) std::abort();
    turned += proxy.flips() + other.flips() - before;
  }
  const auto lost = world.engines[0]->stats().executor.lanes_lost +
                    world.engines[1]->stats().executor.lanes_lost;
  std::printf("  %d bits turned, %llu lanes lost\n", turned,
              static_cast<unsigned long long>(lost));
  CHECK(turned >= rounds);
  CHECK(lost > 0);
}

// --- fences while nothing moves

namespace {

constexpr double fence_s = check::sanitized ? 1.0 : 0.1;  // 10 ms, on a machine that is shared

}  // namespace

TEST(a_fence_does_not_wait_for_a_sealed_write_that_stands_still) {
  const rig_tls::Authority authority;
  HarmedWorld world(2, 1, [&](std::size_t) { return authority.context(); });
  sums(world, world.everybody(), 1);
  constexpr std::size_t much = 4'000'000;
  std::vector<float> data[2];
  for (auto& one : data) one.assign(much, mark);
  for (const auto& proxy : world.proxies) proxy->stall(true);
  std::thread program([&] {
    World::all({0, 1}, [&](std::size_t rank) {
      CHECK(sum_step(*world.engines[rank], data[rank], Algorithm::direct, 40));
    });
  });
  // Each side has sent what the way takes, and is at a piece that does not go out.
  const auto all_posted = [&] {
    return world.engines[0]->stats().open_steps + world.engines[1]->stats().open_steps == 2;
  };
  CHECK(eventually(all_posted));
  ::poll(nullptr, 0, 150);
  Report reports[2];
  double slowest_s = 0;
  for (std::size_t rank = 0; rank < 2; ++rank) {
    slowest_s = std::max(slowest_s, fenced(*world.engines[rank], 2, reports[rank]));
  }
  std::printf("  fenced within %.2f ms\n", 1e3 * slowest_s);
  CHECK(slowest_s < fence_s);
  CHECK(reports[0].open.size() == 1 && !reports[0].open[0].complete);
  // Its memory is the caller's again: what it writes there now is not sent, and is what is summed.
  for (const auto& proxy : world.proxies) proxy->stall(false);
  world.install(2, world.everybody(),
                {{reports[0].open[0].step, Verdict::retry, SuspectCode::none, {}}});
  program.join();
  for (const auto& one : data) {
    CHECK(std::all_of(one.begin(), one.end(), [](float x) { return x == 2 * mark; }));
  }
}

TEST(a_fence_does_not_wait_for_a_handshake_that_stands_still) {
  const rig_tls::Authority authority;
  World world(2, 2, 9, false, [&](std::size_t) { return authority.context(); });
  rig::Gate deaf[2];  // takes connections, and says nothing
  for (std::size_t rank = 0; rank < 2; ++rank) {
    world.members[rank].endpoint.port = deaf[rank].port();
  }
  world.install(1, world.everybody());
  std::vector<rig::Wire> strangers;
  for (int i = 0; i < 8; ++i) {  // who begin a greeting, and do not end it
    strangers.push_back(rig::Wire::dial(world.engines[0]->port()));
    strangers.back().write(std::string("\x16\x03\x01\x02\x00\x01", 6));
  }
  std::vector<float> data(1000, mark);
  const BegunStep begun = world.engines[0]->begin_step("step", 5);
  world.engines[0]->post(post_of(begun.step, 0, data.data(), data.data(), data.size(), Dtype::f32,
                                 ReduceOp::sum, Algorithm::direct));
  world.engines[0]->seal(begun.step);
  CHECK(deaf[0].rings(2000) || deaf[1].rings(2000));
  for (Epoch epoch = 2; epoch < 12; ++epoch) {
    Report report;
    CHECK(fenced(*world.engines[0], epoch, report) < fence_s);
    ::poll(nullptr, 0, 5);
  }
  world.engines[0]->fail("closed", "the test is over");
}
