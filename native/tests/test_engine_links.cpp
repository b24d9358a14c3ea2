// native/tests/test_engine_links.cpp — ways that are cut without a word, and what heartbeats say.
// Ownership: see engine_world.hpp, control_rig.hpp.
// Threads:   see there.
// Errors:    CHECK.
#include <algorithm>
#include <linux/filter.h>
#include <optional>
#include <vector>

#include "control_rig.hpp"
#include "fragile_world.hpp"
#include "listener.hpp"
#include "pccl/lane.hpp"
#include "pccl/sockets.hpp"

namespace {

using namespace world;

constexpr std::size_t count = 100'000;

StepId begin_sum(Engine& engine, std::vector<float>& data) {
  const BegunStep begun = engine.begin_step("step", 20);
  engine.post(post_of(begun.step, 0, data.data(), data.data(), data.size(), Dtype::f32,
                      ReduceOp::sum, Algorithm::direct));
  return begun.step;
}

bool waits_for(const HeartbeatStatus& status, std::size_t rank, WaitKind kind) {
  return std::find(status.waits.begin(), status.waits.end(), WaitOn{peer_id(rank), kind}) !=
         status.waits.end();
}

class ManyFrames final : public FrameSource {
 public:
  bool next(std::uint32_t, OutgoingFrame& frame) noexcept override {
    if (left == 0) return false;
    --left;
    frame.header.fill(std::byte{1});
    frame.payload = bytes.data();
    frame.length = static_cast<std::uint32_t>(bytes.size());
    return true;
  }
  void sent(const OutgoingFrame&) noexcept override {}
  std::vector<std::byte> bytes = std::vector<std::byte>(10'000);
  int left = 1000;
};

/// A lane and the socket at its other end.
struct Pair {
  Pair() {
    rig::Gate gate;
    Fd near;
    CHECK(connect_tcp("127.0.0.1", gate.port(), near) == Status::ok);
    far = gate.accept();
    lane.emplace(make_socket_conduit(std::move(near)), 1, monotonic_s());
  }
  rig::Wire far;
  std::optional<Lane> lane;
};

TEST(a_lane_whose_bytes_nobody_acknowledges_is_cut_and_one_that_nobody_reads_is_not) {
  constexpr double patience_s = 0.4;
  Pair cut, unread, idle;
  sock_filter nothing = BPF_STMT(BPF_RET | BPF_K, 0);
  const sock_fprog program{1, &nothing};
  CHECK(::setsockopt(cut.far.fd(), SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program) == 0);
  const double begun_s = monotonic_s();
  ManyFrames source;
  for (Pair* pair : {&cut, &unread}) {
    source.left = 1000;
    CHECK(pair->lane->pump(source, 1u << 30) == Status::ok);
    CHECK(pair->lane->blocked());
  }
  while (monotonic_s() < begun_s + 1.5) {
    const double now_s = monotonic_s();
    for (Pair* pair : {&cut, &unread, &idle}) pair->lane->look(now_s, false);
    if (now_s < begun_s + patience_s - 0.1) CHECK(!cut.lane->cut(now_s, patience_s));
    CHECK(!unread.lane->cut(now_s, patience_s) && !idle.lane->cut(now_s, patience_s));
    ::poll(nullptr, 0, 20);
  }
  CHECK(cut.lane->cut(monotonic_s(), patience_s));
  CHECK(unread.lane->owing && !idle.lane->owing);
}

TEST(bytes_that_this_side_leaves_unread_count_while_it_runs_and_a_step_does) {
  Pair pair;
  Lane& lane = *pair.lane;
  lane.look(0.0, true);
  lane.look(1.0, true);
  CHECK(lane.unread_s == 0.0);  // there was nothing to read
  const std::vector<std::byte> body(100, std::byte{1});
  CHECK(::send(pair.far.fd(), body.data(), body.size(), 0) == 100);
  while (unread_bytes(lane.fd()) == 0) ::poll(nullptr, 0, 1);
  for (int i = 1; i <= 10; ++i) lane.look(1.0 + 0.1 * i, true);
  CHECK(lane.unread_s > 0.99 && lane.unread_s < 1.01);
  lane.look(60.0, true);  // it was stopped itself: that says nothing of how it reads
  CHECK(lane.unread_s < 1.3);
  lane.look(60.1, false);
  CHECK(lane.unread_s == 0.0);
  lane.look(60.2, true);
  CHECK(lane.unread_s > 0.0);
  lane.bytes_received += 1;  // slow, but it reads
  lane.look(60.3, true);
  CHECK(lane.unread_s == 0.0);
}

TEST(a_lane_that_is_cut_one_way_while_beats_pass_is_replaced_and_nothing_is_lost) {
  FragileWorld world(2);
  std::vector<float> data[2];
  for (auto& one : data) one.assign(count, 1.0f);
  World::all({0, 1}, [&](std::size_t rank) {
    CHECK(sum_step(*world.engines[rank], data[rank], Algorithm::direct));
  });
  world.proxies[1]->deafen(false, true);
  const double begun_s = monotonic_s();
  World::all({0, 1}, [&](std::size_t rank) {
    CHECK(sum_step(*world.engines[rank], data[rank], Algorithm::direct));
    CHECK(std::all_of(data[rank].begin(), data[rank].end(), [](float x) { return x == 4.0f; }));
  });
  std::printf("  mended after %.2f s\n", monotonic_s() - begun_s);
  CHECK(world.engines[0]->stats().executor.lanes_silent == 1);
}

TEST(a_peer_behind_a_cut_way_is_reported_and_its_lanes_are_dialled_again) {
  Listener coordinator;
  FragileWorld world(2, 1, coordinator.port());
  coordinator.greet(peer_id(1));
  std::vector<float> data[2];
  for (auto& one : data) one.assign(count, 1.0f);
  World::all({0, 1}, [&](std::size_t rank) {
    CHECK(sum_step(*world.engines[rank], data[rank], Algorithm::direct));
  });
  world.members[1].endpoint.port = 9;  // nobody there: it stays down
  world.install(2, {0, 1});
  world.proxies[1]->deafen(true, false);
  // Nothing is sent: only the beats tell.
  const auto beat = coordinator.until(peer_id(1), [](const HeartbeatStatus& status) {
    return status.down == std::vector<PeerId>{peer_id(0)};
  });
  CHECK(beat.has_value());
  CHECK(world.engines[1]->stats().lanes == 0);
  world.members[1].endpoint.port = world.proxies[1]->port();
  world.install(3, {0, 1});
  CHECK(coordinator.until(peer_id(1),
                          [](const HeartbeatStatus& status) { return status.down.empty(); }));
}

TEST(a_heartbeat_says_whom_the_oldest_step_waits_for_and_why) {
  Listener coordinator;
  World world(3, 1, coordinator.port());
  coordinator.greet(peer_id(0));
  world.install(1, world.everybody());
  CHECK(coordinator.until(peer_id(0), [](const HeartbeatStatus& status) {
    return status.epoch == 1 && status.step == no_step && status.waiting == Waiting::nothing;
  }));
  std::vector<float> data[3];
  for (auto& one : data) one.assign(count, 1.0f);
  const StepId step = begin_sum(*world.engines[0], data[0]);
  CHECK(coordinator.until(peer_id(0), [&](const HeartbeatStatus& status) {
    return status.step == step && status.waiting == Waiting::program && status.waits.empty();
  }));
  world.engines[0]->seal(step);
  CHECK(coordinator.until(peer_id(0), [&](const HeartbeatStatus& status) {
    return status.waiting == Waiting::peers && status.waits.size() == 2 &&
           waits_for(status, 1, WaitKind::post) && waits_for(status, 2, WaitKind::post);
  }));
  CHECK(begin_sum(*world.engines[1], data[1]) == step);
  world.engines[1]->seal(step);
  std::uint64_t moved = 0;
  CHECK(coordinator.until(peer_id(0), [&](const HeartbeatStatus& status) {
    moved = status.progress;
    return waits_for(status, 1, WaitKind::data) && waits_for(status, 2, WaitKind::post);
  }));
  CHECK(moved > 0);
  CHECK(begin_sum(*world.engines[2], data[2]) == step);
  // Its slices are here, and its seal is missing.
  CHECK(coordinator.until(peer_id(0), [&](const HeartbeatStatus& status) {
    return status.progress > moved && waits_for(status, 2, WaitKind::post);
  }));
  world.engines[2]->seal(step);
  for (const auto& engine : world.engines) CHECK(engine->wait_step(step, 20));
  CHECK(coordinator.until(peer_id(0), [](const HeartbeatStatus& status) {
    return status.step == no_step && status.waits.empty() && status.watermark == 1;
  }));
  CHECK(data[0][0] == 3.0f);
}

TEST(bytes_for_a_peer_that_cannot_be_reached_stand_still) {
  Listener coordinator;
  std::vector<float> data[2];  // longer than the engines, which give back what a step has not done
  for (auto& one : data) one.assign(count, 1.0f);
  FragileWorld world(2, 1, coordinator.port());
  coordinator.greet(peer_id(0));
  World::all({0, 1}, [&](std::size_t rank) {
    CHECK(sum_step(*world.engines[rank], data[rank], Algorithm::direct));
  });
  world.members[1].endpoint.port = 9;
  world.install(2, {0, 1});
  world.proxies[1]->deafen(true, false);
  const StepId step = begin_sum(*world.engines[0], data[0]);
  world.engines[0]->seal(step);
  CHECK(coordinator.until(peer_id(0), [](const HeartbeatStatus& status) {
    return waits_for(status, 1, WaitKind::credit) && waits_for(status, 1, WaitKind::post) &&
           status.down == std::vector<PeerId>{peer_id(1)};
  }));
}

}  // namespace
