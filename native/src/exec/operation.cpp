// native/src/exec/operation.cpp — life of an operation: plan look-ups, attempts, undo.
// Ownership: see operation.hpp.
// Threads:   under the engine's turn.
// Errors:    Status.
#include "pccl/operation.hpp"

#include <algorithm>
#include <cstring>
#include <numeric>

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

/// A slice of zeros, for contributions that are left out.
alignas(64) std::byte zeros[slice_bytes_max];

}  // namespace

CompiledPlan::CompiledPlan(Plan made)
    : plan(std::move(made)), reduces(plan.shards.size(), 0), sends_input(plan.shards.size(), 0) {
  first_slice.reserve(plan.shards.size());
  for (const Shard& shard : plan.shards) {
    first_slice.push_back(slices);
    slices += shard.slices;
    if (shard.output != no_place) results += shard.slices;
  }
  for (std::size_t i = 0; i < plan.transfers.size(); ++i) {
    const Transfer& transfer = plan.transfers[i];
    const auto key = key_of(transfer.phase, plan.shards[transfer.shard].name, transfer.peer);
    const auto entry = std::pair{key, static_cast<std::uint16_t>(i)};
    (transfer.kind == TransferKind::send ? sends_ : receives_).push_back(entry);
    if (transfer.kind == TransferKind::receive_reduce) ++reduces[transfer.shard];
    if (transfer.source == Source::input) sends_input[transfer.shard] = 1;
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
      coder_(posted.descriptor.codec, posted.descriptor.dtype, posted.descriptor.op),
      element_bytes_(static_cast<std::uint32_t>(size_of(posted.descriptor.dtype))),
      accumulator_bytes_(static_cast<std::uint32_t>(
          size_of(accumulator_of(posted.descriptor.dtype, posted.descriptor.op)))),
      bytes_(posted.descriptor.count * element_bytes_),
      signature_(static_cast<std::uint32_t>(posted.descriptor.digest())) {}

Operation::~Operation() { stop(); }

std::uint64_t Operation::elements(std::uint16_t shard, std::uint32_t slice) const noexcept {
  return slice_elements(plan_->plan, plan_->plan.shards[shard], slice);
}

std::uint32_t Operation::length(const Transfer& transfer, std::uint32_t slice) const noexcept {
  if (coder_) {
    return static_cast<std::uint32_t>(coder_.bytes(elements(transfer.shard, slice)));
  }
  const std::uint32_t each =
      transfer.element == Element::plain ? element_bytes_ : accumulator_bytes_;
  return static_cast<std::uint32_t>(elements(transfer.shard, slice) * each);
}

bool Operation::accumulates_in_output(std::uint16_t shard) const noexcept {
  return !plan_->plan.ordered && lands(shard) &&
         accumulator_of(posted_.descriptor.dtype, posted_.descriptor.op) ==
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
  frame.descriptor = signature_;
  frame.weight = posted_.weight;
  return frame;
}

OpenBody Operation::open_body(std::uint16_t peer) const noexcept {
  return {posted_.descriptor, elements_to(plan_->plan, peer), elements_from(plan_->plan, peer)};
}

void Operation::compare_signatures() {
  says_.clear();
  expects_.clear();
  if (!posted_.descriptor.uneven) return;
  for (std::uint16_t peer = 0; peer < plan_->plan.size; ++peer) {
    const OpenBody body = open_body(peer);
    says_.push_back(static_cast<std::uint32_t>(body.digest()));
    expects_.push_back(static_cast<std::uint32_t>(body.mirrored().digest()));
  }
}

bool Operation::open(std::uint16_t peer) noexcept {
  if (opened_[peer] != 0) return false;
  opened_[peer] = 1;
  if (opens_left_ > 0) --opens_left_;
  return true;
}

int Operation::rank_of(const Link& link) const noexcept {
  const auto it = std::find(peers_.begin(), peers_.end(), &link);
  return it == peers_.end() ? -1 : static_cast<int>(it - peers_.begin());
}

bool Operation::overwrites(const std::byte* begin, std::uint64_t bytes) const noexcept {
  return begin < kept_ + kept_bytes_ && kept_ < begin + bytes;
}

bool Operation::needs_undo() const noexcept {
  for (std::uint16_t shard = 0; shard < plan_->plan.shards.size(); ++shard) {
    const Shard& s = plan_->plan.shards[shard];
    if (s.output == no_place || s.count == 0) continue;
    const std::byte* target = posted_.output + s.output * element_bytes_;
    const bool stays = plan_->plan.finishes[shard] != 0 && plan_->reduces[shard] == 0;
    if (!stays && overwrites(target, s.count * element_bytes_)) return true;
  }
  return false;
}

/// Sizes of this attempt's spaces, and of what is to be kept of them.
void Operation::lay_out() {
  const Plan& p = plan_->plan;
  const auto bytes = [&](const std::vector<std::uint64_t>& parts) {
    return std::accumulate(parts.begin(), parts.end(), std::uint64_t{0}) * element_bytes_;
  };
  const std::uint64_t output_bytes = bytes(p.output);
  bytes_ = std::max(bytes(p.input), output_bytes);
  kept_ = posted_.input;
  kept_bytes_ = in_place() && p.input.empty() ? output_bytes : bytes(p.input);
}

Status Operation::start(Epoch epoch, std::shared_ptr<const CompiledPlan> plan,
                        std::vector<Link*> peers) {
  stop();
  epoch_ = epoch;
  plan_ = std::move(plan);
  peers_ = std::move(peers);
  const Plan& p = plan_->plan;
  lay_out();
  compare_signatures();
  opened_.assign(p.size, 0);
  // An all-reduce has something of everybody in its result.
  opens_left_ = posted_.descriptor.collective == Collective::all_reduce ? 0 : p.size - 1U;
  weights_.assign(p.size, 0.0);
  weights_[p.rank] = posted_.weight;
  digest_ = {};
  finals_left_ = plan_->results;
  counted = false;
  slices_.clear();
  slices_.resize(plan_->slices);
  transfers_.assign(p.transfers.size(), {});
  queues_.clear();
  queues_.resize(p.size);
  for (SendQueue& queue : queues_) queue.operation = this;
  if (!undo_ && p.size > 1 && needs_undo()) {
    undo_ = environment_.undo.take(bytes_);
    if (!undo_) return Status::exhausted;
  }
  running_ = true;
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
  settle_kept();
  return Status::ok;
}

/// What goes to nobody is at its place from the start.  The result of one contribution is that
/// contribution, whatever its weight.
void Operation::settle_kept() {
  for (std::uint16_t shard = 0; shard < plan_->plan.shards.size(); ++shard) {
    const bool own = plan_->plan.finishes[shard] != 0 && plan_->reduces[shard] == 0;
    if (!own || plan_->sends_input[shard] != 0) continue;
    for (std::uint32_t slice = 0; slice < plan_->plan.shards[shard].slices; ++slice) {
      settle_own(shard, slice);
    }
  }
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
  if (!undo_ || plan_ == nullptr) return;
  for (std::uint16_t shard = 0; shard < plan_->plan.shards.size(); ++shard) {
    for (std::uint32_t slice = 0; slice < plan_->plan.shards[shard].slices; ++slice) {
      SliceState& state = slices_[index(shard, slice)];
      if (!state.saved) continue;
      const std::uint64_t at = output_offset(shard, slice);
      std::memcpy(posted_.output + at, undo_.data() + at, elements(shard, slice) * element_bytes_);
      state.saved = false;
    }
  }
}

void Operation::save(std::uint16_t shard, std::uint32_t slice) noexcept {
  SliceState& state = slices_[index(shard, slice)];
  if (!undo_ || state.saved || !lands(shard)) return;
  const std::uint64_t at = output_offset(shard, slice);
  const std::uint64_t bytes = elements(shard, slice) * element_bytes_;
  if (!overwrites(posted_.output + at, bytes)) return;
  UndoArena::save(undo_.data() + at, posted_.output + at, bytes);
  state.saved = true;
}

const std::byte* Operation::contribution(std::uint16_t shard,
                                         std::uint32_t slice) const noexcept {
  return posted_.left_out ? zeros : posted_.input + input_offset(shard, slice);
}

const std::byte* Operation::original(std::uint16_t shard, std::uint32_t slice) const noexcept {
  if (posted_.left_out) return zeros;
  if (slices_[index(shard, slice)].saved) return undo_.data() + output_offset(shard, slice);
  return posted_.input + input_offset(shard, slice);
}

}  // namespace pccl
