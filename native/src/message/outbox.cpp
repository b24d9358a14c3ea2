// native/src/message/outbox.cpp — what is offered to one peer, granted, sent, and sent again.
// Ownership: see outbox.hpp.
// Threads:   under the engine's turn.
// Errors:    none.
#include "pccl/outbox.hpp"

#include <algorithm>
#include <utility>

namespace pccl {

void Outbox::add(LetterId letter, Tag tag, const Content& what, const std::byte* memory) {
  Message message;
  message.letter = letter;
  message.tag = tag;
  message.what = what;
  message.memory = memory;
  message.lane.assign(what.chunks(), 0);
  waiting_.push_back(std::move(message));
}

Offer Outbox::offer_of(std::uint64_t number, const Message& message,
                       std::uint64_t after) const noexcept {
  return {number, message.letter, message.tag, {message.what, message.eager, after}};
}

bool Outbox::offer(Offer& made) {
  if (waiting_.empty() || offered_.size() >= offers_max) return false;
  const std::uint64_t after = offered_.empty() ? 0 : offered_.rbegin()->first;
  const std::uint64_t number = ++last_;
  Message& message = offered_[number] = std::move(waiting_.front());
  waiting_.pop_front();
  const std::uint64_t first = message.what.chunks() > 0 ? message.what.chunk_bytes(0) : 0;
  if (budget_.fits(first)) {
    message.eager = true;
    message.budget = first;
    budget_.take(first);
  }
  made = offer_of(number, message, after);
  list(number, message);
  return true;
}

std::vector<Offer> Outbox::offers() const {
  std::vector<Offer> all;
  std::uint64_t after = 0;
  for (const auto& [number, message] : offered_) {
    all.push_back(offer_of(number, message, std::exchange(after, number)));
  }
  return all;
}

bool Outbox::ready(const Message& message) noexcept {
  if (!message.again.empty()) return true;
  return message.next < message.lane.size() &&
         (message.granted || (message.eager && message.next == 0));
}

void Outbox::list(std::uint64_t number, Message& message) {
  if (message.listed || !ready(message)) return;
  message.listed = true;
  (message.what.bytes() <= small_bytes_max ? small_ : bulk_).push_back(number);
}

void Outbox::give_back(Message& message) noexcept {
  budget_.give(std::exchange(message.budget, 0));
}

void Outbox::repeat(Message& message, std::uint32_t chunk) {
  message.lane[chunk] = 0;
  message.again.push_back(chunk);
}

bool Outbox::grant(std::uint64_t number, bool again) {
  const auto it = offered_.find(number);
  if (it == offered_.end()) return false;
  Message& message = it->second;
  if (message.granted) return true;  // said again
  message.granted = true;
  give_back(message);
  // Not if it was never sent, nor if it is queued already.
  if (again && message.next > 0 && message.lane[0] != 0) repeat(message, 0);
  list(number, message);
  return true;
}

bool Outbox::held(std::uint64_t number, std::span<const std::byte> bitmap,
                  const std::function<bool(std::uint32_t)>& has_lane) {
  const auto it = offered_.find(number);
  if (it == offered_.end()) return false;
  Message& message = it->second;
  if (bitmap.size() != (message.lane.size() + 7) / 8) return true;
  for (std::uint32_t chunk = 0; chunk < message.next; ++chunk) {
    const bool arrived = (std::to_integer<unsigned>(bitmap[chunk / 8]) >> (chunk % 8) & 1u) != 0;
    const std::uint32_t lane = message.lane[chunk];
    if (!arrived && lane != 0 && !has_lane(lane - 1)) repeat(message, chunk);
  }
  list(number, message);
  return true;
}

LetterId Outbox::settle(std::uint64_t number) noexcept {
  const auto it = offered_.find(number);
  if (it == offered_.end()) return 0;
  give_back(it->second);
  if (it->second.listed) {
    std::erase(small_, number);
    std::erase(bulk_, number);
  }
  const LetterId letter = it->second.letter;
  offered_.erase(it);
  return letter;
}

void Outbox::withdraw(LetterId letter) noexcept {
  std::erase_if(waiting_, [&](const Message& message) { return message.letter == letter; });
}

void Outbox::drop() noexcept {
  for (auto& [number, message] : offered_) give_back(message);
  offered_.clear();
  waiting_.clear();
  small_.clear();
  bulk_.clear();
}

void Outbox::clear() noexcept {
  drop();
  last_ = 0;
}

bool Outbox::next(bool small, std::uint32_t lane, Chunk& chunk) {
  std::deque<std::uint64_t>& queue = small ? small_ : bulk_;
  if (queue.empty()) return false;
  const std::uint64_t number = queue.front();
  queue.pop_front();
  Message& message = offered_.at(number);
  message.listed = false;
  std::uint32_t index = message.next;
  if (message.again.empty()) {
    ++message.next;
  } else {
    index = message.again.front();
    message.again.pop_front();
  }
  message.lane[index] = lane + 1;
  chunk = {number, index, message.letter, message.tag,
           message.memory + std::uint64_t{index} * chunk_bytes_max,
           message.what.chunk_bytes(index)};
  list(number, message);  // behind the others
  return true;
}

}  // namespace pccl
