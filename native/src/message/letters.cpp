// native/src/message/letters.cpp — what the program posts, who is there, and how letters end.
// Ownership: see letters.hpp.
// Threads:   under the engine's turn.
// Errors:    none.
#include "pccl/letters.hpp"

#include <algorithm>
#include <cstring>

#include "pccl/text.hpp"

namespace pccl {

Letter& Letters::post(Tag tag, const Content& what, std::byte* memory, double deadline_s) {
  Letter& letter = letters_[++last_];
  letter.id = last_;
  letter.tag = tag;
  letter.what = what;
  letter.memory = memory;
  letter.deadline_s = deadline_s;
  ++open_;
  return letter;
}

LetterId Letters::send(Correspondent& to, Tag tag, const Content& what, const std::byte* memory,
                       double deadline_s) {
  Letter& letter = post(tag, what, const_cast<std::byte*>(memory), deadline_s);
  letter.sends = true;
  letter.named = letter.partner = &to;
  to.outbox.add(letter.id, tag, what, memory);
  offer(to);
  return letter.id;
}

LetterId Letters::receive(Correspondent* from, Tag tag, const Content& what, std::byte* memory,
                          double deadline_s) {
  Letter& letter = post(tag, what, memory, deadline_s);
  letter.named = from;
  waiting_.push_back(letter.id);
  look(letter);
  return letter.id;
}

LetterId Letters::lost(const PeerId& peer, Tag tag, const Content& what, bool sends) {
  Letter& letter = post(tag, what, nullptr, 0);
  letter.sends = sends;
  letter.peer = peer;
  end(letter, nullptr, LetterEnd::lost);
  return letter.id;
}

Letter* Letters::find(LetterId id) noexcept {
  const auto it = letters_.find(id);
  return it == letters_.end() ? nullptr : &it->second;
}

void Letters::release(LetterId id) noexcept {
  const auto it = letters_.find(id);
  if (it != letters_.end() && it->second.state != LetterState::open) letters_.erase(it);
}

/// The message that entered first of those that fit.
void Letters::look(Letter& letter) {
  Correspondent* from = nullptr;
  std::uint64_t number = 0;
  std::uint64_t entered = ~std::uint64_t{0};
  for (const auto& [name, mail] : known_) {
    if (mail->rank < 0 || (letter.named != nullptr && letter.named != mail.get())) continue;
    const std::uint64_t first = mail->inbox.first(letter.tag);
    if (first == 0) continue;
    const std::uint64_t order = mail->inbox.find(first)->entered;
    if (order >= entered) continue;
    entered = order;
    number = first;
    from = mail.get();
  }
  if (from != nullptr) match(letter, *from, number);
}

/// Each message that enters goes to the receive that was posted first of those that fit.
void Letters::enter(Correspondent& from) {
  while (const std::uint64_t number = from.inbox.enter(++entered_)) {
    const Tag tag = from.inbox.find(number)->tag;
    const auto fits = [&](LetterId id) {
      const Letter& letter = *find(id);
      return letter.tag == tag && (letter.named == nullptr || letter.named == &from);
    };
    const auto found = std::find_if(waiting_.begin(), waiting_.end(), fits);
    if (found != waiting_.end()) match(*find(*found), from, number);
  }
}

void Letters::match(Letter& letter, Correspondent& from, std::uint64_t number) {
  std::erase(waiting_, letter.id);
  Arrival& arrival = *from.inbox.find(number);
  letter.partner = &from;
  letter.number = number;
  if (arrival.what != letter.what) {
    std::string text = difference(letter, from, arrival.what);
    const RefusedBody why{letter.what, RefusalCode::differs};
    from.inbox.refuse(number, why);
    say_refused(from, number, why);
    return end(letter, &from, LetterEnd::differs, std::move(text));
  }
  arrival.letter = letter.id;
  arrival.received.assign(arrival.what.chunks(), 0);
  arrival.left = arrival.what.chunks();
  if (const std::uint32_t staged = arrival.staged_bytes; arrival.staged) {
    const Buffer chunk = from.inbox.unstage(arrival);
    std::memcpy(letter.memory, chunk.data(), staged);
    arrival.received[0] = 1;
    --arrival.left;
  }
  if (arrival.left == 0) return complete(from, number, arrival);
  if (arrival.needs_grant()) {
    say(from, FrameType::grant, from.inbox.era, number, letter.tag, arrival.dropped ? 1 : 0);
  }
}

void Letters::complete(Correspondent& from, std::uint64_t number, Arrival& arrival) {
  Letter& letter = *find(arrival.letter);
  from.inbox.settle(number);
  say(from, FrameType::received, from.inbox.era, number, letter.tag);
  end(letter, &from, LetterEnd::none);
}

/// The other end need not count on this one any more.  A refusal may be said later: see view().
void Letters::give_up(Letter& letter, bool say_refusal) {
  std::erase(waiting_, letter.id);
  Correspondent* with = letter.partner;
  if (with == nullptr) return;
  if (!letter.sends) {
    const RefusedBody why{letter.what, RefusalCode::given_up};
    with->inbox.refuse(letter.number, why);
    if (say_refusal) say_refused(*with, letter.number, why);
  } else if (letter.number == 0) {
    with->outbox.withdraw(letter.id);
  } else {
    (void)with->outbox.settle(letter.number);
    say(*with, FrameType::withdrawn, with->inbox.era, letter.number, letter.tag);
  }
}

void Letters::cancel(LetterId id, LetterEnd why) {
  Letter* letter = find(id);
  if (letter == nullptr || letter->state != LetterState::open) return;
  Correspondent* with = letter->partner;
  give_up(*letter, true);
  end(*letter, with != nullptr ? with : letter->named, why);
  if (letter->sends) offer(*with);
}

/// `with`: whom it was about, if that is known.
void Letters::end(Letter& letter, Correspondent* with, LetterEnd why, std::string text) {
  if (letter.partner != nullptr) host_.let_go(*letter.partner, letter.id);
  letter.state = why == LetterEnd::none ? LetterState::done : LetterState::failed;
  letter.end = why;
  letter.text = std::move(text);
  letter.epoch = epoch_;
  letter.named = letter.partner = nullptr;
  if (with != nullptr) {
    letter.peer = with->peer;
    letter.rank = with->rank;
  }
  --open_;
  if (why == LetterEnd::none) ++(letter.sends ? sends_done : receives_done);
  host_.ended(letter);
}

void Letters::expire(double now_s) {
  if (open_ == 0) return;
  std::vector<LetterId> late;
  for (const auto& [id, letter] : letters_) {
    if (letter.state == LetterState::open && letter.deadline_s <= now_s) late.push_back(id);
  }
  for (const LetterId id : late) cancel(id, LetterEnd::late);
}

std::string Letters::difference(const Letter& letter, const Correspondent& with,
                                const Content& theirs) const {
  const Content& sent = letter.sends ? letter.what : theirs;
  const Content& expected = letter.sends ? theirs : letter.what;
  const PeerId& sender = letter.sends ? self_ : with.peer;
  const PeerId& receiver = letter.sends ? with.peer : self_;
  return "tag " + std::to_string(letter.tag) + ": peer " + short_name(sender) + " sends " +
         describe(sent) + ", peer " + short_name(receiver) + " receives " + describe(expected);
}

// --- who is there ---

Correspondent& Letters::meet(PeerId peer, Incarnation incarnation, EagerBudget& budget,
                             Link* link) {
  const Name name{peer, incarnation};
  if (const auto known = known_.find(name); known != known_.end()) return *known->second;
  auto made = std::make_unique<Correspondent>(peer, incarnation, budget, link);
  return *known_.emplace(name, std::move(made)).first->second;
}

void Letters::forget(Correspondent& gone) {
  lose(gone, LetterEnd::lost);
  known_.erase({gone.peer, gone.incarnation});
}

/// Ends what is open with it.  What both ends know of each other's numbers stays: it may come back
/// within the same era, and may never have noticed.
void Letters::lose(Correspondent& gone, LetterEnd why) {
  std::vector<LetterId> hers;
  for (const auto& [id, letter] : letters_) {
    const bool with = letter.partner == &gone || letter.named == &gone;
    if (letter.state == LetterState::open && with) hers.push_back(id);
  }
  for (const LetterId id : hers) {
    Letter& letter = *find(id);
    give_up(letter, false);
    end(letter, &gone, why);
  }
  gone.rank = -1;
}

void Letters::view(Epoch epoch, const std::vector<Member>& members) {
  const auto named = [&](const PeerId& peer) {
    return std::find_if(members.begin(), members.end(),
                        [&](const Member& member) { return member.peer == peer; });
  };
  const auto me = named(self_);
  if (me == members.end()) return;
  const auto era_with = [&](const Member& other) {
    return static_cast<Epoch>(me->first_step + other.first_step);
  };
  Correspondent* lost = nullptr;
  for (const auto& [name, mail] : known_) {
    const auto member = named(mail->peer);
    const bool stays = member != members.end() && member->incarnation == mail->incarnation &&
                       era_with(*member) == mail->inbox.era;
    if (mail->rank < 0 || stays) continue;
    lose(*mail, LetterEnd::lost);
    lost = mail.get();
  }
  // Who waits for any of them cannot know whether it waited for that one.
  for (const std::vector<LetterId> all = waiting_; const LetterId id : all) {
    if (lost == nullptr || find(id)->named != nullptr) continue;
    std::erase(waiting_, id);
    end(*find(id), lost, LetterEnd::lost);
  }
  epoch_ = epoch;
  for (const auto& [name, mail] : known_) {
    const auto member = named(mail->peer);
    if (member == members.end() || member->incarnation != mail->incarnation || member == me) {
      continue;
    }
    const bool comes_in = mail->rank < 0;
    mail->rank = static_cast<int>(member - members.begin());
    if (comes_in) begin(*mail, era_with(*member));
  }
}

void Letters::begin(Correspondent& with, Epoch era) {
  if (with.inbox.era != era) {
    with.outbox.clear();
    with.inbox = with.ahead && with.ahead->era == era ? std::move(*with.ahead) : Inbox{era};
  }
  with.ahead.reset();
  // It may have sent all the while, if it has not noticed that it was lost here.
  for (const auto& [number, why] : with.inbox.refused()) say_refused(with, number, why);
  enter(with);
}

void Letters::end_all(LetterEnd why) {
  if (why != LetterEnd::closed) {
    for (const auto& [name, mail] : known_) lose(*mail, why);
  }
  // This needs no memory: it is also what happens when there is none.
  waiting_.clear();
  for (const auto& [name, mail] : known_) mail->outbox.drop();
  for (auto& [id, letter] : letters_) {
    if (letter.state == LetterState::open) end(letter, letter.partner, why);
  }
}

}  // namespace pccl
