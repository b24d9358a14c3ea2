// native/include/pccl/inbox.hpp — messages from one peer, in the order in which it posted them.
//
// Offers and chunks may come by any lane, so in any order.  A message *enters* when all before it
// have: its offer names the one before it that is not settled, so that numbers of messages that the
// sender has given up leave no hole.  What comes before a message is received is staged: its first
// chunk, if the sender was free to send it.
//
// Invariants: messages enter in the order of their numbers; a number that has entered and is no
// arrival any more is settled, and received unless it is among the refused.
// Ownership: owns staged chunks.
// Threads:   under the engine's turn.
// Errors:    News::too_many and null where the peer keeps more open than a correct one does.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <vector>

#include "pccl/buffers.hpp"
#include "pccl/types.hpp"
#include "pccl/wire.hpp"

namespace pccl {

struct Arrival {
  Tag tag = 0;
  Content what;
  bool offered = false;       // else only a chunk of it has come
  bool eager = false;
  bool withdrawn = false;     // before it had entered: it does, and is gone
  bool dropped = false;       // its first chunk came, and there was no room to stage it
  std::uint64_t after = 0;
  std::uint64_t entered = 0;  // its place among the messages of all peers
  Buffer staged;
  std::uint32_t staged_bytes = 0;
  LetterId letter = 0;        // who receives it
  std::vector<std::uint8_t> received{};  // per chunk, once it is being received
  std::uint32_t left = 0;

  /// The sender waits for a word before it sends (all of) it.
  [[nodiscard]] bool needs_grant() const noexcept {
    return !eager || dropped || what.chunks() > 1;
  }
};

class Inbox {
 public:
  explicit Inbox(Epoch of_era = 0) noexcept : era(of_era) {}

  enum class News : std::uint8_t { first, again, received, refused, broken, too_many };
  News offered(std::uint64_t number, Tag tag, const OfferBody& body);
  /// Lets the next message in whose turn it is and returns its number; 0: none.
  std::uint64_t enter(std::uint64_t order) noexcept;
  [[nodiscard]] bool has_entered(std::uint64_t number) const noexcept {
    return number <= entered_;
  }
  [[nodiscard]] bool settled(std::uint64_t number) const noexcept {
    return has_entered(number) && !arrivals_.contains(number);
  }
  [[nodiscard]] Arrival* find(std::uint64_t number) noexcept;
  /// Of a message whose offer has not come yet; null: there are too many.
  [[nodiscard]] Arrival* expect(std::uint64_t number);
  /// The first one with that tag that has entered and that nobody receives; 0: none.
  [[nodiscard]] std::uint64_t first(Tag tag) const noexcept;

  void store(Arrival& arrival, Buffer chunk, std::uint32_t bytes) noexcept;
  Buffer unstage(Arrival& arrival) noexcept;
  /// It is received.
  void settle(std::uint64_t number) noexcept;
  /// The sender has given it up; returns who received it, 0 for nobody.
  LetterId withdraw(std::uint64_t number);
  void refuse(std::uint64_t number, const RefusedBody& why);

  [[nodiscard]] std::uint64_t staged() const noexcept { return staged_; }
  [[nodiscard]] std::map<std::uint64_t, Arrival>& arrivals() noexcept { return arrivals_; }
  [[nodiscard]] const std::map<std::uint64_t, RefusedBody>& refused() const noexcept {
    return refused_;
  }

  Epoch era;
  // Far above what a correct peer keeps unsettled (Outbox::offers_max).
  static constexpr std::size_t arrivals_max = 65536;

 private:
  std::map<std::uint64_t, Arrival> arrivals_;
  std::map<std::uint64_t, RefusedBody> refused_;
  std::uint64_t entered_ = 0;  // all numbers up to here have, or never will
  std::uint64_t staged_ = 0;
};

}  // namespace pccl
