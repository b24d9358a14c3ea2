// native/src/lane/link.cpp — which frame a lane of this link sends next.
// Ownership: see link.hpp.
// Threads:   under the engine's turn.
// Errors:    none; a frame that cannot be built for want of memory stays queued.
#include "pccl/link.hpp"

#include <algorithm>
#include <cstring>

#include "pccl/letters.hpp"
#include "pccl/operation.hpp"
#include "pccl/xxh3.hpp"

namespace pccl {
namespace {

/// What could not be built leaves nothing behind for whatever is sent instead.
void clear(OutgoingFrame& frame) noexcept {
  const bool may_be_unhashed = frame.may_be_unhashed;
  frame = OutgoingFrame{};
  frame.may_be_unhashed = may_be_unhashed;
}

}  // namespace

bool Link::has_lane(std::uint32_t id) const noexcept {
  return std::any_of(lanes.begin(), lanes.end(),
                     [&](const auto& lane) { return lane->id() == id; });
}

std::size_t Link::direct_lanes() const noexcept {
  return static_cast<std::size_t>(
      std::count_if(lanes.begin(), lanes.end(), [](const auto& lane) { return !lane->relayed; }));
}

bool Link::has_output() const noexcept {
  return !control_.empty() || !small_.empty() || !bulk_.empty() ||
         (mail != nullptr && mail->outbox.has_chunks());
}

bool Link::stands_still(double now_s, double patience_s) const noexcept {
  if (lanes.empty()) return now_s - down_since_s > patience_s;
  const bool owing = std::any_of(lanes.begin(), lanes.end(),
                                 [](const auto& lane) { return lane->owing; });
  return owing && std::all_of(lanes.begin(), lanes.end(), [&](const auto& lane) {
    return !lane->owing || now_s - lane->moved_s > patience_s;
  });
}

bool Link::unread(double patience_s) const noexcept {
  return std::any_of(lanes.begin(), lanes.end(),
                     [&](const auto& lane) { return lane->unread_s > patience_s; });
}

void Link::list(SendQueue& queue) {
  dirty = true;
  if (queue.listed || queue.empty()) return;
  queue.listed = true;
  const bool is_small = queue.operation->bytes() <= small_operation_bytes;
  (is_small ? small_ : bulk_).push_back(&queue);
}

void Link::unlist(SendQueue& queue) noexcept {
  if (!queue.opened) {
    eager.give(queue.eager);
    queue.eager = 0;
  }
  if (!queue.listed) return;
  queue.listed = false;
  std::erase(small_, &queue);
  std::erase(bulk_, &queue);
  std::erase(waiting_, &queue);
}

void Link::open(SendQueue& queue) {
  if (!queue.opened) {
    queue.opened = true;
    eager.give(queue.eager);
  }
  // The link's budget may have room again for others as well.
  std::vector<SendQueue*> waiting;
  waiting.swap(waiting_);
  for (SendQueue* other : waiting) {
    other->listed = false;
    list(*other);
  }
}

void Link::post(FrameHeader header, std::span<const std::byte> body, BufferPool& buffers) {
  OutgoingFrame& frame = control_.emplace_back();
  sign(header, body);
  frame.length = header.length;
  if (body.size() <= frame.small.size()) {
    std::copy(body.begin(), body.end(), frame.small.begin());
    frame.in_small = true;
  } else {
    frame.buffer = buffers.take(body.size());
    if (!frame.buffer) {
      control_.pop_back();
      return;
    }
    std::memcpy(frame.buffer.data(), body.data(), body.size());
    frame.payload = frame.buffer.data();
  }
  encode(header, frame.header);
  dirty = true;
}

bool Link::may_send(const SendQueue& queue) const noexcept {
  if (queue.opened) return true;
  const SendItem& item = queue.results.empty() ? queue.inputs.front() : queue.results.front();
  const std::uint64_t bytes = queue.operation->frame_bytes(item);
  return queue.eager + bytes <= eager_operation_bytes && eager.fits(bytes);
}

bool Link::next_of(std::deque<SendQueue*>& queues, std::uint32_t lane,
                   OutgoingFrame& frame) {
  while (!queues.empty()) {
    SendQueue& queue = *queues.front();
    queues.pop_front();
    if (!may_send(queue)) {
      waiting_.push_back(&queue);  // still listed: open() brings it back
      continue;
    }
    auto& items = queue.results.empty() ? queue.inputs : queue.results;
    const Status built = queue.operation->build(items.front(), lane, frame);
    if (built != Status::ok) clear(frame);
    if (built != Status::ok && built != Status::closed) {
      queues.push_front(&queue);
      return false;
    }
    items.pop_front();
    if (built == Status::ok && !queue.opened) {
      queue.eager += frame.length;
      eager.take(frame.length);
    }
    if (queue.empty()) {
      queue.listed = false;
    } else {
      queues.push_back(&queue);  // the others' turn
    }
    if (built == Status::closed) continue;
    return true;
  }
  return false;
}

bool Link::next(std::uint32_t lane, OutgoingFrame& frame) {
  if (!control_.empty()) {
    frame = std::move(control_.front());
    control_.pop_front();
    return true;
  }
  messages_turn_ = !messages_turn_;
  for (const bool small : {true, false}) {
    auto& operations = small ? small_ : bulk_;
    if (messages_turn_ && next_chunk(small, lane, frame)) return true;
    if (next_of(operations, lane, frame)) return true;
    if (!messages_turn_ && next_chunk(small, lane, frame)) return true;
  }
  return false;
}

bool Link::next_chunk(bool small, std::uint32_t lane, OutgoingFrame& frame) {
  Chunk chunk;
  if (mail == nullptr || !mail->outbox.next(small, lane, chunk)) return false;
  FrameHeader header;
  header.type = FrameType::message;
  header.epoch = mail->inbox.era;
  header.step = chunk.number;
  header.tag = chunk.tag;
  header.slice = chunk.index;
  header.length = chunk.length;
  header.flags = flag_hashed;
  header.payload_hash =
      xxh3_128({chunk.data, chunk.length}, chunk_seed(chunk.number, chunk.index)).low;
  encode(header, frame.header);
  frame.payload = chunk.data;
  frame.length = chunk.length;
  frame.letter = chunk.letter;
  return true;
}

void Link::sent(const OutgoingFrame& frame) { frame.operation->sent(frame); }

}  // namespace pccl
