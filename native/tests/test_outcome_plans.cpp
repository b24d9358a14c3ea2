// native/tests/test_outcome_plans.cpp — planned views in the outcome machine.
// Ownership: values of each test.
// Threads:   the main thread.
// Errors:    CHECKs.
#include "outcome_rig.hpp"

using namespace rig;

TEST(a_promise_holds_the_gate_until_the_plan_is_activated_or_cancelled) {
  Peer peer = pair_of(0, 1);
  CHECK(peer.begin() == StepId{0});
  CHECK(peer.machine.hold(1, 2) == 1);
  CHECK(!peer.begin());
  CHECK(peer.machine.hold(1, 2) == 1);  // asked again: the same answer
  peer.cancel_plan(2);
  CHECK(peer.begin() == StepId{1});
  CHECK(peer.machine.hold(1, 3) == 2);
  CHECK(!peer.begin());
  peer.activate(view_of(3, {{0}, {1}, {2}}), 5);
  CHECK(peer.begin() == StepId{2});
  CHECK(peer.all<Start>()[0].epoch == 1);  // steps before the fifth are run by the old members
}

TEST(a_promise_asked_for_after_its_plan_holds_nothing) {
  Peer peer = pair_of(0, 1);
  CHECK(peer.machine.hold(1, 2) == 0);
  peer.activate(view_of(2, {{0}, {1}, {2}}), 1);
  CHECK(peer.machine.hold(1, 2) == 0);  // a repetition that was overtaken
  CHECK(peer.begin() == StepId{0});
  CHECK(peer.begin() == StepId{1});
  CHECK(peer.machine.view().epoch == 2);
  CHECK(peer.machine.hold(1, 2) == 0);
  CHECK(peer.begin() == StepId{2});
  CHECK(peer.machine.hold(0, 3) == 3);  // an older coordinator's
  CHECK(peer.begin() == StepId{3});
}

TEST(a_waiting_retry_is_promised_as_well) {
  Peer peer = pair_of(0, 1);
  CHECK(peer.begin() == StepId{0});
  (void)peer.machine.fence(1, 2);
  CHECK(peer.install(view_of(2, {{0}}, Pause::waits)) == Status::ok);  // too few: paused
  CHECK(peer.did_to<Undo>(0) && !peer.did_to<Start>(0));
  CHECK(peer.machine.waiting_at_gate());
  CHECK(!peer.begin());
  CHECK(peer.machine.hold(1, 3) == 0);
  peer.activate(view_of(3, {{0}, {2}}), 0);
  CHECK(peer.did_to<Start>(0));
  CHECK(peer.all<Start>()[0].epoch == 3);
  CHECK(peer.machine.participants(0).size() == 2);
}

TEST(a_promise_is_above_every_step_that_is_decided_so_that_a_joiner_runs_none_again) {
  Peer peer = pair_of(0, 1);
  CHECK(peer.begin() == StepId{0});
  CHECK(peer.begin() == StepId{1});
  peer.complete(1, 1);
  (void)peer.machine.fence(1, 2);
  const Decision committed{1, Verdict::commit, SuspectCode::none, {}};
  const Decision failed{4, Verdict::fail, SuspectCode::deadline, "too slow"};
  CHECK(peer.install(view_of(2, {{0}}, Pause::waits), {committed, failed}) == Status::ok);
  CHECK(peer.committed(1) && peer.machine.waiting_at_gate());  // step 0 runs again, after step 1
  CHECK(peer.machine.hold(1, 3) == 5);  // step 4 has failed for those who had begun it
  peer.activate(view_of(3, {{0}, {2}}), 5);
  CHECK(peer.did_to<Start>(0));
  CHECK(peer.all<Start>()[0].epoch == 2);  // by itself: the joiner comes later
}

TEST(the_view_switches_at_the_first_step_with_the_plans_name) {
  Peer peer = pair_of(0, 1);
  peer.activate(view_of(2, {{0}, {1}, {2}}), 1, 77);
  CHECK(peer.begin(77) == StepId{0});  // named so, but before the plan's step
  CHECK(peer.all<Switched>().empty());
  CHECK(peer.begin(42) == StepId{1});  // late enough, but of another name
  CHECK(peer.all<Switched>().empty());
  CHECK(peer.begin(77) == StepId{2});
  CHECK(peer.all<Switched>().size() == 1);
  CHECK(peer.all<Switched>()[0].epoch == 2 && peer.all<Switched>()[0].step == 2);
  CHECK(peer.machine.participants(1).size() == 2);
  CHECK(peer.machine.participants(2).size() == 3);
  // The steps that were running end with those who began them.
  peer.complete(0, 1);
  peer.done(1, 0, 1);
  CHECK(peer.committed(0));
  const Report report = peer.machine.fence(1, 3);
  CHECK(report.switched && report.switch_step == 2 && report.epoch == 2);
  CHECK(report.open.size() == 2 && report.open[0].epoch == 1 && report.open[1].epoch == 2);
}

