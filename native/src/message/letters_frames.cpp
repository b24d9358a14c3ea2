// native/src/message/letters_frames.cpp — what peers say about messages, and what they are told.
// Ownership: see letters.hpp.
// Threads:   under the engine's turn.
// Errors:    Status::protocol for frames that no correct peer sends.
#include <algorithm>
#include <array>
#include <cstring>

#include "pccl/letters.hpp"
#include "pccl/xxh3.hpp"

namespace pccl {

Inbox* Letters::inbox_for(Correspondent& from, Epoch era) {
  const auto newer = [&](Epoch than) { return static_cast<std::int32_t>(era - than) > 0; };
  if (era == from.inbox.era) return &from.inbox;
  if (from.rank >= 0 && !newer(from.inbox.era)) return nullptr;
  // It has seen a view that is not in force here yet.
  if (!from.ahead || newer(from.ahead->era)) from.ahead.emplace(era);
  return from.ahead->era == era ? &*from.ahead : nullptr;
}

Status Letters::place(Correspondent& from, const FrameHeader& header,
                      std::uint64_t staged_otherwise, std::uint64_t staged_max,
                      BufferPool& buffers, Placement& placement) {
  Inbox* inbox = inbox_for(from, header.epoch);
  if (header.step == 0) return Status::protocol;
  if (inbox == nullptr || inbox->settled(header.step)) return Status::ok;  // discarded
  Arrival* arrival = inbox->find(header.step);
  if (arrival != nullptr && arrival->offered) {
    const Content& what = arrival->what;
    if (header.slice >= what.chunks() || header.length != what.chunk_bytes(header.slice)) {
      return Status::protocol;
    }
    if (arrival->letter != 0) {
      if (arrival->received[header.slice] != 0) return Status::ok;  // sent twice
      placement.kind = Placement::Kind::direct;
      placement.letter = arrival->letter;
      placement.target = find(arrival->letter)->memory +
                         std::uint64_t{header.slice} * chunk_bytes_max;
      return Status::ok;
    }
    if (!arrival->eager) return Status::protocol;
  }
  if (header.slice != 0) return Status::protocol;  // without a grant
  if (arrival == nullptr) arrival = inbox->expect(header.step);
  if (arrival == nullptr) return Status::exhausted;
  if (arrival->staged || arrival->withdrawn) return Status::ok;
  std::uint64_t staged = staged_otherwise + from.staging + from.inbox.staged() + header.length;
  if (from.ahead) staged += from.ahead->staged();
  if (staged <= staged_max) placement.buffer = buffers.take(header.length);
  if (!placement.buffer) {
    arrival->dropped = true;  // the grant will ask for it again
    return Status::ok;
  }
  placement.kind = Placement::Kind::staged;
  placement.target = placement.buffer.data();
  from.staging += header.length;
  return Status::ok;
}

Status Letters::delivered(Correspondent& from, const FrameHeader& header, Placement& placement) {
  const bool staged = placement.kind == Placement::Kind::staged;
  if (staged) from.staging -= header.length;
  const std::span<const std::byte> chunk{placement.target, header.length};
  if (xxh3_128(chunk, chunk_seed(header.step, header.slice)).low != header.payload_hash) {
    return Status::protocol;  // damaged on the way: the lane ends and the chunk comes again
  }
  Inbox* inbox = inbox_for(from, header.epoch);
  if (inbox == nullptr || inbox->settled(header.step)) return Status::ok;
  Arrival* arrival = inbox->find(header.step);
  if (arrival == nullptr) return Status::ok;
  if (staged && arrival->letter == 0) {
    if (arrival->staged || arrival->withdrawn) return Status::ok;
    if (arrival->offered && (!arrival->eager || arrival->what.chunks() == 0 ||
                             header.length != arrival->what.chunk_bytes(0))) {
      return Status::protocol;
    }
    inbox->store(*arrival, std::move(placement.buffer), header.length);
    return Status::ok;
  }
  if (arrival->letter == 0 || (!staged && arrival->letter != placement.letter)) return Status::ok;
  std::uint8_t& received = arrival->received[header.slice];
  if (received != 0) return Status::ok;  // the other copy was faster
  if (staged) {  // its receive was posted while it was on its way
    if (header.length != arrival->what.chunk_bytes(0)) return Status::protocol;
    std::memcpy(find(arrival->letter)->memory, placement.target, header.length);
  }
  received = 1;
  --arrival->left;
  if (arrival->left == 0) complete(from, header.step, *arrival);
  return Status::ok;
}

Status Letters::heard(Correspondent& from, const FrameHeader& header, const std::byte* body,
                      bool lost_lane, const std::function<bool(std::uint32_t)>& has_lane) {
  if (header.type == FrameType::offer) return offered(from, header, body, lost_lane);
  if (header.type == FrameType::withdrawn) {
    if (Inbox* inbox = inbox_for(from, header.epoch)) withdrawn(from, *inbox, header.step);
    return Status::ok;
  }
  // Answers to what was sent here: of an earlier era they mean nothing any more.
  if (header.epoch != from.inbox.era) return Status::ok;
  bool known = true;
  switch (header.type) {
    case FrameType::grant: known = from.outbox.grant(header.step, header.slice != 0); break;
    case FrameType::held:
      known = from.outbox.held(header.step, {body, header.length}, has_lane);
      break;
    case FrameType::received:
      if (const LetterId id = from.outbox.settle(header.step); id != 0) {
        end(*find(id), &from, LetterEnd::none);
        offer(from);
      }
      return Status::ok;
    case FrameType::refused: {
      RefusedBody why;
      const auto bytes = std::span<const std::byte, refused_bytes>(body, refused_bytes);
      if (const Status status = decode(bytes, why); status != Status::ok) return status;
      refused(from, header.step, why);
      return Status::ok;
    }
    default: return Status::protocol;
  }
  if (known) {
    host_.has_chunks(from);
  } else {
    say(from, FrameType::withdrawn, from.inbox.era, header.step, header.tag);
  }
  return Status::ok;
}

Status Letters::offered(Correspondent& from, const FrameHeader& header, const std::byte* body,
                        bool lost_lane) {
  OfferBody what;
  const auto bytes = std::span<const std::byte, offer_bytes>(body, offer_bytes);
  if (const Status status = decode(bytes, what); status != Status::ok) return status;
  Inbox* inbox = inbox_for(from, header.epoch);
  if (inbox == nullptr) return Status::ok;
  const std::uint64_t number = header.step;
  switch (inbox->offered(number, header.tag, what)) {
    case Inbox::News::broken: return Status::protocol;
    case Inbox::News::too_many: return Status::exhausted;
    case Inbox::News::received:
      say(from, FrameType::received, inbox->era, number, header.tag);
      return Status::ok;
    case Inbox::News::refused:
      say_refused(from, number, inbox->refused().at(number));
      return Status::ok;
    case Inbox::News::first:
      // Its first chunk may have been lost with a lane before it was known here.
      if (lost_lane) say_held(from, *inbox, number, *inbox->find(number));
      break;
    case Inbox::News::again: break;
  }
  if (inbox == &from.inbox && from.rank >= 0) enter(from);
  return Status::ok;
}

void Letters::refused(Correspondent& from, std::uint64_t number, const RefusedBody& why) {
  // That it was heard, so that it need not be remembered there.
  say(from, FrameType::withdrawn, from.inbox.era, number, 0);
  const LetterId id = from.outbox.settle(number);
  if (id == 0) return;
  Letter& letter = *find(id);
  if (why.code == RefusalCode::given_up) {
    end(letter, &from, LetterEnd::given_up);
  } else {
    end(letter, &from, LetterEnd::differs, difference(letter, from, why.expected));
  }
  offer(from);
}

/// Whoever received it waits again, in its old place: the message counts as never sent.
void Letters::withdrawn(Correspondent& from, Inbox& inbox, std::uint64_t number) {
  const LetterId id = inbox.withdraw(number);
  if (id == 0) return;
  host_.let_go(from, id);
  Letter& letter = *find(id);
  letter.partner = nullptr;
  letter.number = 0;
  waiting_.insert(std::lower_bound(waiting_.begin(), waiting_.end(), id), id);
  look(letter);
}

void Letters::offer(Correspondent& to) {
  Offer made;
  while (to.outbox.offer(made)) {
    find(made.letter)->number = made.number;
    say_offer(to, made);
  }
  host_.has_chunks(to);
}

void Letters::resynchronise(Correspondent& with) {
  for (const Offer& made : with.outbox.offers()) say_offer(with, made);
  for (auto& [number, arrival] : with.inbox.arrivals()) {
    if (arrival.letter != 0 && arrival.needs_grant()) {
      say(with, FrameType::grant, with.inbox.era, number, arrival.tag, arrival.dropped ? 1 : 0);
    }
    say_held(with, with.inbox, number, arrival);
  }
  for (const auto& [number, why] : with.inbox.refused()) say_refused(with, number, why);
  if (!with.ahead) return;
  for (auto& [number, arrival] : with.ahead->arrivals()) {
    say_held(with, *with.ahead, number, arrival);
  }
}

// --- words ---

void Letters::say(Correspondent& to, FrameType type, Epoch era, std::uint64_t number, Tag tag,
                  std::uint32_t slice, std::span<const std::byte> body) {
  FrameHeader header;
  header.type = type;
  header.epoch = era;
  header.step = number;
  header.tag = tag;
  header.slice = slice;
  host_.say(to, header, body);
}

/// Also of what is empty, or not offered yet: the sender may have forgotten it and said so in vain.
void Letters::say_held(Correspondent& to, const Inbox& inbox, std::uint64_t number,
                       const Arrival& arrival) {
  if (arrival.withdrawn) return;
  std::vector<std::byte> bitmap(std::max(1u, (arrival.what.chunks() + 7) / 8));
  for (std::uint32_t chunk = 0; chunk < arrival.received.size(); ++chunk) {
    if (arrival.received[chunk] == 0) continue;
    bitmap[chunk / 8] |= static_cast<std::byte>(1u << (chunk % 8));
  }
  if (arrival.staged) bitmap[0] |= std::byte{1};
  say(to, FrameType::held, inbox.era, number, arrival.tag, 0, bitmap);
}

void Letters::say_refused(Correspondent& to, std::uint64_t number, const RefusedBody& why) {
  std::array<std::byte, refused_bytes> body;
  encode(why, body);
  say(to, FrameType::refused, to.inbox.era, number, 0, 0, body);
}

void Letters::say_offer(Correspondent& to, const Offer& made) {
  std::array<std::byte, offer_bytes> body;
  encode(made.body, body);
  say(to, FrameType::offer, to.inbox.era, made.number, made.tag, 0, body);
}

}  // namespace pccl
