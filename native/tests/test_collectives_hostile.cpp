// native/tests/test_collectives_hostile.cpp — frames that a peer should not have said, against
// collectives that only copy: they cost their lane, and no byte outside the plan is written.
// Ownership: memory outlives the world, which gives it back at its end.
// Threads:   the test's and the engine's.
// Errors:    CHECKs.
#include <algorithm>
#include <array>
#include <cstring>
#include <functional>

#include "raw_peer.hpp"

using namespace world;

namespace {

constexpr std::size_t theirs = 70'000;  // elements of the raw peer's part: two slices
constexpr std::size_t ours = 1'000;
constexpr std::size_t slice = slice_bytes_max / sizeof(float);
constexpr float untouched = -1.0f;

/// A gather of two with its root in the engine, rank 1; the raw peer is rank 0.
struct Gather {
  std::vector<float> input = std::vector<float>(ours, 2.0f);
  std::vector<float> output = std::vector<float>(theirs + ours + 16, untouched);
  OpenBody said;  // by the raw peer

  Posted posted(StepId step) {
    Posted made{step, 0, {}, reinterpret_cast<std::byte*>(input.data()),
                reinterpret_cast<std::byte*>(output.data()), 1.0, 1, {ours}, {theirs, ours}};
    made.descriptor.collective = Collective::gather;
    made.descriptor.uneven = true;
    said = {made.descriptor, theirs, 0};
    said.descriptor.root = peer_id(0);
    return made;
  }
  [[nodiscard]] FrameHeader part(StepId step, std::uint32_t index) const {
    FrameHeader header{.type = FrameType::data, .epoch = 1, .step = step};
    header.phase = Phase::gather;
    header.slice = index;
    header.descriptor = static_cast<std::uint32_t>(said.digest());
    return header;
  }
  /// Nothing but the own part has come to its place.
  [[nodiscard]] bool clean() const {
    const auto is = [](float due) { return [due](float x) { return x == due; }; };
    const auto begin = output.begin();
    const auto end_theirs = begin + static_cast<long>(theirs);
    const auto end_ours = end_theirs + static_cast<long>(ours);
    return std::all_of(begin, end_theirs, is(untouched)) &&
           std::all_of(end_theirs, end_ours, is(2.0f)) &&
           std::all_of(end_ours, output.end(), is(untouched));
  }
};

rig::Bytes filled(std::size_t elements, float value) {
  rig::Bytes bytes(elements * sizeof value);
  for (std::size_t i = 0; i < elements; ++i) {
    std::memcpy(bytes.data() + i * sizeof value, &value, sizeof value);
  }
  return bytes;
}

}  // namespace

