// native/tests/test_outcome.cpp — the outcome machine alone: gate, promises, DONEs, fence, install.
// Ownership: values of each test.
// Threads:   the main thread.
// Errors:    CHECKs.
#include "outcome_rig.hpp"

using namespace rig;

TEST(nothing_starts_outside_a_view_or_in_a_paused_one) {
  Peer peer(0);
  CHECK(!peer.begin());
  CHECK(peer.machine.rank() == -1);
  CHECK(peer.install(view_of(1, {{1}, {2}})) == Status::ok);  // a view of others
  CHECK(!peer.begin());
  CHECK(peer.install(view_of(1, {{0}}, Pause::waits)) == Status::ok);
  CHECK(!peer.begin());
  CHECK(peer.machine.rank() == 0);
  (void)peer.machine.fence(1, 2);
  CHECK(peer.install(view_of(2, {{1}, {0}})) == Status::ok);
  CHECK(peer.begin() == StepId{0});
  CHECK(peer.machine.rank() == 1);
}

TEST(so_many_steps_may_be_open_and_no_more) {
  Peer peer = pair_of(0, 1);
  for (StepId step = 0; step < OutcomeMachine::open_steps_max; ++step) {
    CHECK(peer.begin() == step);
    CHECK(peer.did_to<Start>(step));
  }
  CHECK(!peer.begin());
  CHECK(peer.machine.next_step() == OutcomeMachine::open_steps_max);
  peer.complete(0, 1);
  peer.done(1, 0, 1);
  CHECK(peer.committed(0));
  CHECK(peer.begin() == OutcomeMachine::open_steps_max);
}

TEST(a_step_commits_when_every_participant_is_done_and_not_before) {
  Peer peer(0);
  CHECK(peer.install(view_of(1, {{0}, {1}, {2}})) == Status::ok);
  CHECK(peer.begin() == StepId{0});
  peer.complete(0, 1);
  CHECK(peer.all<SendDone>().size() == 1);
  CHECK(!peer.committed(0));
  peer.complete(0, 1);
  CHECK(peer.did.empty());  // said once
  peer.done(1, 0, 1);
  CHECK(!peer.committed(0));
  peer.done(1, 0, 1);  // heard twice
  CHECK(!peer.committed(0));
  peer.done(2, 0, 1);
  CHECK(peer.committed(0));
  CHECK(peer.machine.watermark() == 1);
  peer.done(2, 0, 1);  // late
  CHECK(peer.did.empty());
}

TEST(a_bound_step_is_reported_as_such_also_when_it_runs_again) {
  Peer peer = pair_of(0, 1);
  CHECK(peer.begin() == StepId{0} && peer.begin() == StepId{1});
  peer.machine.bind(1);
  peer.machine.bind(9);  // not open: nothing to say of it
  for (const Epoch target : {Epoch{2}, Epoch{3}}) {
    const Report report = peer.machine.fence(1, target);
    CHECK(report.open.size() == 2 && !report.open[0].bound && report.open[1].bound);
    CHECK(peer.install(view_of(target, {{0}, {1}})) == Status::ok);
  }
}

TEST(dones_may_come_before_the_step_begins_or_completes) {
  Peer peer = pair_of(0, 1);
  peer.done(1, 0, 1);
  CHECK(peer.begin() == StepId{0});
  CHECK(!peer.committed(0));
  peer.complete(0, 1);
  CHECK(peer.committed(0));
}

TEST(a_newcomer_keeps_what_it_hears_before_its_view) {
  Peer peer(2);
  peer.done(0, 1000, 5);
  peer.done(1, 1000, 5);
  CHECK(peer.install(view_of(5, {{0}, {1}, {2, 1000}})) == Status::ok);
  CHECK(peer.begin() == StepId{1000});
  peer.complete(1000, 5);
  CHECK(peer.committed(1000));
}

TEST(a_done_of_another_epoch_or_of_a_stranger_counts_for_nothing) {
  Peer peer = pair_of(0, 1);
  CHECK(peer.begin() == StepId{0});
  peer.complete(0, 1);
  peer.done(2, 0, 1);  // not a participant
  peer.done(1, 0, 2);  // an attempt that is not here
  peer.done(1, 0, 0);
  CHECK(!peer.committed(0));
  CHECK(peer.machine.watermark() == 0);
  (void)peer.machine.fence(1, 2);
  CHECK(peer.install(view_of(2, {{0}, {1}})) == Status::ok);
  CHECK(peer.did_to<Undo>(0) && peer.did_to<Start>(0));
  peer.done(1, 0, 1);  // of the attempt that was given up
  peer.complete(0, 1);
  CHECK(peer.did.empty());
  peer.complete(0, 2);
  CHECK(peer.committed(0));  // with the DONE that came before its time
}

