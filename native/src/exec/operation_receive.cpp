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
  if (head.descriptor != (expects_.empty() ? signature_ : expects_[from])) {
    return Status::ok;  // its OPEN tells both sides what differs
  }
  if (head.group != group) return Status::protocol;
  const int found = plan_->receive_of(head.phase, head.shard, from);
  if (found < 0) return Status::protocol;
  const auto number = static_cast<std::uint16_t>(found);
  const Transfer& transfer = plan_->plan.transfers[number];
  if (head.slice >= plan_->plan.shards[transfer.shard].slices) return Status::protocol;
  if (head.length != length(transfer, head.slice)) return Status::protocol;
  if (transfers_[number].received[head.slice] != 0) return Status::ok;  // sent twice: discarded
  placement.operation = this;
  placement.transfer = number;
  const bool copy = transfer.kind == TransferKind::receive_copy;
  if (copy && !coder_) {
    save(transfer.shard, head.slice);
    placement.kind = Placement::Kind::direct;
    placement.target = posted_.output + output_offset(transfer.shard, head.slice);
    return Status::ok;
  }
  placement.kind = Placement::Kind::tile;
  placement.used_up = copy || !plan_->plan.ordered;  // else it waits for its turn
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
  const std::uint16_t shard = transfer.shard;
  const bool copy = transfer.kind == TransferKind::receive_copy;
  const bool hashed = (head.flags & flag_hashed) != 0;
  Digest digest;
  if (hashed || copy) {
    digest = xxh3_128({placement.target, head.length}, seed(shard, head.slice));
  }
  if (hashed && digest.low != head.payload_hash) {
    return Status::protocol;  // damaged on the way: the lane ends and the slice comes again
  }
  received = 1;
  --state.left;
  environment_.progress += head.length;
  if (copy) {
    if (placement.kind != Placement::Kind::direct) {
      save(shard, head.slice);
      std::byte* output = posted_.output + output_offset(shard, head.slice);
      if (coder_) {
        const std::uint64_t count = elements(shard, head.slice);
        coder_.decode(output, placement.target, count);
        digest = xxh3_128({output, count * element_bytes_}, seed(shard, head.slice));
      } else {
        std::memcpy(output, placement.target, head.length);
      }
    }
    finalize(shard, head.slice, digest);
    run_next(transfer, head.slice);
    return Status::ok;
  }
  weights_[from] = head.weight;
  if (plan_->plan.ordered) {
    const std::uint64_t key = std::uint64_t{index(shard, head.slice)} << 16 | from;
    staged_[key] = std::move(placement.buffer);
    ++slices_[index(shard, head.slice)].folded;
    fold_or_starve(shard, head.slice);
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
  const std::byte* input = contribution(shard, slice);
  const bool first = state.folded == 0;
  const bool last = state.folded + 1 == plan_->reduces[shard] && plan_->plan.finishes[shard] != 0;
  Buffer result;
  if (last && !take_result(shard, slice, result)) return Status::exhausted;
  std::byte* accumulator = nullptr;
  if (accumulates_in_output(shard)) {
    if (first) save(shard, slice);
    accumulator = posted_.output + output_offset(shard, slice);
  } else {
    if (first) state.accumulator = environment_.buffers.take(count * accumulator_bytes_);
    if (!state.accumulator) return Status::exhausted;
    accumulator = state.accumulator.data();
  }
  const bool partial = transfer.element == Element::accumulator;
  if (partial) state.partial_weight = weight + posted_.weight;
  if (coder_) {
    if (first) kernels_.lift(accumulator, input, count, posted_.weight);
    coder_.fold(accumulator, data, count, weight);
  } else if (first && kernels_.combine != nullptr && !partial) {
    kernels_.combine(accumulator, input, data, count);
  } else {
    if (first) kernels_.lift(accumulator, input, count, posted_.weight);
    if (partial) {
      kernels_.merge(accumulator, data, count);
    } else {
      kernels_.fold(accumulator, data, count, weight);
    }
  }
  ++state.folded;
  if (last) finish(shard, slice, std::move(result));
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
  Buffer result;
  if (!take_result(shard, slice, result)) return Status::exhausted;
  state.accumulator = environment_.buffers.take(count * accumulator_bytes_);
  if (!state.accumulator) return Status::exhausted;
  std::byte* accumulator = state.accumulator.data();
  const std::uint64_t key = std::uint64_t{index(shard, slice)} << 16;
  for (std::uint16_t rank = 0; rank < plan.size; ++rank) {
    Buffer theirs;
    const std::byte* data = contribution(shard, slice);
    if (rank != plan.rank) {
      theirs = std::move(staged_[key | rank]);
      staged_.erase(key | rank);
      data = theirs.data();
    }
    if (coder_ && rank != plan.rank) {
      if (rank == 0) {
        coder_.lift(accumulator, data, count, weights_[rank]);
      } else {
        coder_.fold(accumulator, data, count, weights_[rank]);
      }
    } else if (rank == 0) {
      kernels_.lift(accumulator, data, count, weights_[rank]);
    } else {
      kernels_.fold(accumulator, data, count, weights_[rank]);
    }
  }
  finish(shard, slice, std::move(result));
  for (const Transfer& transfer : plan.transfers) {
    if (transfer.kind == TransferKind::receive_reduce && transfer.shard == shard) {
      run_next(transfer, slice);
    }
  }
  return Status::ok;
}