TEST(frames_that_do_not_fit_a_gather_cost_their_lane_and_write_nothing) {
  Gather gather;
  World world(1);
  install_with_raw(world, 1);
  Engine& engine = *world.engines[0];
  const StepId step = engine.begin_step("step", 20).step;
  engine.post(gather.posted(step));
  const rig::Bytes whole = filled(slice, 7.0f);
  const std::span<const std::byte> rest(whole.data(), (theirs - slice) * sizeof(float));
  using Change = std::function<void(FrameHeader&)>;
  const std::pair<Change, std::span<const std::byte>> attacks[] = {
      {[](FrameHeader& header) { header.phase = Phase::reduce; }, whole},
      {[](FrameHeader& header) { header.shard = 1; }, whole},  // the root's own
      {[](FrameHeader& header) { header.shard = 2; }, whole},
      {[](FrameHeader& header) { header.slice = 2; }, rest},
      {[](FrameHeader& header) { header.slice = 0xffffffff; }, whole},
      {[](FrameHeader& header) { header.slice = 1; }, whole},  // beyond the end of the part
      {[](FrameHeader&) {}, rest},
      {[](FrameHeader& header) { header.group = 3; }, whole},
  };
  std::uint64_t refused = 0;
  for (const auto& [change, body] : attacks) {
    RawPeer raw(world, 0);
    raw.open(1, step, 0, gather.said);
    FrameHeader header = gather.part(step, 0);
    change(header);
    raw.say(header, body);
    CHECK(raw.wire.ends());
    ++refused;
    CHECK(rig::eventually([&] { return engine.stats().executor.lanes_refused == refused; }));
    CHECK(gather.clean());
  }

  RawPeer raw(world, 0);
  raw.open(1, step, 0, gather.said);
  FrameHeader other = gather.part(step, 0);
  other.descriptor ^= 1;  // of an operation with other sizes: what OPEN tells
  raw.say(other, whole);
  raw.say(gather.part(step, 1), rest);
  raw.say(gather.part(step, 0), whole);
  raw.say(gather.part(step, 0), filled(slice, 9.0f));  // once more, and something else
  const auto arrived = [&] { return engine.stats().progress >= theirs * sizeof(float); };
  CHECK(rig::eventually(arrived));
  CHECK(rig::eventually([&] { return engine.stats().executor.frames_discarded >= 2; }));
  CHECK(engine.stats().executor.lanes_refused == refused);
  engine.seal(step);
  bool done = false;
  while (const auto heard = raw.hear(done ? 50 : 5000)) {
    done = done || heard->header.type == FrameType::done;
  }
  CHECK(done);
  const auto end = gather.output.begin() + static_cast<long>(theirs);
  CHECK(std::all_of(gather.output.begin(), end, [](float x) { return x == 7.0f; }));
  CHECK(gather.output.back() == untouched);
}

TEST(half_a_broadcast_is_taken_back_when_its_root_goes) {
  std::vector<float> data(4 * slice, 5.0f);
  World world(1);
  install_with_raw(world, 1);
  Engine& engine = *world.engines[0];
  const StepId step = engine.begin_step("step", 20).step;
  Posted posted = post_of(step, 0, data.data(), data.data(), data.size(), Dtype::f32,
                          ReduceOp::sum, Algorithm::automatic);
  posted.descriptor.collective = Collective::broadcast;
  posted.root_rank = 0;
  engine.post(posted);
  engine.seal(step);
  RawPeer raw(world, 0);
  FrameHeader header{.type = FrameType::data, .epoch = 1, .step = step};
  header.phase = Phase::gather;
  header.descriptor = static_cast<std::uint32_t>(posted.descriptor.digest());  // its root is zeros
  for (const std::uint32_t index : {0u, 2u}) {
    header.slice = index;
    raw.say(header, filled(slice, 8.0f));
  }
  header.slice = 3;  // and half of another one
  const rig::Bytes half = filled(slice, 9.0f);
  header.length = static_cast<std::uint32_t>(half.size());
  header.flags = flag_hashed;
  std::array<std::byte, header_bytes> front;
  encode(header, front);
  raw.wire.write(front.data(), front.size());
  raw.wire.write(half.data(), half.size() / 2);
  CHECK(rig::eventually([&] { return engine.stats().progress >= 2 * slice * sizeof(float); }));
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  const Report report = engine.fence_for_test(1, 2);
  CHECK(report.open.size() == 1 && !report.open[0].complete && !report.open[0].bound);
  CHECK(data[0] == 8.0f && data[2 * slice] == 8.0f && data[slice] == 5.0f);
  world.install(2, {0}, {{step, Verdict::fail, SuspectCode::view_changed, "its root is gone"}});
  CHECK(engine.wait_step(step, 10));
  CHECK(std::all_of(data.begin(), data.end(), [](float x) { return x == 5.0f; }));
  raw.wire.write(half.data(), half.size() / 2);  // the rest comes late, and goes nowhere
  CHECK(sum_step(engine, data, Algorithm::automatic));
  CHECK(std::all_of(data.begin(), data.end(), [](float x) { return x == 5.0f; }));
}
