// native/tests/test_entry_names.cpp — whether a program is expected at an entry of some name again.
// Ownership: values.
// Threads:   one.
// Errors:    CHECK.
#include "outcome_rig.hpp"
#include "pccl/entry_names.hpp"

using namespace rig;

TEST(a_program_that_has_begun_nothing_may_begin_with_any_name) {
  CHECK(EntryNames{}.within(7, 0) == 1);
}

TEST(a_name_that_was_never_begun_is_not_expected) {
  EntryNames names;
  names.come_to(1, 0);
  CHECK(names.within(2, 1) == 0);
}

TEST(a_name_that_comes_twice_in_a_row_is_expected_after_its_long_pause_again) {
  EntryNames names;
  for (StepId period = 0; period < 10; ++period) {
    for (StepId i = 0; i < 20; ++i) names.come_to(1, 1000 * period + i);
  }
  for (StepId next = 9020; next <= 10000; next += 20) CHECK(names.within(1, next) > 900);
}

TEST(a_distance_of_the_past_is_forgotten_when_a_name_comes_more_often) {
  EntryNames names;
  names.come_to(1, 0);
  for (StepId step = 1000; step < 20000; step += 10) names.come_to(1, step);
  CHECK(names.within(1, 20000) == 10);
}

TEST(once_names_were_thrown_away_an_unknown_one_may_come) {
  EntryNames names;
  constexpr StepId cycle = 3 * EntryNames::names_max;
  for (StepId step = 0; step < 2 * cycle; ++step) names.come_to(step % cycle, step);
  for (StepId name = 0; name < cycle; name += 100) CHECK(names.within(name, 2 * cycle) > 0);
  names.forget();
  names.come_to(1, 0);
  CHECK(names.within(2, 1) == 0);
}

TEST(a_name_is_expected_within_its_last_distance_until_it_is_long_overdue) {
  EntryNames names;
  names.come_to(1, 0);
  names.come_to(1, 500);
  names.come_to(1, 500);  // it waits there
  CHECK(names.within(1, 501) == 500);
  CHECK(names.within(1, 1400) == 900);
  CHECK(names.within(1, 500 + 2 * 500 + EntryNames::slack + 1) == 0);
}

TEST(a_name_that_came_once_is_expected_for_a_few_steps_only) {
  EntryNames names;
  names.come_to(1, 0);
  CHECK(names.within(1, EntryNames::slack) == EntryNames::slack);
  CHECK(names.within(1, EntryNames::slack + 1) == 0);
}

TEST(many_names_are_remembered_but_not_all) {
  EntryNames names;
  constexpr StepId many = EntryNames::names_max;
  for (StepId step = 0; step < 2 * many; ++step) names.come_to(step % many, step);
  CHECK(names.within(0, 2 * many) == many);
  for (StepId other = 0; other < 2 * many + 1; ++other) names.come_to(many + other, 2 * many);
  CHECK(names.within(0, 2 * many) == EntryNames::slack);  // as if it had never been begun
}

TEST(a_member_at_the_gate_knows_the_name_at_which_it_waits_and_a_newcomer_none) {
  Peer peer(0);
  CHECK(!peer.begin(1));
  CHECK(peer.machine.entry_within(2) == 1);
  peer.did.clear();
  CHECK(peer.machine.install(view_of(1, {{0}}), 0, {}, peer.did) == Status::ok);
  CHECK(peer.begin(3) == StepId{0});
  CHECK(peer.machine.entry_within(1) == 0);
  CHECK(peer.machine.hold(1, 2) == 1);
  CHECK(!peer.begin(4));
  CHECK(peer.machine.entry_within(4) == 1);
}
