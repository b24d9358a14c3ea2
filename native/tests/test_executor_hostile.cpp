// native/tests/test_executor_hostile.cpp — engines beside a member that stalls or lies.
// Ownership: each test owns its world.
// Threads:   the test's, one per rank where engines run, and one that plays the coordinator.
// Errors:    CHECKs.
#include <algorithm>
#include <functional>
#include <random>

#include "raw_steps.hpp"

using namespace world;

namespace {

/// What a correct contribution to the engine's shard looks like; its rank is 1 of 2.
FrameHeader contribution(StepId step) {
  FrameHeader header{.type = FrameType::data, .epoch = 1, .step = step};
  header.shard = 1;
  header.phase = Phase::reduce;
  header.descriptor = static_cast<std::uint32_t>(summed.digest());
  return header;
}

Plan plan_of_two() {
  PlanRequest request;
  request.algorithm = Algorithm::direct;
  request.size = 2;
  request.count = count;
  return make_plan(request);
}

std::size_t slice_bytes() { return 4 * std::size_t{plan_of_two().slice_count}; }

double sorted_ms(std::vector<double> seconds, std::size_t at) {
  std::sort(seconds.begin(), seconds.end());
  return 1e3 * seconds[at];
}

using Attack = std::function<void(RawPeer&, StepId)>;
using Attacks = std::vector<std::pair<const char*, Attack>>;

/// Frames that do not fit the plan of the operation.
Attacks misplaced(std::size_t slice, const rig::Bytes& whole) {
  return {
      {"garbage", [](RawPeer& raw, StepId) { raw.wire.write(std::string(400, 'x')); }},
      {"a payload that is too short",
       [=, &whole](RawPeer& raw, StepId step) {
         raw.say(contribution(step), std::span(whole).first(slice - 4));
       }},
      {"a payload that is too long",
       [=, &whole](RawPeer& raw, StepId step) {
         const rig::Bytes longer(slice + 4);
         raw.say(contribution(step), longer);
       }},
      {"a shard that does not exist",
       [=, &whole](RawPeer& raw, StepId step) {
         FrameHeader header = contribution(step);
         header.shard = 2;
         raw.say(header, whole);
       }},
      {"a shard that is not the engine's to reduce",
       [=, &whole](RawPeer& raw, StepId step) {
         FrameHeader header = contribution(step);
         header.shard = 0;
         raw.say(header, whole);
       }},
      {"a result of the engine's own shard",
       [=, &whole](RawPeer& raw, StepId step) {
         FrameHeader header = contribution(step);
         header.phase = Phase::gather;
         raw.say(header, whole);
       }},
  };
}

/// Frames that fit the plan, but not what may be in them, or how many of them may be.
Attacks malformed(const rig::Bytes& whole) {
  return {
      {"a slice beyond the last",
       [&whole](RawPeer& raw, StepId step) {
         FrameHeader header = contribution(step);
         header.slice = 1'000'000;
         raw.say(header, whole);
       }},
      {"a payload that does not fit its hash",
       [&whole](RawPeer& raw, StepId step) {
         FrameHeader header = contribution(step);
         header.payload_hash = 1;
         raw.say(header, whole);
       }},
      {"a weight that is no number",
       [&whole](RawPeer& raw, StepId step) {
         FrameHeader header = contribution(step);
         header.weight = std::numeric_limits<double>::quiet_NaN();
         raw.say(header, whole);
       }},
      {"more than the eager budget of one operation",
       [&whole](RawPeer& raw, StepId step) {
         FrameHeader header = contribution(step);
         header.tag = 7;
         for (std::uint32_t sent = 0; sent <= eager_operation_bytes; sent += 64 * 1024) {
           header.slice = sent;
           raw.say(header, std::span(whole).first(64 * 1024));
         }
       }},
      {"more than the eager budget of the pair",
       [&whole](RawPeer& raw, StepId step) {
         FrameHeader header = contribution(step + 1);
         for (std::uint64_t sent = 0; sent <= eager_link_bytes; sent += 128 * 1024) {
           ++header.tag;
           // The last ones may find the door closed.
           rig::Bytes frame(header_bytes + 128 * 1024);
           header.length = 128 * 1024;
           header.flags = flag_hashed;
           encode(header, std::span<std::byte, header_bytes>(frame.data(), header_bytes));
           (void)!::send(raw.wire.fd(), frame.data(), frame.size(), MSG_NOSIGNAL);
         }
       }},
  };
}

/// Every attack costs its lane, is counted, and changes nothing of the open step's memory.
void repel(World& world, StepId step, const Attacks& attacks) {
  Engine& engine = *world.engines[0];
  std::uint64_t refused = engine.stats().executor.lanes_refused;
  for (const auto& [name, attack] : attacks) {
    {
      RawPeer raw(world, 0);
      attack(raw, step);
      const bool ended = raw.wire.ends();
      if (!ended) std::fprintf(stderr, "  %s was let in\n", name);
      CHECK(ended);
    }
    ++refused;
    CHECK(rig::eventually([&] { return engine.stats().lanes == 0; }));
    CHECK(engine.stats().executor.lanes_refused == refused);
  }
}

}  // namespace

