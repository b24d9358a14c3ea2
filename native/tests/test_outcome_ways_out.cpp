// native/tests/test_outcome_ways_out.cpp — groups, planned leaves, pauses that raise, exclusion.
// Ownership: plain values.
// Threads:   one.
// Errors:    CHECKs.
#include "outcome_rig.hpp"

namespace {

using namespace rig;

/// Members 0 and 1 in group 0, members 2 and 3 in group 1; `mine` is this peer.
Peer grouped(unsigned mine) {
  Peer peer(mine);
  CHECK(peer.install(view_of(1, {{0}, {1}, {2, 0, 1}, {3, 0, 1}})) == Status::ok);
  return peer;
}

TEST(a_rank_counts_within_the_own_group) {
  Peer peer = grouped(3);
  CHECK(peer.machine.rank() == 1);
  CHECK(peer.machine.group() == 1);
  CHECK(peer.machine.group_size() == 2);
  CHECK(peer.machine.participants(0).size() == 4);
}

TEST(a_step_commits_only_when_every_group_is_done) {
  Peer peer = grouped(0);
  (void)peer.begin();
  peer.complete(0, 1);
  peer.done(1, 0, 1);
  CHECK(!peer.committed(0));
  peer.done(2, 0, 1, {9, 9}, {5, 5});
  CHECK(!peer.committed(0));
  peer.done(3, 0, 1, {9, 9}, {5, 5});
  CHECK(peer.committed(0));
}

TEST(other_results_and_operations_in_another_group_accuse_nobody) {
  Peer peer = grouped(0);
  (void)peer.begin();
  peer.complete(0, 1, {1, 1});
  peer.done(2, 0, 1, {2, 2}, {3, 3});
  CHECK(peer.all<Accuse>().empty());
  peer.done(1, 0, 1, {2, 2});
  CHECK(peer.all<Accuse>().size() == 1);
}

TEST(a_group_that_differs_within_itself_keeps_the_step_from_everybody) {
  Peer peer = grouped(0);
  CHECK(peer.begin() == StepId{0});
  peer.complete(0, 1);
  peer.done(1, 0, 1);
  peer.done(2, 0, 1, {5, 5});
  peer.done(3, 0, 1, {6, 6});
  CHECK(!peer.committed(0));
  CHECK(peer.all<Accuse>().size() == 1);
  CHECK(peer.all<Accuse>()[0].suspicion.code == SuspectCode::digest);
}

TEST(a_group_that_is_not_done_keeps_the_step_open_through_the_fence) {
  Peer peer = grouped(0);
  (void)peer.begin();
  peer.complete(0, 1);
  peer.done(1, 0, 1);
  const Report report = peer.machine.fence(1, 2);
  CHECK(report.open.size() == 1 && report.open[0].complete);
  peer.done(2, 0, 1, {9, 9}, {5, 5});
  peer.done(3, 0, 1, {9, 9}, {5, 5});
  CHECK(!peer.committed(0));  // promised
  CHECK(peer.install(view_of(2, {{0}, {1}, {2, 0, 1}})) == Status::ok);
  CHECK(peer.did_to<Undo>(0));
  CHECK(peer.did_to<Start>(0));
}

TEST(a_peer_planned_out_runs_the_steps_before_and_none_after) {
  Peer peer = pair_of(0, 1);
  CHECK(peer.begin() == 0);
  CHECK(peer.machine.hold(1, 2) == 1);
  peer.activate(view_of(2, {{1}}), 2, std::nullopt);
  CHECK(peer.begin() == 1);
  CHECK(!peer.begin());
  CHECK(peer.all<Left>().size() == 1);
  CHECK(peer.machine.view().epoch == 2);
  CHECK(peer.machine.refusal() == Refusal::left);
  CHECK(peer.machine.refusal() == Refusal::left);  // it stays so
  // What began before goes on in the older view.
  peer.complete(0, 1);
  peer.done(1, 0, 1);
  CHECK(peer.committed(0));
  peer.complete(1, 1);
  CHECK(peer.all<SendDone>().size() == 1);
  peer.done(1, 1, 1);
  CHECK(peer.committed(1));
  CHECK(peer.machine.watermark() == 2);
}

TEST(a_peer_planned_out_leaves_at_the_name_like_everybody_switches_there) {
  Peer peer = pair_of(0, 1);
  peer.activate(view_of(2, {{1}}), 0, 77);
  CHECK(peer.begin() == 0);
  CHECK(!peer.begin(77));
  CHECK(peer.machine.refusal() == Refusal::left);
}

TEST(any_name_switches_where_none_was_given) {
  Peer peer = pair_of(0, 1);
  peer.activate(view_of(2, {{1}, {0}}), 0, std::nullopt);
  CHECK(peer.begin(12345) == 0);
  CHECK(peer.all<Switched>().size() == 1);
  CHECK(peer.machine.rank() == 1);
}

TEST(a_step_that_waits_ends_without_a_decision_when_its_peer_leaves) {
  Peer peer = pair_of(0, 1);
  CHECK(peer.begin() == 0);
  (void)peer.machine.fence(1, 2);
  CHECK(peer.install(view_of(2, {{0}, {1}}, Pause::waits)) == Status::ok);
  peer.activate(view_of(3, {{1}}), 0, std::nullopt);
  CHECK(peer.all<Failed>().size() == 1);
  CHECK(peer.all<Failed>()[0].code == SuspectCode::left);
  CHECK(peer.machine.watermark() == 0);  // the others may still run it
}

TEST(a_flush_that_takes_the_plan_back_takes_the_leave_back) {
  Peer peer = pair_of(0, 1);
  CHECK(peer.begin() == 0);
  peer.activate(view_of(2, {{1}}), 1, std::nullopt);
  CHECK(!peer.begin());
  (void)peer.machine.fence(1, 3);
  CHECK(peer.install(view_of(3, {{0}, {1}})) == Status::ok);
  CHECK(peer.did_to<Start>(0));
  CHECK(peer.machine.refusal() == Refusal::none);
  CHECK(peer.begin() == 1);
}

TEST(a_leaver_whose_steps_still_run_is_taken_into_no_view_without_a_flush) {
  Peer peer = pair_of(0, 1);
  CHECK(peer.begin() == 0);
  peer.complete(0, 1);
  peer.activate(view_of(2, {{1}}), 1, std::nullopt);
  CHECK(!peer.begin());
  CHECK(peer.install(view_of(3, {{0, 5}, {1}})) == Status::protocol);
  CHECK(peer.did.empty());
  CHECK(peer.machine.has_left() && peer.machine.next_step() == 1);
  // With that step over it may come in anew.
  peer.done(1, 0, 1);
  CHECK(peer.committed(0));
  CHECK(peer.install(view_of(3, {{0, 5}, {1}})) == Status::ok);
  CHECK(peer.begin() == 5);
}

TEST(a_leaver_begins_in_no_view_below_what_it_has_decided) {
  Peer peer = pair_of(0, 1);
  for (StepId step = 0; step < 3; ++step) {
    CHECK(peer.begin() == step);
    peer.complete(step, 1);
    peer.done(1, step, 1);
    CHECK(peer.committed(step));
  }
  peer.activate(view_of(2, {{1}}), 3, std::nullopt);
  CHECK(!peer.begin());
  for (const StepId first : {StepId{0}, StepId{2}}) {
    CHECK(peer.install(view_of(3, {{0, first}, {1}})) == Status::protocol);
    CHECK(peer.did.empty());
    CHECK(peer.machine.has_left() && peer.machine.watermark() == 3);
  }
  CHECK(peer.install(view_of(3, {{0, 3}, {1}})) == Status::ok);
  CHECK(peer.begin() == 3);
}

TEST(a_leaver_that_is_excluded_is_a_newcomer_afterwards_whatever_it_had_promised) {
  Peer peer = pair_of(0, 1);
  peer.activate(view_of(2, {{1}}), 0, std::nullopt);
  CHECK(!peer.begin());
  (void)peer.machine.fence(1, 5);
  peer.exclude(3);
  CHECK(peer.machine.refusal() == Refusal::excluded);
  CHECK(peer.install(view_of(5, {{0, 7}, {1}})) == Status::ok);
  CHECK(peer.machine.next_step() == 7);
}

TEST(a_view_that_is_too_small_waits_or_tells_as_the_run_wants) {
  Peer peer = pair_of(0, 1);
  (void)peer.machine.fence(1, 2);
  CHECK(peer.install(view_of(2, {{0}}, Pause::raises)) == Status::ok);
  CHECK(!peer.begin());
  CHECK(peer.machine.refusal() == Refusal::underflow);
  peer.activate(view_of(3, {{0}, {1}}), 0, std::nullopt);
  CHECK(peer.machine.refusal() == Refusal::none);  // it is about to end
  CHECK(peer.begin() == 0);
}

TEST(exclusion_gives_inputs_back_fails_what_is_open_and_stops_all) {
  Peer peer = pair_of(0, 1);
  CHECK(peer.begin() == 0);
  CHECK(peer.begin() == 1);
  peer.complete(0, 1);
  peer.exclude(2);
  CHECK(peer.all<Undo>().size() == 2);
  CHECK(peer.all<Failed>().size() == 2);
  CHECK(peer.all<Failed>()[0].code == SuspectCode::excluded);
  CHECK(peer.machine.rank() == -1);
  CHECK(peer.machine.view().epoch == 2);
  CHECK(peer.machine.refusal() == Refusal::none);  // the steps have told
  peer.done(1, 0, 1);
  CHECK(peer.did.empty());
  CHECK(!peer.begin());
}

TEST(who_is_put_out_for_what_it_called_is_told_so_and_remembers_no_failure) {
  Peer peer = pair_of(0, 1);
  CHECK(peer.begin() == 0);
  peer.exclude(2, 1, SuspectCode::descriptor);
  CHECK(peer.all<Undo>().size() == 1);
  CHECK(peer.all<Failed>().size() == 1);
  CHECK(peer.all<Failed>()[0].code == SuspectCode::descriptor);
  CHECK(peer.machine.fence(1, 3).failed.empty());  // the others go on with that step
}

TEST(who_came_in_after_the_last_step_of_that_name_is_new_to_the_entry) {
  Peer peer = pair_of(0, 1);
  CHECK(peer.begin() == 0);
  CHECK(peer.machine.newcomers_to(0).empty());  // nobody knows of another one
  peer.activate(view_of(2, {{0}, {1}, {2}}), 1);
  CHECK(peer.begin() == 1);
  CHECK(peer.machine.newcomers_to(1) == std::vector{peer_id(2)});
  CHECK(peer.machine.newcomers_to(0).empty());
  CHECK(peer.begin() == 2);
  CHECK(peer.machine.newcomers_to(2).empty());  // it has taken part in one
  CHECK(peer.machine.newcomers_to(7).empty());  // not open
}

TEST(exclusion_between_steps_is_told_once) {
  Peer peer = pair_of(0, 1);
  peer.exclude(2);
  CHECK(peer.did.empty());
  peer.exclude(2);  // said again
  CHECK(peer.machine.refusal() == Refusal::excluded);
  CHECK(peer.machine.refusal() == Refusal::none);
}

TEST(an_excluded_peer_may_begin_with_a_step_that_it_knows_from_an_earlier_run) {
  Peer peer = pair_of(0, 1);
  for (StepId step = 0; step < 3; ++step) {
    CHECK(peer.begin() == step);
    peer.complete(step, 1);
    peer.done(1, step, 1);
  }
  CHECK(peer.machine.watermark() == 3);
  peer.exclude(2);
  CHECK(peer.machine.watermark() == 0);
  peer.done(1, 0, 3);  // the other one is ahead of the INSTALL
  CHECK(peer.install(view_of(3, {{1}, {0}})) == Status::ok);
  CHECK(peer.begin() == 0);
  peer.complete(0, 3);
  CHECK(peer.committed(0));
}

TEST(an_excluded_peer_comes_in_again_as_a_newcomer) {
  Peer peer = pair_of(0, 1);
  CHECK(peer.begin() == 0);
  peer.exclude(2);
  peer.done(1, 7, 3);  // the others are ahead of the INSTALL
  CHECK(peer.install(view_of(3, {{1}, {0, 7}})) == Status::ok);
  CHECK(peer.machine.next_step() == 7);
  CHECK(peer.machine.watermark() == 7);
  CHECK(peer.begin() == 7);
  peer.complete(7, 3);
  CHECK(peer.committed(7));
}

TEST(an_exclusion_that_was_overtaken_changes_nothing) {
  Peer peer = pair_of(0, 1);
  peer.exclude(2);
  CHECK(peer.install(view_of(3, {{1}, {0, 4}})) == Status::ok);
  peer.exclude(2);
  CHECK(peer.machine.rank() == 1);
  peer.exclude(9, 0);  // of an older coordinator
  CHECK(peer.machine.rank() == 1);
}

TEST(an_excluded_peer_keeps_the_promise_of_its_fence) {
  Peer peer = pair_of(0, 1);
  (void)peer.machine.fence(1, 5);
  peer.exclude(3);
  CHECK(peer.install(view_of(4, {{1}, {0, 4}})) == Status::ok);
  CHECK(peer.machine.rank() == -1);
  CHECK(peer.install(view_of(6, {{1}, {0, 4}})) == Status::ok);
  CHECK(peer.machine.rank() == 1);
}

}  // namespace
