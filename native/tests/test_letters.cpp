// native/tests/test_letters.cpp — messages: order, exact bytes, once each, whatever lanes do.
// Ownership: see letters_rig.hpp.
// Threads:   the main thread.
// Errors:    CHECKs.
#include <algorithm>
#include <vector>

#include "letters_rig.hpp"

namespace {

using namespace post;

LetterEnd how(End& end) { return end.over() ? end.result->end : LetterEnd::none; }

TEST(a_message_is_there_whichever_side_was_posted_first) {
  for (const std::size_t size : {std::size_t{0}, std::size_t{1}, chunk, chunk + 1, 3 * chunk}) {
    for (const bool send_first : {true, false}) {
      Office office(2, 1, 1);
      Ends ends;
      if (send_first) {
        send(office, ends, 0, 1, 5, size, 9);
        office.settle();
        CHECK(!ends[0]->over());
      }
      End& got = receive(office, ends, 1, 0, 5, size);
      if (!send_first) {
        office.settle();
        send(office, ends, 0, 1, 5, size, 9);
      }
      office.settle();
      CHECK(ends[0]->done() && ends[1]->done() && got.holds(9));
      CHECK(got.result->rank == 0 && got.result->peer == name_of(0));
      CHECK(office.peers[0]->budget.used() == 0);
    }
  }
}

TEST(messages_of_a_tag_keep_their_order_and_tags_do_not_wait_for_one_another) {
  Office office(2, 3, 2);
  Ends ends;
  for (std::uint64_t i = 0; i < 6; ++i) send(office, ends, 0, 1, i % 2, 100, i);
  office.settle();
  Ends got;
  for (const Tag tag : {1u, 1u, 0u, 1u, 0u, 0u}) receive(office, got, 1, 0, tag, 100);
  office.settle();
  const std::uint64_t expected[] = {1, 3, 0, 5, 2, 4};
  for (std::size_t i = 0; i < 6; ++i) CHECK(got[i]->done() && got[i]->holds(expected[i]));
}

TEST(a_receive_from_any_takes_what_came_first_and_says_whose_it_was) {
  Office office(3, 1, 3);
  Ends ends, got;
  send(office, ends, 2, 0, 0, 10, 22);
  office.settle();
  send(office, ends, 1, 0, 0, 10, 11);
  office.settle();
  receive(office, got, 0, std::nullopt, 0, 10);
  receive(office, got, 0, std::nullopt, 0, 10);
  office.settle();
  CHECK(got[0]->done() && got[0]->holds(22) && got[0]->result->rank == 2);
  CHECK(got[1]->done() && got[1]->holds(11) && got[1]->result->rank == 1);
}

TEST(what_does_not_fit_fails_on_both_sides_with_the_same_words_and_touches_nothing) {
  for (const bool send_first : {true, false}) {
    Office office(2, 2, 4);
    Ends ends;
    if (send_first) send(office, ends, 0, 1, 3, 2 * chunk, 1);
    if (send_first) office.settle();
    End& got = receive(office, ends, 1, 0, 3, 100);
    if (!send_first) send(office, ends, 0, 1, 3, 2 * chunk, 1);
    office.settle();
    CHECK(how(*ends[0]) == LetterEnd::differs && how(*ends[1]) == LetterEnd::differs);
    CHECK(ends[0]->result->text == ends[1]->result->text);
    CHECK(got.result->text ==
          "tag 3: peer 01000000 sends u8[524288], peer 02000000 receives u8[100]");
    CHECK(std::all_of(got.content.begin(), got.content.end(),
                      [](std::byte byte) { return byte == std::byte{0xee}; }));
    // The next ones are not concerned.
    send(office, ends, 0, 1, 3, 7, 2);
    End& next = receive(office, ends, 1, 0, 3, 7);
    office.settle();
    CHECK(next.done() && next.holds(2));
    CHECK(office.peers[1]->mail[0]->inbox.refused().empty());
  }
}

TEST(a_call_that_was_refused_counts_as_posted_and_fails_the_other_end_alone) {
  const Content nothing{.nothing = true};
  for (const int order : {0, 1, 2, 3}) {
    const bool sender = order % 2 == 0, refused_first = order < 2;
    Office office(2, 2, 5);
    Ends ends;
    const auto refuse = [&](bool sends) {
      Peer& peer = *office.peers[sends ? 0 : 1];
      if (sends) return peer.letters.send(*peer.mail[1], 3, nothing, nullptr, never_s);
      return peer.letters.receive(nullptr, 3, nothing, nullptr, never_s);
    };
    LetterId id = refused_first ? refuse(sender) : 0;
    if (sender) receive(office, ends, 1, 0, 3, 100);
    if (!sender) send(office, ends, 0, 1, 3, 2 * chunk, 1);
    if (!refused_first) id = refuse(sender);
    office.settle();
    const std::string not_posted = "nothing (its own error says why)";
    CHECK(how(*ends[0]) == LetterEnd::differs);
    CHECK(ends[0]->result->text == "tag 3: peer 01000000 sends " +
                                       (sender ? not_posted : "u8[524288]") +
                                       ", peer 02000000 receives " +
                                       (sender ? "u8[100]" : not_posted));
    CHECK(office.peers[sender ? 0 : 1]->letters.find(id)->end == LetterEnd::differs);
    // The next ones are not concerned, and two that were refused are none's concern.
    for (const bool sends : {true, false}) (void)refuse(sends);
    send(office, ends, 0, 1, 3, 7, 2);
    End& next = receive(office, ends, 1, 0, 3, 7);
    office.settle();
    CHECK(next.done() && next.holds(2) && office.peers[1]->mail[0]->inbox.refused().empty());
    CHECK(office.peers[1]->mail[0]->inbox.staged() == 0 && office.peers[0]->budget.used() == 0);
  }
}

TEST(what_nobody_receives_is_staged_within_its_budget_and_all_of_it_comes_later) {
  Office office(2, 2, 5);
  Ends ends, got;
  for (std::uint64_t i = 0; i < 12; ++i) send(office, ends, 0, 1, 0, chunk + 5, i);
  office.settle();
  CHECK(office.peers[0]->budget.used() == 1u << 20);
  CHECK(office.peers[1]->mail[0]->inbox.staged() == 1u << 20);
  for (std::uint64_t i = 0; i < 12; ++i) receive(office, got, 1, 0, 0, chunk + 5);
  office.settle();
  for (std::uint64_t i = 0; i < 12; ++i) CHECK(got[i]->done() && got[i]->holds(i));
  CHECK(office.peers[0]->budget.used() == 0);
  CHECK(office.peers[1]->mail[0]->inbox.staged() == 0);
}

TEST(more_messages_than_may_be_offered_at_once_all_come) {
  Office office(2, 1, 6);
  Ends ends, got;
  const std::size_t many = Outbox::offers_max + 100;
  for (std::uint64_t i = 0; i < many; ++i) send(office, ends, 0, 1, 0, 1, i);
  office.settle();
  CHECK(office.peers[1]->mail[0]->inbox.arrivals().size() == Outbox::offers_max);
  for (std::uint64_t i = 0; i < many; ++i) receive(office, got, 1, 0, 0, 1);
  office.settle();
  for (std::uint64_t i = 0; i < many; ++i) CHECK(got[i]->done() && got[i]->holds(i));
}

TEST(a_send_that_was_given_up_counts_as_never_sent) {
  for (const bool receive_first : {true, false}) {
    Office office(2, 1, 7);
    Ends ends;
    const auto get = [&] { return &receive(office, ends, 1, 0, 0, 2 * chunk); };
    End* got = receive_first ? get() : nullptr;
    End& first = send(office, ends, 0, 1, 0, 2 * chunk, 1, 5.0);
    for (int i = 0; i < (receive_first ? 7 : 3); ++i) office.move();
    office.peers[0]->letters.expire(6.0);
    CHECK(how(first) == LetterEnd::late);
    send(office, ends, 0, 1, 0, 2 * chunk, 2);
    office.settle();
    if (!receive_first) got = get();
    office.settle();
    CHECK(got->done() && got->holds(2));
  }
}

TEST(an_empty_send_that_was_given_up_in_vain_is_not_received_after_all) {
  for (unsigned seed = 0; seed < 20; ++seed) {
    Office office(2, 1, seed);
    Ends ends;
    End& empty = send(office, ends, 0, 1, 0, 0, 1);
    office.settle();
    office.break_a_lane();
    empty.peer.letters.cancel(empty.id);
    while (!office.peers[0]->control[1].empty()) (void)office.send(0, 1);  // into the dead lane
    office.settle();
    End& got = receive(office, ends, 1, 0, 0, 0);
    office.settle();
    CHECK(how(empty) == LetterEnd::cancelled && !got.over());
  }
}

TEST(a_receive_that_was_given_up_in_the_middle_ends_the_send_too) {
  Office office(2, 1, 8);
  Ends ends;
  End& sent = send(office, ends, 0, 1, 0, 9 * chunk, 1);
  End& got = receive(office, ends, 1, 0, 0, 9 * chunk);
  while (office.peers[1]->letters.find(got.id)->number == 0) office.move();
  for (int i = 0; i < 8; ++i) office.move();
  office.peers[1]->letters.cancel(got.id);
  CHECK(how(got) == LetterEnd::cancelled);
  office.settle();
  CHECK(how(sent) == LetterEnd::given_up);
}

TEST(who_is_lost_ends_all_that_waits_for_it_and_no_more) {
  Office office(3, 1, 9);
  Ends ends;
  End& to_lost = send(office, ends, 0, 2, 0, chunk, 1);
  End& from_lost = receive(office, ends, 0, 2, 0, 10);
  End& from_any = receive(office, ends, 0, std::nullopt, 1, 10);
  End& other = receive(office, ends, 0, 1, 0, 10);
  office.view(0, 2, {0, 1});
  for (End* end : {&to_lost, &from_lost, &from_any}) {
    CHECK(how(*end) == LetterEnd::lost && end->result->peer == name_of(2));
    CHECK(end->result->epoch == 1);
  }
  CHECK(!other.over());
  office.view(1, 2, {0, 1});
  send(office, ends, 1, 0, 0, 10, 4);
  office.settle();
  CHECK(other.done() && other.holds(4) && other.result->epoch == 2);
}

TEST(a_newcomer_may_write_before_the_view_is_here) {
  Office office(3, 2, 10);
  for (std::size_t peer : {0u, 1u}) office.view(peer, 2, {0, 1});
  office.peers[2]->letters.end_all(LetterEnd::excluded);
  Ends ends;
  End& got = receive(office, ends, 0, std::nullopt, 0, chunk + 1);
  const std::map<std::size_t, StepId> first{{2, 40}};
  office.view(2, 3, {0, 1, 2}, first);
  End& sent = send(office, ends, 2, 0, 0, chunk + 1, 6);
  office.settle();
  CHECK(!got.over() && !sent.over());
  office.view(0, 3, {0, 1, 2}, first);
  office.settle();
  CHECK(got.done() && got.holds(6) && sent.done() && got.result->rank == 2);
}

TEST(frames_of_an_earlier_membership_of_the_same_incarnation_mean_nothing) {
  Office office(2, 2, 11);
  Ends ends;
  End& old = send(office, ends, 1, 0, 0, 10, 1);
  for (int i = 0; i < 2; ++i) office.send(1, 0);  // on their way, for long
  office.peers[1]->letters.end_all(LetterEnd::excluded);
  CHECK(how(old) == LetterEnd::excluded);
  const std::map<std::size_t, StepId> first{{1, 7}};
  office.view(0, 2, {0});
  office.view(0, 3, {0, 1}, first);
  office.view(1, 3, {0, 1}, first);
  End& got = receive(office, ends, 0, 1, 0, 10);
  send(office, ends, 1, 0, 0, 10, 2);
  office.settle();
  CHECK(got.done() && got.holds(2));
}

TEST(who_comes_back_within_the_same_membership_goes_on_where_it_was) {
  Office office(2, 2, 12);
  Ends ends;
  for (std::uint64_t i = 0; i < 5; ++i) {  // numbers of both are above those of the first ones
    send(office, ends, i % 2, 1 - i % 2, 0, 10, i);
    receive(office, ends, 1 - i % 2, i % 2, 0, 10);
  }
  office.settle();
  End& unread = send(office, ends, 1, 0, 0, 10, 7);
  End& half = send(office, ends, 1, 0, 1, 9 * chunk, 8);
  End& halved = receive(office, ends, 0, 1, 1, 9 * chunk);
  while (office.peers[0]->letters.find(halved.id)->number == 0) office.move();
  office.view(0, 2, {0});  // and peer 1 never hears of it
  CHECK(how(halved) == LetterEnd::lost);
  office.settle();
  CHECK(!unread.over() && !half.over());
  office.view(0, 3, {0, 1});
  office.view(1, 3, {0, 1});
  End& got = receive(office, ends, 0, 1, 0, 10);
  End& back = send(office, ends, 0, 1, 0, 10, 9);
  End& got_back = receive(office, ends, 1, 0, 0, 10);
  office.settle();
  CHECK(how(half) == LetterEnd::given_up);
  CHECK(unread.done() && got.done() && got.holds(7));
  CHECK(back.done() && got_back.done() && got_back.holds(9));
}

/// Chance decides about everything but cancels; all that was posted is there in the end, in order.
TEST(whatever_order_and_losses_each_message_is_received_once_and_exactly) {
  const unsigned rounds = check::sanitized ? 60 : 400;
  for (unsigned seed = 0; seed < rounds; ++seed) {
    Office office(2 + seed % 3, 1 + seed % 3, seed);
    auto& dice = office.dice;
    const std::size_t size = office.peers.size();
    Ends sends, receives;
    std::vector<std::uint64_t> expected;
    const std::size_t sizes[] = {0, 1, 100, 70'000, chunk, chunk + 1, 2 * chunk + 9};
    // Both sides draw the same list, and come to its items when chance wants.
    struct Item { std::size_t from, to; Tag tag; std::size_t bytes; };
    std::vector<Item> items;
    for (int i = 0; i < 40; ++i) {
      const std::size_t from = dice() % size;
      const std::size_t to = (from + 1 + dice() % (size - 1)) % size;
      items.push_back({from, to, static_cast<Tag>(dice() % 3), sizes[dice() % 7]});
    }
    std::size_t sent = 0, wanted = 0;
    while (sent < items.size() || wanted < items.size()) {
      const auto what = dice() % 40;
      if (what < 3 && sent < items.size()) {
        const Item& item = items[sent];
        send(office, sends, item.from, item.to, item.tag, item.bytes, sent);
        ++sent;
      } else if (what < 6 && wanted < items.size()) {
        const Item& item = items[wanted++];
        receive(office, receives, item.to, item.from, item.tag, item.bytes);
      } else if (what == 6 && seed % 2 == 1) {
        office.break_a_lane();
      } else if (what == 7) {
        office.notice_something();
      } else {
        office.move();
      }
      look_at(sends);
      look_at(receives);
    }
    office.settle();
    for (std::size_t i = 0; i < items.size(); ++i) {
      CHECK(sends[i]->done() && receives[i]->done() && receives[i]->holds(i));
    }
    for (const auto& peer : office.peers) CHECK(peer->budget.used() == 0);
  }
}

/// Who says done was received, who was given up at most once; then nobody waits any longer.
void check_once_at_most(Office& office, const Ends& sends, const Ends& receives) {
  std::vector<int> got(sends.size(), 0);
  for (const auto& end : receives) {
    if (!end->done()) continue;
    std::size_t message = 0;
    while (message < sends.size() && !end->holds(message)) ++message;
    CHECK(message < sends.size());
    if (message < sends.size()) ++got[message];
  }
  for (std::size_t i = 0; i < sends.size(); ++i) {
    CHECK(got[i] <= 1);
    if (sends[i]->done()) CHECK(got[i] == 1);
    if (!sends[i]->over()) CHECK(got[i] == 0);
    // It arrived while its sender gave it up, or it did not.
    if (got[i] == 1 && !sends[i]->done()) CHECK(how(*sends[i]) == LetterEnd::cancelled);
    sends[i]->peer.letters.cancel(sends[i]->id);
  }
  office.settle();
  for (const auto& end : receives) end->peer.letters.cancel(end->id);
  office.settle();
}

/// As above, with receives from any and letters that are given up at any moment on either side.
TEST(what_is_given_up_is_received_at_most_once_and_costs_no_other_message) {
  const unsigned rounds = check::sanitized ? 60 : 400;
  for (unsigned seed = 0; seed < rounds; ++seed) {
    Office office(3, 1 + seed % 3, 1000 + seed);
    auto& dice = office.dice;
    Ends sends, receives;
    const std::size_t sizes[] = {8, chunk, 2 * chunk + 9};
    const std::size_t size = sizes[seed % 3];  // one for all, since who gets what is open
    while (sends.size() < 50 || receives.size() < 50) {
      const auto what = dice() % 60;
      const std::size_t a = dice() % 3, b = (a + 1 + dice() % 2) % 3;
      if (what < 4 && sends.size() < 50) {
        send(office, sends, a, b, 0, size, sends.size());
      } else if (what < 8 && receives.size() < 50) {
        const auto from = dice() % 2 == 0 ? std::nullopt : std::optional(b);
        receive(office, receives, a, from, 0, size);
      } else if (what < 10) {
        Ends& some = dice() % 2 == 0 ? sends : receives;
        if (!some.empty()) {
          End& victim = *some[dice() % some.size()];
          victim.peer.letters.cancel(victim.id);
        }
      } else if (what == 10) {
        office.break_a_lane();
      } else if (what == 11) {
        office.notice_something();
      } else {
        office.move();
      }
      look_at(sends);
      look_at(receives);
    }
    office.settle();
    check_once_at_most(office, sends, receives);
    // A number that was given up is remembered until a later one comes.
    Ends last;
    for (std::size_t a = 0; a < 3; ++a) {
      for (const std::size_t b : {(a + 1) % 3, (a + 2) % 3}) {
        receive(office, last, b, a, 1, size);
        send(office, last, a, b, 1, size, 0);
      }
    }
    office.settle();
    for (const auto& end : last) CHECK(end->done());
    for (const auto& peer : office.peers) {
      CHECK(peer->budget.used() == 0 && peer->letters.open() == 0);
      for (const auto& [other, mail] : peer->mail) {
        CHECK(mail->inbox.refused().empty() && mail->inbox.staged() == 0 && mail->staging == 0);
        CHECK(mail->inbox.arrivals().empty());
      }
    }
  }
}

}  // namespace
