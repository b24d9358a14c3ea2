// native/src/exec/operation_send.cpp — frames out: what they carry, what follows when they left.
// Ownership: see operation.hpp.
// Threads:   under the engine's turn.
// Errors:    exhausted without memory: the frame stays queued.
#include <algorithm>
#include <cstring>

#include "pccl/operation.hpp"
#include "pccl/xxh3.hpp"

namespace pccl {

std::uint32_t Operation::frame_bytes(const SendItem& item) const noexcept {
  return length(plan_->plan.transfers[item.transfer], item.slice);
}

Status Operation::build(const SendItem& item, std::uint32_t lane, OutgoingFrame& frame) {
  const Transfer& transfer = plan_->plan.transfers[item.transfer];
  SliceState& slice = slices_[index(transfer.shard, item.slice)];
  frame.length = length(transfer, item.slice);
  frame.operation = this;
  frame.transfer = item.transfer;
  frame.slice = item.slice;
  switch (transfer.source) {
    case Source::input:
      if (const Status status = build_input(item, frame); status != Status::ok) return status;
      break;
    case Source::accumulator:
      // The result is back from beyond the peer, so the peer has had this: an old HAVE asked.
      if (slice.final) return Status::closed;
      if (!accumulates_in_output(transfer.shard)) ++slice.in_flight;
      frame.payload = accumulates_in_output(transfer.shard)
                          ? posted_.output + output_offset(transfer.shard, item.slice)
                          : slice.accumulator.data();
      break;
    case Source::output:
    case Source::none:
      frame.payload = lands(transfer.shard) && !coder_
                          ? posted_.output + output_offset(transfer.shard, item.slice)
                          : slice.accumulator.data();
      break;
  }
  FrameHeader head = header(FrameType::data);
  head.shard = plan_->plan.shards[transfer.shard].name;
  if (!says_.empty()) head.descriptor = says_[transfer.peer];
  head.phase = transfer.phase;
  head.slice = item.slice;
  head.length = frame.length;
  if (transfer.source == Source::accumulator) head.weight = slice.partial_weight;
  head.flags = flag_hashed;
  if (transfer.source == Source::output || slice.settled) {
    head.payload_hash = slice.hash;  // known from the result's digest
  } else if (frame.may_be_unhashed && transfer.phase == Phase::reduce &&
             frame.length >= ring_payload_min) {
    head.flags = flag_unhashed;
  } else {
    head.payload_hash =
        xxh3_128({frame.payload, frame.length}, seed(transfer.shard, item.slice)).low;
  }
  encode(head, frame.header);
  transfers_[item.transfer].lane[item.slice] = lane + 1;
  wire_bytes += header_bytes + frame.length;
  environment_.progress += frame.length;
  return Status::ok;
}

/// What is read of the caller's input, in the form that it travels in.
Status Operation::build_input(const SendItem& item, OutgoingFrame& frame) {
  const Transfer& transfer = plan_->plan.transfers[item.transfer];
  const std::uint64_t count = elements(transfer.shard, item.slice);
  if (transfer.phase == Phase::gather) settle_own(transfer.shard, item.slice);  // as it stands
  frame.payload = original(transfer.shard, item.slice);
  // What comes back will overwrite it: saved now, it is read from memory once for both.
  if (!plan_->plan.ordered && transfer.phase == Phase::reduce) save(transfer.shard, item.slice);
  const bool lifted =
      transfer.element == Element::accumulator &&
      (posted_.descriptor.op == ReduceOp::avg || accumulator_bytes_ != element_bytes_);
  if (!coder_ && !lifted) {
    ++slices_[index(transfer.shard, item.slice)].in_flight;
    return Status::ok;
  }
  frame.buffer = environment_.buffers.take(frame.length);
  if (!frame.buffer) return Status::exhausted;
  if (coder_) {
    coder_.encode(frame.buffer.data(), frame.payload, count,
                  first_element(transfer.shard, item.slice), code_seed(Phase::reduce));
  } else {
    kernels_.lift(frame.buffer.data(), frame.payload, count, posted_.weight);
  }
  frame.payload = frame.buffer.data();
  return Status::ok;
}

void Operation::sent(const OutgoingFrame& frame) {
  const Transfer& transfer = plan_->plan.transfers[frame.transfer];
  SliceState& slice = slices_[index(transfer.shard, frame.slice)];
  if (transfer.source == Source::accumulator && !accumulates_in_output(transfer.shard)) {
    if (--slice.in_flight == 0 && slice.final) slice.accumulator = Buffer{};
    return;
  }
  if (transfer.source != Source::input || frame.buffer) return;
  --slice.in_flight;
  // An exchange overwrites the input only after the last peer was sent it.
  if (plan_->plan.ordered && slice.in_flight == 0 && !slice.final) {
    fold_or_starve(transfer.shard, frame.slice);
    if (complete()) environment_.finished_by_send.emplace_back(posted_.step, posted_.tag);
  }
}

/// This rank's own elements, to which nothing is added, come to their place in the output.
void Operation::settle_own(std::uint16_t shard, std::uint32_t slice) {
  SliceState& state = slices_[index(shard, slice)];
  if (state.settled || !lands(shard)) return;
  state.settled = true;
  const std::byte* from = posted_.input + input_offset(shard, slice);
  std::byte* to = posted_.output + output_offset(shard, slice);
  const std::uint64_t bytes = elements(shard, slice) * element_bytes_;
  if (from != to) std::memcpy(to, from, bytes);
  finalize(shard, slice, xxh3_128({to, bytes}, seed(shard, slice)));
  if (complete()) environment_.finished_by_send.emplace_back(posted_.step, posted_.tag);
}

void Operation::enqueue(std::uint16_t transfer, std::uint32_t slice) {
  const Transfer& t = plan_->plan.transfers[transfer];
  SendQueue& queue = queues_[t.peer];
  (t.phase == Phase::gather ? queue.results : queue.inputs).push_back({transfer, slice});
  peers_[t.peer]->list(queue);
}

void Operation::run_next(const Transfer& transfer, std::uint32_t slice) {
  for (const std::uint16_t next : transfer.next) {
    if (--transfers_[next].needs[slice] == 0) enqueue(next, slice);
  }
}

void Operation::have(const FrameHeader& head, std::uint16_t from, const std::byte* bitmap) {
  const int found = plan_->send_of(head.phase, head.shard, from);
  if (!running_ || found < 0) return;
  auto& lanes = transfers_[static_cast<std::size_t>(found)].lane;
  if (head.length != (lanes.size() + 7) / 8) return;
  for (std::uint32_t slice = 0; slice < lanes.size(); ++slice) {
    const bool arrived = (std::to_integer<unsigned>(bitmap[slice / 8]) >> (slice % 8) & 1u) != 0;
    if (arrived || lanes[slice] == 0 || peers_[from]->has_lane(lanes[slice] - 1)) continue;
    lanes[slice] = 0;
    enqueue(static_cast<std::uint16_t>(found), slice);
  }
}

}  // namespace pccl