TEST(only_participants_are_waited_for) {
  Peer peer(0);
  CHECK(peer.install(view_of(1, {{0}, {1}, {2, 1}})) == Status::ok);
  CHECK(peer.machine.participants(0).size() == 2);
  CHECK(peer.machine.participants(1).size() == 3);
  CHECK(peer.begin() == StepId{0});
  CHECK(peer.begin() == StepId{1});
  for (const StepId step : {0u, 1u}) {
    peer.complete(step, 1);
    peer.done(1, step, 1);
    CHECK(peer.committed(step) == (step == 0));
  }
  peer.done(2, 1, 1);
  CHECK(peer.committed(1));
}

TEST(unequal_digests_and_manifests_accuse_and_never_commit) {
  Peer peer = pair_of(0, 1);
  CHECK(peer.begin() == StepId{0});
  CHECK(peer.begin() == StepId{1});
  peer.complete(0, 1, {1, 1});
  peer.done(1, 0, 1, {1, 2});
  CHECK(!peer.committed(0));
  CHECK(peer.all<Accuse>().size() == 1);
  CHECK(peer.all<Accuse>()[0].suspicion.code == SuspectCode::digest);
  CHECK(peer.all<Accuse>()[0].suspicion.peers == std::vector{peer_id(1)});
  peer.complete(1, 1);
  peer.done(1, 1, 1, {1, 1}, Digest{9, 9});
  CHECK(!peer.committed(1));
  CHECK(peer.all<Accuse>()[0].suspicion.code == SuspectCode::descriptor);
}

TEST(steps_commit_out_of_order_and_the_watermark_follows) {
  Peer peer = pair_of(0, 1);
  for (int i = 0; i < 3; ++i) CHECK(peer.begin());
  for (const StepId step : {2u, 1u, 0u}) {
    CHECK(peer.machine.watermark() == 0);
    peer.complete(step, 1);
    peer.done(1, step, 1);
    CHECK(peer.committed(step));
    CHECK(peer.machine.decided(step));
  }
  CHECK(peer.machine.watermark() == 3);
}

TEST(a_frozen_machine_completes_commits_and_starts_nothing) {
  Peer peer = pair_of(0, 1);
  CHECK(peer.begin() == StepId{0});
  CHECK(peer.begin() == StepId{1});
  peer.complete(0, 1);
  const Report report = peer.machine.fence(1, 2);
  CHECK(report.epoch == 1 && report.target == 2 && report.next_step == 2);
  CHECK(report.open.size() == 2);
  CHECK(report.open[0].complete && report.open[0].sealed && !report.open[1].complete);
  peer.complete(1, 1);
  CHECK(peer.did.empty());
  peer.done(1, 0, 1);
  CHECK(peer.did.empty());
  CHECK(!peer.begin());
  const Report again = peer.machine.fence(1, 2);
  CHECK(again.open.size() == 2 && again.open[0].complete && !again.open[1].complete);
}

TEST(a_flush_of_an_older_coordinator_is_promised_nothing) {
  Peer peer = pair_of(0, 1);
  (void)peer.machine.fence(3, 2);
  CHECK(peer.install(view_of(2, {{0}, {1}}, Pause::none, 3)) == Status::ok);
  const Report report = peer.machine.fence(2, 9);
  CHECK(report.generation == 3);  // which tells it
  CHECK(!peer.machine.frozen());
  CHECK(peer.begin() == StepId{0});
  CHECK(peer.install(view_of(9, {{0}}, Pause::none, 2)) == Status::ok);
  CHECK(peer.machine.view().epoch == 2);
}

