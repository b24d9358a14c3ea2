// native/src/exec/operation_receive.cpp — applying what arrives: fold, finish, copy.
// Ownership: see operation.hpp.
// Threads:   under the engine's turn.
// Errors:    Status::protocol for a frame that does not fit the plan or its own hash.
#include <algorithm>
#include <cstring>
#include <utility>

#include "pccl/operation.hpp"
#include "pccl/xxh3.hpp"

namespace pccl {

Status Operation::place(const FrameHeader& head, std::uint16_t from,
                        Placement& placement) noexcept {
  if (!running_ || head.epoch != epoch_) return Status::ok;  // stale: discarded
  if (head.descriptor != static_cast<std::uint32_t>(posted_.descriptor.digest())) {
    return Status::ok;  // its OPEN tells both sides what differs
  }
  if (head.group != group) return Status::protocol;
  if (head.shard >= plan_->plan.shards.size()) return Status::protocol;
  const int found = plan_->receive_of(head.phase, head.shard, from);
  if (found < 0) return Status::protocol;
  const auto number = static_cast<std::uint16_t>(found);
  const Transfer& transfer = plan_->plan.transfers[number];
  if (head.slice >= plan_->plan.shards[head.shard].slices) return Status::protocol;
  if (head.length != length(transfer, head.slice)) return Status::protocol;
  if (transfers_[number].received[head.slice] != 0) return Status::ok;  // sent twice: discarded
  placement.operation = this;
  placement.transfer = number;
  if (transfer.kind == TransferKind::receive_copy) {
    (void)save(head.shard, head.slice);
    placement.kind = Placement::Kind::direct;
    placement.target = posted_.output + offset(head.shard, head.slice);
    return Status::ok;
  }
  placement.kind = Placement::Kind::tile;
  placement.buffer = environment_.buffers.take(head.length);
  placement.target = placement.buffer.data();
  return placement.buffer ? Status::ok : Status::exhausted;
}

Status Operation::deliver(const FrameHeader& head, std::uint16_t from,
                          Placement& placement) {
  const Transfer& transfer = plan_->plan.transfers[placement.transfer];
  TransferState& state = transfers_[placement.transfer];
  std::uint8_t& received = state.received[head.slice];
  if (received != 0) return Status::ok;  // the other copy was faster
  const std::uint64_t seed = index(head.shard, head.slice);
  const bool copy = transfer.kind == TransferKind::receive_copy;
  const Digest digest = xxh3_128({placement.target, head.length}, seed);
  if (digest.low != head.payload_hash) {
    return Status::protocol;  // damaged on the way: the lane ends and the slice comes again
  }
  received = 1;
  --state.left;
  environment_.progress += head.length;
  if (copy) {
    if (placement.kind != Placement::Kind::direct) {
      (void)save(head.shard, head.slice);
      std::memcpy(posted_.output + offset(head.shard, head.slice), placement.target, head.length);
    }
    finalize(head.shard, head.slice, digest);
    run_next(transfer, head.slice);
    return Status::ok;
  }
  weights_[from] = head.weight;
  if (plan_->plan.ordered) {
    const std::uint64_t key = std::uint64_t{index(head.shard, head.slice)} << 16 | from;
    staged_[key] = std::move(placement.buffer);
    ++slices_[index(head.shard, head.slice)].folded;
    fold_or_starve(head.shard, head.slice);
    return Status::ok;
  }
  const Status folded = fold(transfer, head.slice, placement.target, head.weight);
  if (folded != Status::ok) {  // no memory: the lane ends and the slice comes again
    received = 0;
    ++state.left;
  }
  return folded;
}

Status Operation::fold(const Transfer& transfer, std::uint32_t slice, const std::byte* data,
                       double weight) {
  const std::uint16_t shard = transfer.shard;
  SliceState& state = slices_[index(shard, slice)];
  const std::uint64_t count = elements(shard, slice);
  const std::byte* input = posted_.input + offset(shard, slice);
  std::byte* output = posted_.output + offset(shard, slice);
  const bool first = state.folded == 0;
  std::byte* accumulator = output;
  if (accumulates_in_output()) {
    if (first) (void)save(shard, slice);
  } else {
    if (first) state.accumulator = environment_.buffers.take(count * accumulator_bytes_);
    if (!state.accumulator) return Status::exhausted;
    accumulator = state.accumulator.data();
  }
  const bool partial = transfer.element == Element::accumulator;
  if (partial) state.partial_weight = weight + posted_.weight;
  if (first && kernels_.combine != nullptr && accumulator == output && !partial) {
    kernels_.combine(output, input, data, count);
  } else {
    if (first) kernels_.lift(accumulator, input, count, posted_.weight);
    if (partial) {
      kernels_.merge(accumulator, data, count);
    } else {
      kernels_.fold(accumulator, data, count, weight);
    }
  }
  ++state.folded;
  if (state.folded == plan_->reduces[shard] && plan_->plan.finishes[shard] != 0) {
    if (const Status status = finish(shard, slice); status != Status::ok) return status;
  }
  run_next(transfer, slice);
  return Status::ok;
}

/// The contributions are all here and nobody sends them again: without memory now, feed() folds.
void Operation::fold_or_starve(std::uint16_t shard, std::uint32_t slice) {
  if (fold_ordered(shard, slice) == Status::ok) return;
  starved_ = environment_.starved = true;
}

Status Operation::feed() {
  if (!running_ || !std::exchange(starved_, false)) return Status::ok;
  for (std::uint16_t shard = 0; shard < plan_->plan.shards.size(); ++shard) {
    for (std::uint32_t slice = 0; slice < plan_->plan.shards[shard].slices; ++slice) {
      fold_or_starve(shard, slice);
      if (starved_) return Status::exhausted;
    }
  }
  return Status::ok;
}

Status Operation::fold_ordered(std::uint16_t shard, std::uint32_t slice) {
  const Plan& plan = plan_->plan;
  SliceState& state = slices_[index(shard, slice)];
  if (plan.finishes[shard] == 0 || state.folded != plan_->reduces[shard] || state.final) {
    return Status::ok;
  }
  if (in_place() && state.in_flight != 0) return Status::ok;  // sent() comes back here
  const std::uint64_t count = elements(shard, slice);
  state.accumulator = environment_.buffers.take(count * accumulator_bytes_);
  if (!state.accumulator) return Status::exhausted;
  std::byte* accumulator = state.accumulator.data();
  const std::uint64_t key = std::uint64_t{index(shard, slice)} << 16;
  for (std::uint16_t rank = 0; rank < plan.size; ++rank) {
    Buffer theirs;
    const std::byte* data = posted_.input + offset(shard, slice);
    if (rank != plan.rank) {
      theirs = std::move(staged_[key | rank]);
      staged_.erase(key | rank);
      data = theirs.data();
    }
    if (rank == 0) {
      kernels_.lift(accumulator, data, count, weights_[rank]);
    } else {
      kernels_.fold(accumulator, data, count, weights_[rank]);
    }
  }
  if (const Status status = finish(shard, slice); status != Status::ok) return status;
  for (const Transfer& transfer : plan.transfers) {
    if (transfer.kind == TransferKind::receive_reduce && transfer.shard == shard) {
      run_next(transfer, slice);
    }
  }
  return Status::ok;
}

Status Operation::finish(std::uint16_t shard, std::uint32_t slice) noexcept {
  SliceState& state = slices_[index(shard, slice)];
  const std::uint64_t count = elements(shard, slice);
  std::byte* output = posted_.output + offset(shard, slice);
  if (!accumulates_in_output()) {
    (void)save(shard, slice);
    kernels_.lower(output, state.accumulator.data(), count, weight_sum(state));
    state.accumulator = Buffer{};
  } else if (posted_.descriptor.op == ReduceOp::avg) {
    kernels_.lower(output, output, count, weight_sum(state));
  }
  finalize(shard, slice, xxh3_128({output, count * element_bytes_}, index(shard, slice)));
  return Status::ok;
}

void Operation::finalize(std::uint16_t shard, std::uint32_t slice, Digest digest) noexcept {
  SliceState& state = slices_[index(shard, slice)];
  state.final = true;
  state.hash = digest.low;
  if (state.in_flight == 0) state.accumulator = Buffer{};  // else sent() gives it back
  digest_.add(digest);
  --finals_left_;
}

}  // namespace pccl
