// native/include/pccl/outbox.hpp — messages on their way to one peer, until it has them.
//
// A message is offered first: a number of its own, what it is, and whether its first chunk comes
// without being asked for, for which it holds a share of the link's eager budget.  The rest waits
// for the grant.  Chunks go out in turn, one of each message, and a chunk that a dead lane may have
// swallowed goes out again when the peer says that it lacks it.
//
// Invariants: numbers only grow; at most `offers_max` offers are unsettled; of a message that is
// not granted nothing but an eager first chunk is given to a lane.
// Ownership: memory of the program is borrowed until settle(), withdraw(), drop() or clear().
// Threads:   under the engine's turn.
// Errors:    none of its own.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <span>
#include <vector>

#include "pccl/types.hpp"
#include "pccl/wire.hpp"

namespace pccl {

/// What a link may send that its peer has not asked for; operations and messages share it.
class EagerBudget {
 public:
  explicit EagerBudget(std::uint64_t most) noexcept : most_(most) {}
  [[nodiscard]] bool fits(std::uint64_t bytes) const noexcept { return used_ + bytes <= most_; }
  void take(std::uint64_t bytes) noexcept { used_ += bytes; }
  void give(std::uint64_t bytes) noexcept { used_ -= bytes; }
  [[nodiscard]] std::uint64_t used() const noexcept { return used_; }

 private:
  const std::uint64_t most_;
  std::uint64_t used_ = 0;
};

struct Offer {
  std::uint64_t number = 0;
  LetterId letter = 0;
  Tag tag = 0;
  OfferBody body;
};

struct Chunk {
  std::uint64_t number = 0;
  std::uint32_t index = 0;
  LetterId letter = 0;
  Tag tag = 0;
  const std::byte* data = nullptr;
  std::uint32_t length = 0;
};

class Outbox {
 public:
  explicit Outbox(EagerBudget& budget) : budget_(budget) {}
  Outbox(const Outbox&) = delete;
  Outbox& operator=(const Outbox&) = delete;

  void add(LetterId letter, Tag tag, const Content& what, const std::byte* memory);
  /// The next offer to be made; false: there is none, or too many are unsettled.
  bool offer(Offer& made);
  /// All offers that are not settled, as they read now.
  [[nodiscard]] std::vector<Offer> offers() const;

  /// All of it may go; `again`: the first chunk was thrown away.  False: no such message.
  bool grant(std::uint64_t number, bool again);
  /// What the peer has of it; what dead lanes held is sent again.  False: no such message.
  bool held(std::uint64_t number, std::span<const std::byte> bitmap,
            const std::function<bool(std::uint32_t)>& has_lane);
  /// It is over; returns whose it was, 0 if there is no such message.
  LetterId settle(std::uint64_t number) noexcept;
  /// Of a message that was not offered yet.
  void withdraw(LetterId letter) noexcept;
  /// All messages; their numbers are not given again.
  void drop() noexcept;
  /// The same, and numbers begin anew.
  void clear() noexcept;

  [[nodiscard]] bool has_chunks() const noexcept { return !small_.empty() || !bulk_.empty(); }
  /// The next chunk for that lane of a small message, or of a large one.
  bool next(bool small, std::uint32_t lane, Chunk& chunk);

  static constexpr std::size_t offers_max = 4096;
  static constexpr std::uint64_t small_bytes_max = 64 * 1024;  // they overtake larger ones

 private:
  struct Message {
    LetterId letter = 0;
    Tag tag = 0;
    Content what;
    const std::byte* memory = nullptr;
    bool eager = false;
    bool granted = false;
    bool listed = false;
    std::uint64_t budget = 0;        // bytes of it that are held
    std::uint32_t next = 0;          // the first chunk that was never sent
    std::deque<std::uint32_t> again;
    std::vector<std::uint32_t> lane; // per chunk: 0 not sent, or to be sent again; else id + 1
  };
  [[nodiscard]] Offer offer_of(std::uint64_t number, const Message& message,
                               std::uint64_t after) const noexcept;
  [[nodiscard]] static bool ready(const Message& message) noexcept;
  void list(std::uint64_t number, Message& message);
  void give_back(Message& message) noexcept;
  static void repeat(Message& message, std::uint32_t chunk);

  EagerBudget& budget_;
  std::uint64_t last_ = 0;  // the number that was given last
  std::deque<Message> waiting_;
  std::map<std::uint64_t, Message> offered_;
  std::deque<std::uint64_t> small_;
  std::deque<std::uint64_t> bulk_;
};

}  // namespace pccl