TEST(a_fence_is_quick_while_windows_are_full_and_a_neighbour_reads_nothing) {
  constexpr std::size_t large = (64u << 20) / 4;
  const Descriptor descriptor{Dtype::f32, ReduceOp::sum, {}, Algorithm::direct, large, false};
  std::vector<std::vector<float>> data(2, std::vector<float>(large, 1.0f));
  World world(2);
  std::vector<RawPeer> stopped;
  for (const std::size_t rank : world.everybody()) stopped.emplace_back(world, rank);
  install_with_raw(world, 1);
  for (const std::size_t rank : world.everybody()) {
    const BegunStep begun = world.engines[rank]->begin_step("step", 20);
    world.engines[rank]->post(post_of(begun.step, 0, data[rank].data(), data[rank].data(), large,
                                      Dtype::f32, ReduceOp::sum, Algorithm::direct));
    world.engines[rank]->seal(begun.step);
  }
  std::vector<double> seconds;
  std::mt19937 dice(5);
  for (Epoch epoch = 1; epoch <= 50; ++epoch) {
    for (RawPeer& peer : stopped) peer.open(epoch, 0, 0, descriptor);  // grants it all
    std::this_thread::sleep_for(std::chrono::microseconds(1000 + dice() % 10000));
    for (const std::size_t rank : world.everybody()) {
      const double before_s = monotonic_s();
      const Report report = world.engines[rank]->fence_for_test(1, epoch + 1);
      seconds.push_back(monotonic_s() - before_s);
      CHECK(report.open.size() == 1 && !report.open[0].complete);
      const auto moved = world.engines[rank]->stats().progress;
      std::this_thread::yield();
      CHECK(world.engines[rank]->stats().progress == moved);  // nothing moves any more
    }
    install_with_raw(world, epoch + 1);
  }
  std::printf("  fence: median %.2f ms, 90 %% %.2f ms, max %.2f ms\n", sorted_ms(seconds, 50),
              sorted_ms(seconds, 90), sorted_ms(seconds, 99));
  // 10 ms is the promise; the worst cases are those of a scheduler with too much to do.
  CHECK(sorted_ms(seconds, 50) < (check::sanitized ? 200 : 10));
  CHECK(sorted_ms(seconds, 90) < (check::sanitized ? 1000 : 50));
  for (const std::size_t rank : world.everybody()) {
    world.engines[rank]->fail("evicted", "the test is over");
    CHECK(std::all_of(data[rank].begin(), data[rank].end(), [](float x) { return x == 1.0f; }));
  }
}

