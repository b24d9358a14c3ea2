// native/src/plan/simulate.cpp — runs all ranks' plans against each other without data.
//
// Theory: see simulator.hpp.
//
// Ownership: the plans are borrowed during the call.
// Threads:   pure function.
// Errors:    in Simulation::error; the first found ends the run.
#include <algorithm>

#include "belonging.hpp"
#include "simulator.hpp"

namespace pccl {
namespace plan {
namespace {

// Beyond this a run would take minutes and gigabytes: a caller's mistake, not a plan's.
constexpr std::uint64_t runs_max = std::uint64_t{1} << 26;

}  // namespace

bool Simulator::lay_out() {
  const std::size_t size = plans_.size();
  std::uint64_t slices = 0;
  std::uint64_t runs = 0;
  words_ = (size + 63) / 64;
  for (const Plan& plan : plans_) {
    first_shard_.push_back(first_slice_.size());
    duties_.resize(duties_.size() + plan.shards.size());
    for (std::uint16_t shard = 0; shard < plan.shards.size(); ++shard) {
      first_slice_.push_back(slices);
      slices += plan.shards[shard].slices;
      duty(plan.rank, shard).finishes = plan.finishes[shard] != 0;
    }
    for (const Transfer& transfer : plan.transfers) {
      first_run_.push_back(runs);
      rank_of_.push_back(plan.rank);
      runs += plan.shards[transfer.shard].slices;
      ShardDuty& own = duty(plan.rank, transfer.shard);
      if (transfer.kind == TransferKind::receive_reduce) ++own.folds;
      if (transfer.source == Source::accumulator) ++own.forwards;
    }
  }
  if (runs > runs_max || slices * words_ > runs_max) {
    return fail("rank 0: the plans have too many slices to be simulated");
  }
  unran_ = runs;
  runs_.reserve(runs);
  for (const Plan& plan : plans_) {
    for (const Transfer& transfer : plan.transfers) {
      const Run waiting{transfer.needs, false, false};
      runs_.resize(runs_.size() + plan.shards[transfer.shard].slices, waiting);
    }
  }
  states_.resize(slices);
  masks_.resize(slices * words_);
  ports_.resize(size);
  return true;
}

/// Queues what needs nothing: slice by slice, so that all peers have the first before the second.
bool Simulator::start() {
  for (const Plan& plan : plans_) {
    std::uint32_t slices_most = 0;
    for (const Shard& shard : plan.shards) slices_most = std::max(slices_most, shard.slices);
    for (std::uint16_t shard = 0; shard < plan.shards.size(); ++shard) {
      const ShardDuty& own = duty(plan.rank, shard);
      if (!own.finishes || own.folds != 0) continue;
      for (std::uint32_t slice = 0; slice < plan.shards[shard].slices; ++slice) {
        take_input(plan, shard, slice);
        if (!finish(plan, shard, slice)) return false;
      }
    }
    for (std::uint32_t slice = 0; slice < slices_most; ++slice) {
      for (std::uint16_t index = 0; index < plan.transfers.size(); ++index) {
        const Transfer& transfer = plan.transfers[index];
        if (transfer.kind != TransferKind::send || transfer.needs != 0) continue;
        if (slice >= plan.shards[transfer.shard].slices) continue;
        if (!send(plan.rank, index, slice, 0)) return false;
      }
    }
  }
  return true;
}

bool Simulator::send(std::uint16_t rank, std::uint16_t index, std::uint32_t slice,
                     double ready_s) {
  const Plan& plan = plans_[rank];
  const Transfer& transfer = plan.transfers[index];
  const SliceState& state = states_[state_index(rank, transfer.shard, slice)];
  // The operation may be in place; what is copied from there is still the same.
  if (transfer.source == Source::input && state.written && reduces(plan.collective)) {
    return fail(plan, index, slice, "the input is already overwritten");
  }
  const std::uint64_t bytes = message_bytes(plan, transfer, slice);
  Ports& ports = ports_[rank];
  const double start_s = std::max(ready_s, ports.send_free_s);
  ports.send_free_s = start_s + static_cast<double>(bytes) * cost_.seconds_per_byte;
  ports.bytes_sent += bytes;
  run_of(rank, index, slice).ran = true;
  --unran_;
  push(start_s + cost_.latency_s, transfer.peer, partner(rank, index), slice, true);
  if (!transfer.next.empty() || transfer.source == Source::accumulator) {
    push(ports.send_free_s, rank, index, slice, false);
  }
  return true;
}

bool Simulator::happen(const Event& event) {
  const Plan& plan = plans_[event.rank];
  const Transfer& transfer = plan.transfers[event.transfer];
  if (event.arrival) {
    Run& run = run_of(event.rank, event.transfer, event.slice);
    run.arrived = true;
    return run.needs != 0 || receive(event.rank, event.transfer, event.slice, event.time_s);
  }
  if (transfer.source == Source::accumulator) {
    SliceState& state = states_[state_index(event.rank, transfer.shard, event.slice)];
    const ShardDuty& own = duty(event.rank, transfer.shard);
    if (++state.forwards == own.forwards && !own.finishes) --ports_[event.rank].accumulators;
  }
  return satisfy(plan, transfer, event.slice, event.time_s);
}

bool Simulator::receive(std::uint16_t rank, std::uint16_t index, std::uint32_t slice,
                        double time_s) {
  const Plan& plan = plans_[rank];
  const Transfer& transfer = plan.transfers[index];
  const auto bytes = static_cast<double>(message_bytes(plan, transfer, slice));
  const bool reduces = transfer.kind == TransferKind::receive_reduce;
  const double begin_s = std::max(time_s, ports_[rank].receive_free_s);
  const double done_s = begin_s + bytes * cost_.seconds_per_byte +
                        (reduces ? bytes * cost_.seconds_per_reduced_byte : 0);
  ports_[rank].receive_free_s = done_s;
  result_.time_s = std::max(result_.time_s, done_s);
  run_of(rank, index, slice).ran = true;
  --unran_;
  if (reduces ? !fold(plan, index, slice) : !copy(plan, index, slice)) return false;
  return satisfy(plan, transfer, slice, done_s);
}

void Simulator::take_input(const Plan& plan, std::uint16_t shard, std::uint32_t slice) {
  const std::size_t here = state_index(plan.rank, shard, slice);
  contributors(here)[plan.rank / 64U] |= std::uint64_t{1} << (plan.rank % 64U);
  states_[here].place = plan.shards[shard].input + std::uint64_t{slice} * plan.slice_count;
}

/// Adds what the message contains to the slice's accumulator, which starts with one's own input.
bool Simulator::fold(const Plan& plan, std::uint16_t index, std::uint32_t slice) {
  const Transfer& transfer = plan.transfers[index];
  const std::uint16_t shard = transfer.shard;
  const std::size_t here = state_index(plan.rank, shard, slice);
  SliceState& state = states_[here];
  std::uint64_t* held = contributors(here);
  if (!state.accumulated) {
    state.accumulated = true;
    take_input(plan, shard, slice);
    std::uint32_t& live = ports_[plan.rank].accumulators;
    result_.accumulators_max = std::max(result_.accumulators_max, ++live);
  }
  const Plan& from = plans_[transfer.peer];
  const Transfer& sender = from.transfers[partner(plan.rank, index)];
  const std::size_t there = state_index(transfer.peer, sender.shard, slice);
  const std::uint64_t* theirs = contributors(there);
  const bool alone = sender.source == Source::input;
  const std::uint64_t place = alone ? from.shards[sender.shard].input +
                                          std::uint64_t{slice} * from.slice_count
                                    : states_[there].place;
  if (place != state.place) return fail(plan, index, slice, "is added to what lies elsewhere");
  for (std::size_t word = 0; word < words_; ++word) {
    const bool own_word = transfer.peer / 64U == word;
    const std::uint64_t single = own_word ? std::uint64_t{1} << (transfer.peer % 64U) : 0;
    const std::uint64_t adds = alone ? single : theirs[word];
    if ((held[word] & adds) != 0) return fail(plan, index, slice, "a contribution comes twice");
    held[word] |= adds;
  }
  const ShardDuty& own = duty(plan.rank, shard);
  if (++state.folds != own.folds || !own.finishes) return true;
  --ports_[plan.rank].accumulators;
  return finish(plan, shard, slice);
}

bool Simulator::copy(const Plan& plan, std::uint16_t index, std::uint32_t slice) {
  const Transfer& transfer = plan.transfers[index];
  const std::size_t here = state_index(plan.rank, transfer.shard, slice);
  if (states_[here].written) return fail(plan, index, slice, "the output is written twice");
  const Plan& from = plans_[transfer.peer];
  const Transfer& sender = from.transfers[partner(plan.rank, index)];
  const std::size_t there = state_index(transfer.peer, sender.shard, slice);
  if (sender.source == Source::input) take_input(from, sender.shard, slice);
  states_[here].place = states_[there].place;
  std::copy_n(contributors(there), words_, contributors(here));
  return check_written(plan, transfer.shard, slice);
}

bool Simulator::finish(const Plan& plan, std::uint16_t shard, std::uint32_t slice) {
  if (states_[state_index(plan.rank, shard, slice)].written) {
    return fail_slice(plan, shard, slice, "is written twice");
  }
  return check_written(plan, shard, slice);
}

/// Compares the value with what the collective means by that place, and says that it is there.
bool Simulator::check_written(const Plan& plan, std::uint16_t shard, std::uint32_t slice) {
  const std::size_t here = state_index(plan.rank, shard, slice);
  states_[here].written = true;
  const auto contains = [&](std::size_t rank) {
    return (contributors(here)[rank / 64] >> (rank % 64) & 1U) != 0;
  };
  const std::uint64_t at = plan.shards[shard].output;
  // A result without a place here is on its way to one: it is looked at again there.
  const bool lies_here = at != no_place;
  Belonging due{.exists = true, .sum = reduces(plan.collective), .rank = 0, .place = 0, .rest = 0};
  if (lies_here) due = belonging(plans_, plan.rank, at + std::uint64_t{slice} * plan.slice_count);
  for (std::size_t rank = 0; rank < plans_.size(); ++rank) {
    const bool wanted = due.sum || rank == due.rank;
    if (contains(rank) == wanted) continue;
    if (!wanted) return fail_slice(plan, shard, slice, "holds what belongs elsewhere");
    const char* what = due.sum ? "is finished without the contribution of rank "
                               : "does not hold the elements of rank ";
    return fail_slice(plan, shard, slice, what + std::to_string(rank));
  }
  if (!lies_here) return true;
  const std::uint64_t elements = slice_elements(plan, plan.shards[shard], slice);
  if (!due.exists || due.rest < elements || due.place != states_[here].place) {
    return fail_slice(plan, shard, slice, "holds elements of another place");
  }
  return true;
}

bool Simulator::satisfy(const Plan& plan, const Transfer& transfer, std::uint32_t slice,
                        double time_s) {
  for (const std::uint16_t next : transfer.next) {
    Run& run = run_of(plan.rank, next, slice);
    if (--run.needs != 0) continue;
    if (plan.transfers[next].kind == TransferKind::send) {
      if (!send(plan.rank, next, slice, time_s)) return false;
    } else if (run.arrived) {
      push(time_s, plan.rank, next, slice, true);
    }
  }
  return true;
}

/// What a transfer that has not run waits for: a transfer of its own rank, or the message.
std::uint32_t Simulator::waits_for(std::uint32_t waiting, std::uint32_t slice) const {
  if (runs_[first_run_[waiting] + slice].needs == 0) return pairing_.partner[waiting];
  const std::uint16_t rank = rank_of_[waiting];
  const std::uint32_t first = pairing_.first[rank];
  std::uint32_t before = first;
  for (; before < pairing_.first[rank + 1U]; ++before) {
    const std::vector<std::uint16_t>& next = plans_[rank].transfers[before - first].next;
    const bool named = std::ranges::find(next, waiting - first) != next.end();
    if (named && !runs_[first_run_[before] + slice].ran) break;
  }
  return before;
}

/// Follows a transfer that has not run to what it waits for, until the circle closes.
std::string Simulator::circle() const {
  const auto stuck = std::ranges::find(runs_, false, &Run::ran) - runs_.begin();
  const auto after = std::ranges::upper_bound(first_run_, static_cast<std::size_t>(stuck));
  auto current = static_cast<std::uint32_t>(after - first_run_.begin() - 1);
  const auto slice = static_cast<std::uint32_t>(static_cast<std::size_t>(stuck) -
                                                first_run_[current]);
  std::vector<std::uint32_t> path;
  auto again = path.end();
  while ((again = std::ranges::find(path, current)) == path.end()) {
    path.push_back(current);
    current = waits_for(current, slice);
  }
  std::string text = "a circle in slice " + std::to_string(slice);
  for (const std::uint32_t one : std::span(again, path.end())) {
    const std::uint16_t rank = rank_of_[one];
    const auto index = static_cast<std::uint16_t>(one - pairing_.first[rank]);
    text += ": " + describe(plans_[rank], index) + " waits for";
  }
  return text + " the first";
}

bool Simulator::nothing_left() {
  if (unran_ != 0) return fail(circle());
  for (const Plan& plan : plans_) {
    for (std::uint16_t shard = 0; shard < plan.shards.size(); ++shard) {
      for (std::uint32_t slice = 0; slice < plan.shards[shard].slices; ++slice) {
        if (states_[state_index(plan.rank, shard, slice)].written) continue;
        if (plan.shards[shard].output == no_place) continue;
        return fail_slice(plan, shard, slice, "is never written");
      }
    }
  }
  return true;
}

Simulation Simulator::run() {
  result_.error = check_plans(plans_);
  if (!result_.error.empty()) return result_;
  pairing_ = pair_transfers(plans_);
  if (!pairing_.error.empty()) return fail(pairing_.error), result_;
  if (!lay_out() || !start()) return result_;
  while (!events_.empty()) {
    const Event event = events_.top();
    events_.pop();
    if (!happen(event)) return result_;
  }
  if (!nothing_left()) return result_;
  for (const Ports& ports : ports_) {
    result_.bytes_sent_total += ports.bytes_sent;
    result_.bytes_sent_max = std::max(result_.bytes_sent_max, ports.bytes_sent);
  }
  result_.correct = true;
  return result_;
}

}  // namespace plan

Simulation simulate(std::span<const Plan> plans, std::uint32_t element_bytes,
                    std::uint32_t accumulator_bytes, const CostModel& cost) {
  return plan::Simulator(plans, element_bytes, accumulator_bytes, cost).run();
}

}  // namespace pccl
