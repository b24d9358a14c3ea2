// native/tests/test_executor_told.cpp — what an engine tells the coordinator of its steps.
// Ownership: each test owns its world.
// Threads:   the test's, which plays the coordinator, and the engine's.
// Errors:    CHECKs.
#include "raw_steps.hpp"

using namespace world;

namespace {

/// An engine in a view with a RawPeer, and the coordinator that it tells.
struct Told {
  rig::Gate gate;
  World world{1, 1, gate.port()};
  rig::Wire coordinator = gate.accept();
  Engine& engine = *world.engines[0];
  Told() {
    CHECK(coordinator.next<frames::Hello>().has_value());
    coordinator.write(frames::Frame{frames::Welcome{1}});
    install_with_raw(world, 1);
  }
};

}  // namespace

TEST(what_goes_wrong_in_a_step_is_told_to_the_coordinator) {
  auto data = ones();  // outlives the engine
  Told told;
  auto& [gate, world, coordinator, engine] = told;
  RawPeer raw(world, 0);
  const auto suspicion = [&] { return coordinator.next<Suspect>().value_or(Suspect{}); };

  // An empty step: both are done at once, but with other results.
  const StepId empty = engine.begin_step("step", 20).step;
  engine.seal(empty);
  Digest manifest, digest;
  while (const auto heard = raw.hear(1000)) {
    if (heard->header.type != FrameType::done) continue;
    DoneBody body;
    decode(std::span<const std::byte, done_bytes>(heard->payload.data(), done_bytes), body);
    manifest = body.manifest;
    digest = body.digest;
    break;
  }
  raw.done(1, empty, manifest, {digest.low + 1, digest.high});
  const Suspect corrupt = suspicion();
  CHECK(corrupt.code == SuspectCode::digest && corrupt.step == empty && corrupt.epoch == 1);
  CHECK(corrupt.peers == std::vector{raw_id()});

  // Another operation under the same tag.
  const StepId step = post_step(engine, data);
  Descriptor other = summed;
  other.dtype = Dtype::f64;
  raw.open(1, step, 0, other);
  const Suspect mismatch = suspicion();
  CHECK(mismatch.code == SuspectCode::descriptor && mismatch.step == step);
  CHECK(mismatch.text.find("f32[300000]") != std::string::npos);
  CHECK(mismatch.text.find("f64[300000]") != std::string::npos);

  // More operations than here.
  const StepId more = engine.begin_step("step", 20).step;
  engine.seal(more);
  raw.open(1, more, 3, summed);
  raw.seal(1, more, {1, 2}, 1);
  const Suspect unequal = suspicion();
  CHECK(unequal.code == SuspectCode::descriptor && unequal.step == more);
  CHECK(unequal.text.find("tag 3") != std::string::npos);
  CHECK(unequal.text.find("posted nothing") != std::string::npos);

  // The program's own deadline.
  engine.propose_failure(step, SuspectCode::deadline, "took too long");
  const Suspect late = suspicion();
  CHECK(late.code == SuspectCode::deadline && late.step == step && late.epoch == 1);
  CHECK(late.text == "took too long");
  CHECK(!engine.wait_step(step, 0.01));  // a proposal decides nothing

  coordinator.write(frames::Frame{frames::Flush{1, 2}});
  const Report report = coordinator.next<Report>().value_or(Report{});
  CHECK(report.target == 2 && report.open.size() == 3);
  install_with_raw(world, 2, {{empty, Verdict::fail, SuspectCode::digest, "a"},
                              {step, Verdict::fail, SuspectCode::deadline, "b"},
                              {more, Verdict::fail, SuspectCode::descriptor, "c"}});
  CHECK(engine.wait_step(step, 10));
  CHECK(engine.result(step).state == StepState::failed && engine.result(step).text == "b");
  CHECK(data == ones());
}

TEST(what_is_to_be_said_later_is_said_while_the_step_is_open_unless_it_was_taken_back) {
  auto data = ones();  // outlives the engine
  Told told;
  auto& [gate, world, coordinator, engine] = told;
  const StepId step = post_step(engine, data);
  engine.propose_failure(step, SuspectCode::excluded, "never said", 0.01);
  engine.propose_failure(step, SuspectCode::none, "", 0.01);
  const auto nothing_is_said = [&] {
    for (int beats = 0; beats < 3;) {
      const auto frame = coordinator.read_frame();
      CHECK(frame && !std::holds_alternative<Suspect>(*frame));
      if (!frame || std::holds_alternative<frames::Heartbeat>(*frame)) ++beats;
    }
  };
  nothing_is_said();
  engine.propose_failure(step, SuspectCode::excluded, "runs no Python", 0.01);
  for (const Epoch epoch : {1, 2}) {  // once in each view, however many beats there are
    const Suspect overdue = coordinator.next<Suspect>().value_or(Suspect{});
    CHECK(overdue.code == SuspectCode::excluded && overdue.step == step && overdue.epoch == epoch);
    CHECK(overdue.text == "runs no Python");
    nothing_is_said();
    if (epoch == 2) break;
    coordinator.write(frames::Frame{frames::Flush{1, 2}});
    CHECK(coordinator.next<Report>().has_value());
    install_with_raw(world, 2, {{step, Verdict::retry, SuspectCode::none, {}}});
  }
}