TEST(a_lane_that_breaks_the_protocol_is_dropped_and_nothing_else_is_harmed) {
  const std::size_t slice = slice_bytes();
  const rig::Bytes whole(slice, std::byte{0x3f});
  auto data = ones();  // outlives the engine, which gives it back at its end
  World world(1);
  install_with_raw(world, 1);
  Engine& engine = *world.engines[0];
  const StepId step = post_step(engine, data, false);
  repel(world, step, misplaced(slice, whole));
  repel(world, step, malformed(whole));
  CHECK(engine.stats().executor.lanes_refused == 11);
  CHECK(data == ones());
  // A correct lane of the same peer is welcome again, and the step goes on where it was.
  RawPeer raw(world, 0);
  raw.open(1, step, 0, summed);
  for (std::uint32_t index = 0, done = 0; done < 4 * count / 2; ++index) {
    const rig::Bytes zeros(std::min(slice, 4 * count / 2 - done));
    FrameHeader header = contribution(step);
    header.slice = index;
    raw.say(header, zeros);
    done += static_cast<std::uint32_t>(zeros.size());
  }
  std::size_t results = 0;
  while (results < 4 * count / 2) {
    const auto heard = raw.hear(5000);
    CHECK(heard.has_value());
    if (!heard) return;
    if (heard->header.type == FrameType::data && heard->header.phase == Phase::gather) {
      results += heard->payload.size();
    }
  }
  CHECK(results == 4 * count / 2);
}

TEST(engines_go_on_with_each_other_beside_a_lane_full_of_garbage) {
  World world(2);
  world.install(1, world.everybody());
  std::thread vandal([&] {
    for (int i = 0; i < 20; ++i) {
      RawPeer raw(world, static_cast<std::size_t>(i % 2));
      raw.wire.write(std::string(300, static_cast<char>(i)));
      CHECK(raw.wire.ends());
    }
  });
  World::all(world.everybody(), [&](std::size_t rank) {
    for (int i = 0; i < 30; ++i) {
      auto data = ones();
      CHECK(sum_step(*world.engines[rank], data, Algorithm::direct));
      CHECK(std::all_of(data.begin(), data.end(), [](float x) { return x == 2.0f; }));
    }
  });
  vandal.join();
  for (const std::size_t rank : world.everybody()) {
    CHECK(world.engines[rank]->stats().executor.lanes_refused == 10);
  }
}

TEST(no_more_than_the_eager_budget_goes_to_a_peer_that_has_not_posted) {
  auto data = ones();
  World world(1);
  install_with_raw(world, 1);
  RawPeer raw(world, 0);
  const StepId step = post_step(*world.engines[0], data);
  std::size_t eager = 0, granted = 0;
  while (const auto heard = raw.hear(200)) {
    if (heard->header.type == FrameType::data) eager += heard->payload.size();
  }
  CHECK(eager > 0 && eager <= eager_operation_bytes);
  raw.open(1, step, 0, summed);
  while (const auto heard = raw.hear(200)) {
    if (heard->header.type == FrameType::data) granted += heard->payload.size();
  }
  CHECK(eager + granted == 4 * count / 2);  // the raw peer's shard, whole
}

TEST(a_lane_that_died_with_frames_is_made_good_on_the_next_one) {
  auto data = ones();
  World world(1);
  install_with_raw(world, 1);
  std::size_t first_bytes = 0;
  StepId step = 0;
  {
    RawPeer raw(world, 0);
    step = post_step(*world.engines[0], data);
    raw.open(1, step, 0, summed);
    while (const auto heard = raw.hear(100)) {
      if (heard->header.type == FrameType::data) first_bytes += heard->payload.size();
    }
  }
  CHECK(first_bytes == 4 * count / 2);
  CHECK(rig::eventually([&] { return world.engines[0]->stats().lanes == 0; }));
  RawPeer raw(world, 0);
  bool opened = false, sealed = false, asked = false;
  while (const auto heard = raw.hear(100)) {
    opened = opened || heard->header.type == FrameType::open;
    sealed = sealed || heard->header.type == FrameType::seal;
    asked = asked || heard->header.type == FrameType::ask;
    CHECK(heard->header.type != FrameType::data);  // what is missing is not known yet
  }
  CHECK(opened && sealed && asked);
  // All but the first slice arrived, says the raw peer: the first one comes again, alone.
  const std::size_t slices = (4 * count / 2 + slice_bytes() - 1) / slice_bytes();
  rig::Bytes bitmap((slices + 7) / 8, std::byte{0xff});
  bitmap[0] = std::byte{0xfe};
  FrameHeader have{.type = FrameType::have, .epoch = 1, .step = step};
  raw.say(have, bitmap);
  std::vector<std::uint32_t> again;
  while (const auto heard = raw.hear(100)) {
    if (heard->header.type == FrameType::data) again.push_back(heard->header.slice);
  }
  CHECK(again == std::vector<std::uint32_t>{0});
}
