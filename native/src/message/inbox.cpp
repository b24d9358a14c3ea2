// native/src/message/inbox.cpp — what one peer offers, in its order, and what is staged of it.
// Ownership: see inbox.hpp.
// Threads:   under the engine's turn.
// Errors:    see inbox.hpp.
#include "pccl/inbox.hpp"

#include <utility>

namespace pccl {

Arrival* Inbox::find(std::uint64_t number) noexcept {
  const auto it = arrivals_.find(number);
  return it == arrivals_.end() ? nullptr : &it->second;
}

Arrival* Inbox::expect(std::uint64_t number) {
  if (arrivals_.size() >= arrivals_max && !arrivals_.contains(number)) return nullptr;
  return &arrivals_[number];
}

Inbox::News Inbox::offered(std::uint64_t number, Tag tag, const OfferBody& body) {
  if (number == 0 || body.after >= number) return News::broken;
  if (settled(number)) return refused_.contains(number) ? News::refused : News::received;
  if (refused_.size() >= arrivals_max) return News::too_many;
  Arrival* arrival = expect(number);
  if (arrival == nullptr) return News::too_many;
  if (arrival->offered) {
    if (arrival->tag != tag || arrival->what != body.what) return News::broken;
    if (!has_entered(number)) arrival->after = body.after;
    return News::again;
  }
  // (A withdrawn one has nothing staged.)
  const bool fits = !arrival->staged || (body.eager && body.what.chunks() > 0 &&
                                         arrival->staged_bytes == body.what.chunk_bytes(0));
  if (!fits) return News::broken;
  arrival->offered = true;
  arrival->tag = tag;
  arrival->what = body.what;
  arrival->eager = body.eager;
  arrival->after = body.after;
  return News::first;
}

std::uint64_t Inbox::enter(std::uint64_t order) noexcept {
  for (auto it = arrivals_.upper_bound(entered_); it != arrivals_.end();) {
    if (!it->second.offered || it->second.after > entered_) {
      ++it;
      continue;
    }
    // Those in between are settled for the sender: it has given them up.
    for (auto over = arrivals_.upper_bound(entered_); over != it;) {
      (void)unstage(over->second);
      over = arrivals_.erase(over);
    }
    entered_ = it->first;
    if (!it->second.withdrawn) {
      it->second.entered = order;
      return entered_;
    }
    it = arrivals_.erase(it);
  }
  return 0;
}

std::uint64_t Inbox::first(Tag tag) const noexcept {
  for (const auto& [number, arrival] : arrivals_) {
    if (!has_entered(number)) return 0;
    if (arrival.tag == tag && arrival.letter == 0) return number;
  }
  return 0;
}

void Inbox::store(Arrival& arrival, Buffer chunk, std::uint32_t bytes) noexcept {
  staged_ += bytes;
  arrival.staged = std::move(chunk);
  arrival.staged_bytes = bytes;
}

Buffer Inbox::unstage(Arrival& arrival) noexcept {
  staged_ -= std::exchange(arrival.staged_bytes, 0);
  return std::exchange(arrival.staged, Buffer{});
}

void Inbox::settle(std::uint64_t number) noexcept {
  const auto it = arrivals_.find(number);
  if (it == arrivals_.end()) return;
  (void)unstage(it->second);
  arrivals_.erase(it);
}

LetterId Inbox::withdraw(std::uint64_t number) {
  refused_.erase(number);  // it may say only that the refusal was heard
  if (has_entered(number)) {
    const Arrival* arrival = find(number);
    const LetterId letter = arrival == nullptr ? 0 : arrival->letter;
    settle(number);
    return letter;
  }
  // What came after it may name it, so it is remembered until it enters.
  if (Arrival* arrival = expect(number)) {
    arrival->withdrawn = true;
    (void)unstage(*arrival);
  }
  return 0;
}

void Inbox::refuse(std::uint64_t number, const RefusedBody& why) {
  refused_[number] = why;
  settle(number);
}

}  // namespace pccl