TEST(an_install_commits_retries_or_fails_each_open_step) {
  Peer peer = pair_of(0, 1);
  for (int i = 0; i < 3; ++i) CHECK(peer.begin());
  peer.complete(0, 1);
  (void)peer.machine.fence(1, 2);
  const std::vector<Decision> decisions{
      {0, Verdict::commit, SuspectCode::none, {}},
      {1, Verdict::fail, SuspectCode::deadline, "late"},
      {2, Verdict::retry, SuspectCode::none, {}}};
  CHECK(peer.install(view_of(2, {{0}}), decisions) == Status::ok);
  CHECK(peer.committed(0) && !peer.did_to<Undo>(0));
  CHECK(peer.did_to<Undo>(1) && peer.did_to<Failed>(1) && !peer.did_to<Start>(1));
  CHECK(peer.all<Failed>()[0].text == "late");
  CHECK(peer.did_to<Undo>(2) && peer.did_to<Start>(2));
  CHECK(peer.all<Start>()[0].epoch == 2);
  CHECK(peer.machine.watermark() == 2);
  // Repeated, it changes nothing.
  CHECK(peer.install(view_of(2, {{0}}), decisions) == Status::ok);
  CHECK(peer.did.empty());
}

TEST(a_commit_below_the_watermark_of_another_reporter_needs_no_decision_of_its_own) {
  Peer peer = pair_of(0, 1);
  CHECK(peer.begin() == StepId{0});
  peer.complete(0, 1);
  (void)peer.machine.fence(1, 2);
  CHECK(peer.install(view_of(2, {{0}, {1}}), {}, 1) == Status::ok);
  CHECK(peer.committed(0));
}

TEST(a_commit_of_a_step_that_is_not_complete_here_is_a_contradiction_and_changes_no_step) {
  Peer peer = pair_of(0, 1);
  CHECK(peer.begin() == StepId{0});
  CHECK(peer.begin() == StepId{1});
  peer.complete(0, 1);
  (void)peer.machine.fence(1, 2);
  const std::vector<Decision> decisions{{1, Verdict::commit, SuspectCode::none, {}}};
  CHECK(peer.install(view_of(2, {{0}}), decisions, 1) == Status::protocol);
  CHECK(peer.did.empty());
  CHECK(peer.machine.view().epoch == 1 && peer.machine.watermark() == 0);
}

TEST(a_failure_reaches_those_who_have_not_begun_the_step) {
  Peer peer = pair_of(0, 1);
  (void)peer.machine.fence(1, 2);
  CHECK(peer.install(view_of(2, {{0}, {1}}), {{1, Verdict::fail, SuspectCode::deadline, "late"}}) ==
        Status::ok);
  CHECK(peer.begin() == StepId{0});
  CHECK(peer.did_to<Start>(0));
  CHECK(peer.begin() == StepId{1});
  CHECK(peer.did_to<Failed>(1) && !peer.did_to<Start>(1));
  CHECK(peer.begin() == StepId{2});
  CHECK(peer.did_to<Start>(2));
  peer.complete(0, 2);
  peer.done(1, 0, 2);
  CHECK(peer.machine.watermark() == 2);
}

TEST(a_report_says_which_of_the_steps_below_the_watermark_have_failed) {
  Peer peer = pair_of(0, 1);
  for (const StepId step : {0, 1, 2}) CHECK(peer.begin() == step);
  peer.complete(0, 1);
  peer.done(1, 0, 1);
  (void)peer.machine.fence(1, 2);
  const std::vector<Decision> decisions{{1, Verdict::fail, SuspectCode::deadline, "late"},
                                        {4, Verdict::fail, SuspectCode::descriptor, "unlike"}};
  CHECK(peer.install(view_of(2, {{0}, {1}}), decisions) == Status::ok);
  const Report report = peer.machine.fence(1, 3);
  CHECK(report.watermark == 2);
  CHECK(report.failed == (std::vector<FailedStep>{{1, SuspectCode::deadline}}));
  CHECK(peer.install(view_of(3, {{0}, {1}})) == Status::ok);
  CHECK(peer.begin() == StepId{3});
  CHECK(peer.begin() == StepId{4});  // it was told before it came there
  CHECK(peer.machine.fence(1, 4).failed.size() == 2);
  peer.exclude(5);
  CHECK(peer.machine.fence(1, 6).failed.empty());
}

TEST(an_install_that_a_newer_flush_overtook_undoes_nothing) {
  Peer peer = pair_of(0, 1);
  CHECK(peer.begin() == StepId{0});
  peer.complete(0, 1);
  (void)peer.machine.fence(1, 2);
  const Report report = peer.machine.fence(1, 3);
  CHECK(report.open.size() == 1 && report.open[0].complete);
  CHECK(peer.install(view_of(2, {{0}, {1}})) == Status::ok);  // says retry, and comes too late
  CHECK(peer.did.empty());
  CHECK(peer.install(view_of(3, {{0}}), {{0, Verdict::commit, SuspectCode::none, {}}}) ==
        Status::ok);
  CHECK(peer.committed(0));
}
