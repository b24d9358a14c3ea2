// native/src/exec/operation.cpp — life of an operation: plan look-ups, attempts, frames out.
// Ownership: see operation.hpp.
// Threads:   under the engine's turn.
// Errors:    Status.
#include "pccl/operation.hpp"

#include <algorithm>
#include <cstring>

#include "pccl/xxh3.hpp"

namespace pccl {
namespace {

std::uint64_t key_of(Phase phase, std::uint16_t shard, std::uint16_t peer) noexcept {
  return (std::uint64_t{static_cast<std::uint8_t>(phase)} << 32) | (std::uint64_t{shard} << 16) |
         peer;
}

int find(const std::vector<std::pair<std::uint64_t, std::uint16_t>>& sorted,
         std::uint64_t key) noexcept {
  const auto it = std::lower_bound(sorted.begin(), sorted.end(), std::pair{key, std::uint16_t{0}});
  return it != sorted.end() && it->first == key ? it->second : -1;
}

}  // namespace

CompiledPlan::CompiledPlan(Plan made) : plan(std::move(made)), reduces(plan.shards.size(), 0) {
  first_slice.reserve(plan.shards.size());
  for (const Shard& shard : plan.shards) {
    first_slice.push_back(slices);
    slices += shard.slices;
  }
  for (std::size_t i = 0; i < plan.transfers.size(); ++i) {
    const Transfer& transfer = plan.transfers[i];
    const auto key = key_of(transfer.phase, transfer.shard, transfer.peer);
    const auto entry = std::pair{key, static_cast<std::uint16_t>(i)};
    (transfer.kind == TransferKind::send ? sends_ : receives_).push_back(entry);
    if (transfer.kind == TransferKind::receive_reduce) ++reduces[transfer.shard];
  }
  std::sort(receives_.begin(), receives_.end());
  std::sort(sends_.begin(), sends_.end());
}

int CompiledPlan::receive_of(Phase phase, std::uint16_t shard, std::uint16_t peer) const noexcept {
  return find(receives_, key_of(phase, shard, peer));
}

int CompiledPlan::send_of(Phase phase, std::uint16_t shard, std::uint16_t peer) const noexcept {
  return find(sends_, key_of(phase, shard, peer));
}

Operation::Operation(const Posted& posted, Environment& environment)
    : posted_(posted),
      environment_(environment),
      kernels_(kernels(posted.descriptor.dtype, posted.descriptor.op)),
      element_bytes_(static_cast<std::uint32_t>(size_of(posted.descriptor.dtype))),
      accumulator_bytes_(static_cast<std::uint32_t>(
          size_of(accumulator_of(posted.descriptor.dtype, posted.descriptor.op)))),
      bytes_(posted.descriptor.count * element_bytes_) {}

Operation::~Operation() { stop(); }

std::uint64_t Operation::offset(std::uint16_t shard, std::uint32_t slice) const noexcept {
  const Plan& plan = plan_->plan;
  return (plan.shards[shard].offset + std::uint64_t{slice} * plan.slice_count) * element_bytes_;
}

std::uint64_t Operation::elements(std::uint16_t shard, std::uint32_t slice) const noexcept {
  return slice_elements(plan_->plan, plan_->plan.shards[shard], slice);
}

std::uint32_t Operation::length(const Transfer& transfer, std::uint32_t slice) const noexcept {
  const std::uint32_t each =
      transfer.element == Element::plain ? element_bytes_ : accumulator_bytes_;
  return static_cast<std::uint32_t>(elements(transfer.shard, slice) * each);
}

bool Operation::accumulates_in_output() const noexcept {
  return !plan_->plan.ordered && accumulator_of(posted_.descriptor.dtype, posted_.descriptor.op) ==
                                     posted_.descriptor.dtype;
}

double Operation::weight_sum(const SliceState& slice) const noexcept {
  if (plan_->plan.algorithm == Algorithm::ring) return slice.partial_weight;
  double sum = 0;  // in rank order, so that every peer that divides divides by the same number
  for (const double weight : weights_) sum += weight;
  return sum;
}

FrameHeader Operation::header(FrameType type) const noexcept {
  FrameHeader frame;
  frame.type = type;
  frame.epoch = epoch_;
  frame.step = posted_.step;
  frame.tag = posted_.tag;
  frame.group = group;
  frame.descriptor = static_cast<std::uint32_t>(posted_.descriptor.digest());
  frame.weight = posted_.weight;
  return frame;
}

int Operation::rank_of(const Link& link) const noexcept {
  const auto it = std::find(peers_.begin(), peers_.end(), &link);
  return it == peers_.end() ? -1 : static_cast<int>(it - peers_.begin());
}

Status Operation::start(Epoch epoch, std::shared_ptr<const CompiledPlan> plan,
                        std::vector<Link*> peers) {
  stop();
  epoch_ = epoch;
  plan_ = std::move(plan);
  peers_ = std::move(peers);
  const Plan& p = plan_->plan;
  opened.assign(p.size, 0);
  weights_.assign(p.size, 0.0);
  weights_[p.rank] = posted_.weight;
  digest_ = {};
  finals_left_ = plan_->slices;
  counted = false;
  slices_.clear();
  slices_.resize(plan_->slices);
  transfers_.assign(p.transfers.size(), {});
  queues_.clear();
  queues_.resize(p.size);
  for (SendQueue& queue : queues_) queue.operation = this;
  if (in_place() && !undo_ && bytes_ > 0 && p.size > 1) {
    undo_ = environment_.undo.take(bytes_);
    if (!undo_) return Status::exhausted;
  }
  running_ = true;
  if (p.size == 1) return finish_alone();
  for (std::size_t i = 0; i < p.transfers.size(); ++i) {
    const Transfer& transfer = p.transfers[i];
    const std::uint32_t slices = p.shards[transfer.shard].slices;
    if (transfer.kind != TransferKind::send) {
      transfers_[i].received.assign(slices, 0);
      transfers_[i].left = slices;
      continue;
    }
    transfers_[i].needs.assign(slices, transfer.needs);
    transfers_[i].lane.assign(slices, 0);
    if (transfer.needs != 0) continue;
    for (std::uint32_t slice = 0; slice < slices; ++slice) {
      queues_[transfer.peer].inputs.push_back({static_cast<std::uint16_t>(i), slice});
    }
  }
  for (std::uint16_t peer = 0; peer < p.size; ++peer) {
    if (!queues_[peer].empty()) peers_[peer]->list(queues_[peer]);
  }
  return Status::ok;
}

Status Operation::finish_alone() noexcept {
  // The result of one contribution is that contribution, whatever its weight.
  if (!in_place() && bytes_ > 0) std::memcpy(posted_.output, posted_.input, bytes_);
  for (std::uint16_t shard = 0; shard < plan_->plan.shards.size(); ++shard) {
    for (std::uint32_t slice = 0; slice < plan_->plan.shards[shard].slices; ++slice) {
      const std::size_t length = elements(shard, slice) * element_bytes_;
      finalize(shard, slice,
               xxh3_128({posted_.output + offset(shard, slice), length}, index(shard, slice)));
    }
  }
  return Status::ok;
}

void Operation::stop() noexcept {
  if (!running_) return;
  running_ = false;
  for (std::size_t peer = 0; peer < queues_.size(); ++peer) {
    if (peers_[peer] != nullptr) peers_[peer]->unlist(queues_[peer]);
    queues_[peer].results.clear();
    queues_[peer].inputs.clear();
  }
  staged_.clear();
  starved_ = false;
}

void Operation::undo() noexcept {
  if (!in_place() || !undo_ || plan_ == nullptr) return;
  for (std::uint16_t shard = 0; shard < plan_->plan.shards.size(); ++shard) {
    for (std::uint32_t slice = 0; slice < plan_->plan.shards[shard].slices; ++slice) {
      SliceState& state = slices_[index(shard, slice)];
      if (!state.saved) continue;
      const std::uint64_t at = offset(shard, slice);
      std::memcpy(posted_.output + at, undo_.data() + at, elements(shard, slice) * element_bytes_);
      state.saved = false;
    }
  }
}

Status Operation::save(std::uint16_t shard, std::uint32_t slice) noexcept {
  SliceState& state = slices_[index(shard, slice)];
  if (!in_place() || state.saved) return Status::ok;
  const std::uint64_t at = offset(shard, slice);
  UndoArena::save(undo_.data() + at, posted_.output + at, elements(shard, slice) * element_bytes_);
  state.saved = true;
  return Status::ok;
}

const std::byte* Operation::original(std::uint16_t shard, std::uint32_t slice) const noexcept {
  const bool saved = slices_[index(shard, slice)].saved;
  return (saved ? undo_.data() : posted_.input) + offset(shard, slice);
}

std::uint32_t Operation::frame_bytes(const SendItem& item) const noexcept {
  return length(plan_->plan.transfers[item.transfer], item.slice);
}

Status Operation::build(const SendItem& item, std::uint32_t lane, OutgoingFrame& frame) noexcept {
  const Transfer& transfer = plan_->plan.transfers[item.transfer];
  SliceState& slice = slices_[index(transfer.shard, item.slice)];
  const std::uint64_t count = elements(transfer.shard, item.slice);
  frame.length = length(transfer, item.slice);
  frame.operation = this;
  frame.transfer = item.transfer;
  frame.slice = item.slice;
  const bool weighted = posted_.descriptor.op == ReduceOp::avg;
  switch (transfer.source) {
    case Source::input:
      frame.payload = original(transfer.shard, item.slice);
      if (transfer.element == Element::accumulator &&
          (weighted || accumulator_bytes_ != element_bytes_)) {
        frame.buffer = environment_.buffers.take(frame.length);
        if (!frame.buffer) return Status::exhausted;
        kernels_.lift(frame.buffer.data(), frame.payload, count, posted_.weight);
        frame.payload = frame.buffer.data();
      } else {
        ++slice.in_flight;
      }
      break;
    case Source::accumulator:
      // The result is back from beyond the peer, so the peer has had this: an old HAVE asked.
      if (slice.final) return Status::closed;
      if (!accumulates_in_output()) ++slice.in_flight;
      frame.payload = accumulates_in_output() ? posted_.output + offset(transfer.shard, item.slice)
                                              : slice.accumulator.data();
      break;
    case Source::output:
    case Source::none:
      frame.payload = posted_.output + offset(transfer.shard, item.slice);
      break;
  }
  FrameHeader head = header(FrameType::data);
  head.shard = transfer.shard;
  head.phase = transfer.phase;
  head.slice = item.slice;
  head.length = frame.length;
  if (transfer.source == Source::accumulator) head.weight = slice.partial_weight;
  head.flags = flag_hashed;
  if (transfer.source == Source::output) {
    head.payload_hash = slice.hash;  // known from the result's digest
  } else {
    const std::uint64_t seed = index(transfer.shard, item.slice);
    head.payload_hash = xxh3_128({frame.payload, frame.length}, seed).low;
  }
  encode(head, frame.header);
  transfers_[item.transfer].lane[item.slice] = lane + 1;
  wire_bytes += header_bytes + frame.length;
  environment_.progress += frame.length;
  return Status::ok;
}

void Operation::sent(const OutgoingFrame& frame) {
  const Transfer& transfer = plan_->plan.transfers[frame.transfer];
  SliceState& slice = slices_[index(transfer.shard, frame.slice)];
  if (transfer.source == Source::accumulator && !accumulates_in_output()) {
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