bool Operation::take_result(std::uint16_t shard, std::uint32_t slice, Buffer& result) noexcept {
  if (coder_) {
    result = environment_.buffers.take(coder_.bytes(elements(shard, slice)));
    return static_cast<bool>(result);
  }
  if (lands(shard) || accumulator_bytes_ == element_bytes_) return true;
  result = environment_.buffers.take(elements(shard, slice) * element_bytes_);
  return static_cast<bool>(result);
}

/// `result`: as take_result() made it.
void Operation::finish(std::uint16_t shard, std::uint32_t slice, Buffer result) noexcept {
  if (coder_) return finish_coded(shard, slice, std::move(result));
  SliceState& state = slices_[index(shard, slice)];
  const std::uint64_t count = elements(shard, slice);
  const bool weighted = posted_.descriptor.op == ReduceOp::avg;
  std::byte* output = nullptr;
  if (!lands(shard)) {
    output = result ? result.data() : state.accumulator.data();
    if (result || weighted) {
      kernels_.lower(output, state.accumulator.data(), count, weight_sum(state));
    }
    if (result) state.accumulator = std::move(result);
  } else {
    output = posted_.output + output_offset(shard, slice);
    if (!accumulates_in_output(shard)) {
      save(shard, slice);
      kernels_.lower(output, state.accumulator.data(), count, weight_sum(state));
      state.accumulator = Buffer{};
    } else if (weighted) {
      kernels_.lower(output, output, count, weight_sum(state));
    }
  }
  finalize(shard, slice, xxh3_128({output, count * element_bytes_}, seed(shard, slice)));
}

/// The bytes that all are sent stay in `result` until the attempt ends: they cannot be made again
/// of what they decode to.
void Operation::finish_coded(std::uint16_t shard, std::uint32_t slice, Buffer result) noexcept {
  SliceState& state = slices_[index(shard, slice)];
  const Descriptor& what = posted_.descriptor;
  const std::uint64_t count = elements(shard, slice);
  std::byte* output = posted_.output + output_offset(shard, slice);
  const bool in_output = accumulates_in_output(shard);
  std::byte* accumulator = in_output ? output : state.accumulator.data();
  if (what.op == ReduceOp::avg) {
    const Kernels& wide = kernels(accumulator_of(what.dtype, what.op), what.op);
    wide.lower(accumulator, accumulator, count, weight_sum(state));
  }
  coder_.encode_accumulated(result.data(), accumulator, count, first_element(shard, slice),
                            code_seed(Phase::gather));
  if (!in_output) save(shard, slice);
  coder_.decode(output, result.data(), count);
  finalize(shard, slice, xxh3_128({output, count * element_bytes_}, seed(shard, slice)));
  state.accumulator = std::move(result);
  state.hash =
      xxh3_128({state.accumulator.data(), coder_.bytes(count)}, seed(shard, slice)).low;
}

void Operation::finalize(std::uint16_t shard, std::uint32_t slice, Digest digest) noexcept {
  SliceState& state = slices_[index(shard, slice)];
  state.final = true;
  state.hash = digest.low;
  if (!lands(shard)) return;
  if (state.in_flight == 0) state.accumulator = Buffer{};  // else sent() gives it back
  if (same_result(posted_.descriptor.collective)) digest_.add(digest);
  --finals_left_;
}

}  // namespace pccl