TEST(an_activation_of_the_past_or_while_frozen_is_ignored) {
  Peer peer = pair_of(0, 1);
  peer.activate(view_of(1, {{0}, {1}, {2}}), 0);
  CHECK(peer.begin() == StepId{0});
  CHECK(peer.machine.view().members.size() == 2);
  (void)peer.machine.fence(1, 3);
  peer.activate(view_of(2, {{0}, {1}, {2}}), 0);
  CHECK(peer.install(view_of(3, {{0}, {1}})) == Status::ok);
  CHECK(peer.all<Start>()[0].epoch == 3);
  CHECK(peer.begin() == StepId{1});
  CHECK(peer.machine.view().epoch == 3);
}

TEST(a_planned_view_may_come_as_an_install_from_a_peer_that_switched_first) {
  Peer peer = pair_of(0, 1);
  CHECK(peer.begin() == StepId{0});
  CHECK(peer.machine.hold(1, 2) == 1);
  CHECK(peer.install(view_of(2, {{0}, {1}, {2, 3}})) == Status::ok);
  CHECK(!peer.did_to<Undo>(0));  // nothing is aborted
  for (StepId step = 1; step < 5; ++step) {
    CHECK(peer.begin() == step);
    CHECK(peer.all<Start>()[0].epoch == (step < 3 ? 1u : 2u));
  }
  peer.complete(0, 1);
  peer.done(1, 0, 1);
  CHECK(peer.committed(0));
}

TEST(the_install_of_a_plan_that_is_activated_here_changes_nothing) {
  Peer peer = pair_of(0, 1);
  peer.activate(view_of(2, {{0}, {1}, {2}}), 1);
  CHECK(peer.install(view_of(2, {{0}, {1}, {2, 1}})) == Status::ok);
  CHECK(peer.begin() == StepId{0});
  CHECK(peer.all<Start>()[0].epoch == 1);
  CHECK(peer.begin() == StepId{1});
  CHECK(peer.all<Start>()[0].epoch == 2);
  CHECK(peer.install(view_of(2, {{0}, {1}, {2, 1}})) == Status::ok);
  CHECK(peer.did.empty());
  CHECK(peer.machine.participants(1).size() == 3);
}

TEST(a_newcomer_starts_at_its_first_step) {
  Peer peer(2);
  CHECK(!peer.begin());
  CHECK(peer.install(view_of(4, {{0}, {1}, {2, 9}})) == Status::ok);
  CHECK(peer.machine.watermark() == 9);
  CHECK(peer.begin() == StepId{9});
  const Report report = peer.machine.fence(1, 5);
  CHECK(!report.switched && report.watermark == 9 && report.next_step == 10);
}

TEST(a_flush_ends_a_plan_and_its_promises) {
  Peer peer = pair_of(0, 1);
  CHECK(peer.machine.hold(1, 2) == 0);
  (void)peer.machine.fence(1, 3);
  CHECK(peer.install(view_of(3, {{0}, {1}})) == Status::ok);
  CHECK(peer.begin() == StepId{0});
  peer.activate(view_of(4, {{0}, {1}, {2}}), 1);
  (void)peer.machine.fence(1, 5);
  CHECK(peer.install(view_of(5, {{0}, {1}})) == Status::ok);
  CHECK(peer.begin() == StepId{1});
  CHECK(peer.machine.view().epoch == 5);
}

TEST(a_retry_at_the_plans_step_switches_with_its_name_only) {
  Peer peer = pair_of(0, 1);
  CHECK(peer.begin(77) == StepId{0});
  CHECK(peer.begin(42) == StepId{1});
  (void)peer.machine.fence(1, 2);
  CHECK(peer.install(view_of(2, {{0}}, Pause::waits)) == Status::ok);
  CHECK(peer.machine.hold(1, 3) == 0);
  peer.activate(view_of(3, {{0}, {2}}), 0, 42);
  // An activation ends the pause; the step before the joiner's entry is run without it.
  const auto started = peer.all<Start>();
  CHECK(started.size() == 2);
  CHECK(started[0].step == 0 && started[0].epoch == 2);
  CHECK(started[1].step == 1 && started[1].epoch == 3);
  CHECK(peer.machine.participants(0).size() == 1);
}
