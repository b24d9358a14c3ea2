// native/include/pccl/letters.hpp — messages between programs: matching, and what becomes of them.
//
// A letter is what a program has posted: a send to one peer, or a receive from one or from any.
// Letters match by source and tag, in the order of posting on both sides.  A send is done when the
// other end has all of it in its array.  Letters belong to no step: they outlive changes of the
// view as long as both ends stay in it, and end at once when one does not.
//
// An era tells the memberships of a pair apart: first steps of both ends, added up.  A straggler
// that was excluded comes in again with the same incarnation and the same lanes, and numbers begin
// anew then.  What comes of a later era than the present one waits for the view.  A peer that is
// lost and comes back within the same era (a plan to leave was taken back) goes on where it was.
//
// Ownership: memory of the program is borrowed while its letter is open, and is touched by nobody
//            once ended() was called for it.
// Threads:   under the engine's turn.
// Errors:    Status::protocol and exhausted end the lane that a frame came by.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "pccl/inbox.hpp"
#include "pccl/lane.hpp"
#include "pccl/outbox.hpp"
#include "pccl/outcome.hpp"
#include "pccl/status.hpp"
#include "pccl/types.hpp"

namespace pccl {

class Link;

/// The other end of letters: one incarnation of a peer.
struct Correspondent {
  Correspondent(PeerId name, Incarnation number, EagerBudget& budget, Link* its_link)
      : peer(name), incarnation(number), link(its_link), outbox(budget) {}
  const PeerId peer;
  const Incarnation incarnation;
  Link* const link;  // of no concern here
  int rank = -1;     // in the own group's view; -1: no member
  Outbox outbox;
  Inbox inbox;
  std::optional<Inbox> ahead;  // of a later era than the view in force knows
  std::uint64_t staging = 0;   // bytes of chunks that are being staged and are not whole
};

enum class LetterState : std::uint8_t { open = 0, done = 1, failed = 2 };

enum class LetterEnd : std::uint8_t {
  none = 0,
  differs = 1,    // the other end posted something else
  lost = 2,       // the other end is no member any more
  given_up = 3,   // the other end does not receive it any more
  late = 4,       // its deadline is over
  cancelled = 5,  // by this program
  left = 6,       // this peer has left the run
  excluded = 7,   // this peer is out of the view
  closed = 8,     // the engine has ended
};

struct Letter {
  LetterId id = 0;
  bool sends = false;
  Tag tag = 0;
  Content what;
  std::byte* memory = nullptr;
  double deadline_s = 0;
  Correspondent* named = nullptr;    // by the program; null: any
  Correspondent* partner = nullptr;  // known once they match; null at the end
  std::uint64_t number = 0;          // of a send: once it was offered; of a receive: once matched
  LetterState state = LetterState::open;
  LetterEnd end = LetterEnd::none;
  PeerId peer{};                     // the other end; of `lost`: who was
  int rank = -1;                     // its rank then
  Epoch epoch = 0;                   // of the view in force then
  std::string text;
  bool notify = false;
};

class LettersHost {
 public:
  virtual void say(Correspondent& to, FrameHeader header, std::span<const std::byte> body) = 0;
  /// Its outbox has something to send (again).
  virtual void has_chunks(Correspondent& to) noexcept = 0;
  /// No lane to that peer may touch the letter's memory any more.
  virtual void let_go(Correspondent& to, LetterId letter) noexcept = 0;
  virtual void ended(const Letter& letter) = 0;

 protected:
  ~LettersHost() = default;
};

class Letters {
 public:
  Letters(PeerId self, LettersHost& host) noexcept : self_(self), host_(host) {}

  // --- the program ---
  LetterId send(Correspondent& to, Tag tag, const Content& what, const std::byte* memory,
                double deadline_s);
  /// `from` null: from any.
  LetterId receive(Correspondent* from, Tag tag, const Content& what, std::byte* memory,
                   double deadline_s);
  /// A letter to or from somebody who is no member: it has ended at once, as lost.
  LetterId lost(const PeerId& peer, Tag tag, const Content& what, bool sends);
  void cancel(LetterId id, LetterEnd why = LetterEnd::cancelled);
  [[nodiscard]] Letter* find(LetterId id) noexcept;
  /// Forgets a letter that has ended.
  void release(LetterId id) noexcept;
  [[nodiscard]] std::size_t open() const noexcept { return open_; }
  /// Ends those whose deadline is over.
  void expire(double now_s);

  // --- who is there ---
  Correspondent& meet(PeerId peer, Incarnation incarnation, EagerBudget& budget, Link* link);
  void forget(Correspondent& gone);
  /// `members`: of the own group, in rank order, this peer among them.
  void view(Epoch epoch, const std::vector<Member>& members);
  /// This peer is in no view, or ends.
  void end_all(LetterEnd why);

  // --- frames ---
  Status place(Correspondent& from, const FrameHeader& header, std::uint64_t staged_otherwise,
               std::uint64_t staged_max, BufferPool& buffers, Placement& placement);
  /// A chunk is whole.
  Status delivered(Correspondent& from, const FrameHeader& header, Placement& placement);
  /// Any other frame.  `lost_lane`: what came before it may have been lost.
  Status heard(Correspondent& from, const FrameHeader& header, const std::byte* body,
               bool lost_lane, const std::function<bool(std::uint32_t)>& has_lane);
  /// A lane died: says again what it may have carried.
  void resynchronise(Correspondent& with);

  std::uint64_t sends_done = 0;
  std::uint64_t receives_done = 0;

 private:
  using Name = std::pair<PeerId, Incarnation>;
  Letter& post(Tag tag, const Content& what, std::byte* memory, double deadline_s);
  void offer(Correspondent& to);
  void enter(Correspondent& from);
  void look(Letter& letter);
  void match(Letter& letter, Correspondent& from, std::uint64_t number);
  void give_up(Letter& letter, bool say_refusal);
  void complete(Correspondent& from, std::uint64_t number, Arrival& arrival);
  void withdrawn(Correspondent& from, Inbox& inbox, std::uint64_t number);
  Status offered(Correspondent& from, const FrameHeader& header, const std::byte* body,
                 bool lost_lane);
  void refused(Correspondent& from, std::uint64_t number, const RefusedBody& why);
  void end(Letter& letter, Correspondent* with, LetterEnd why, std::string text = {});
  void lose(Correspondent& gone, LetterEnd why);
  void begin(Correspondent& with, Epoch era);
  [[nodiscard]] Inbox* inbox_for(Correspondent& from, Epoch era);
  [[nodiscard]] std::string difference(const Letter& letter, const Correspondent& with,
                                       const Content& theirs) const;
  void say(Correspondent& to, FrameType type, Epoch era, std::uint64_t number, Tag tag,
           std::uint32_t slice = 0, std::span<const std::byte> body = {});
  void say_held(Correspondent& to, const Inbox& inbox, std::uint64_t number,
                const Arrival& arrival);
  void say_refused(Correspondent& to, std::uint64_t number, const RefusedBody& why);
  void say_offer(Correspondent& to, const Offer& made);

  const PeerId self_;
  LettersHost& host_;
  Epoch epoch_ = 0;
  std::map<Name, std::unique_ptr<Correspondent>> known_;
  std::map<LetterId, Letter> letters_;
  std::vector<LetterId> waiting_;  // receives that nothing has matched, in the order of posting
  LetterId last_ = 0;
  std::size_t open_ = 0;
  std::uint64_t entered_ = 0;
};

}  // namespace pccl
