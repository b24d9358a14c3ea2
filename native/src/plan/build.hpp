// native/src/plan/build.hpp — what the planners share: they append one rank's transfers to a plan
// whose other fields (rank, size, shards, finishes) make_plan has already filled.
// Ownership: nothing is kept; a planner writes only into the plan it is given.
// Threads:   pure functions.
// Errors:    none; plan.size > 1 is assumed.
#pragma once

#include <numeric>

#include "pccl/plan.hpp"

namespace pccl::plan {

// Shards and slices start on a cache line when the buffer does: no line has two writers.
inline constexpr std::uint32_t line_bytes = 64;

inline std::uint64_t ceil_div(std::uint64_t value, std::uint64_t divisor) {
  return value / divisor + (value % divisor != 0 ? 1 : 0);
}

/// The fewest elements whose bytes are a multiple of a line.
inline std::uint32_t line_elements(std::uint32_t element_bytes) {
  return line_bytes / std::gcd(line_bytes, element_bytes);
}

/// Elements, at whose multiples shards and slices begin.
inline std::uint32_t unit_elements(const PlanRequest& request) {
  const std::uint32_t line = line_elements(request.element_bytes);
  return request.codec ? std::lcm(line, static_cast<std::uint32_t>(request.codec.block())) : line;
}

/// The rank `distance` places after `rank` (distance <= size); rotating by it spreads the load, so
/// that not everybody sends to rank 0 first.
inline std::uint16_t after(std::uint16_t rank, std::uint32_t distance, std::uint16_t size) {
  return static_cast<std::uint16_t>((rank + distance) % size);
}
/// The rank `distance` places before `rank` (distance <= size).
inline std::uint16_t before(std::uint16_t rank, std::uint32_t distance, std::uint16_t size) {
  return after(rank, size - distance, size);
}

/// The index that the next transfer appended will have.
inline std::uint16_t next_index(const Plan& plan) {
  return static_cast<std::uint16_t>(plan.transfers.size());
}

/// Fills in spaces, shards (without their slices) and finishes.
void lay_out(Plan& plan, const PlanRequest& request);

/// A rank's contribution, as it stands, to who folds it.
inline void send_input(Plan& plan, std::uint16_t peer, std::uint16_t shard, Phase phase) {
  plan.transfers.push_back({.kind = TransferKind::send, .phase = phase,
                            .element = Element::plain, .source = Source::input, .peer = peer,
                            .shard = shard, .needs = 0, .next = {}});
}
/// What `needs` receives have made of a slice.
inline void send_output(Plan& plan, std::uint16_t peer, std::uint16_t shard, std::uint16_t needs) {
  plan.transfers.push_back({.kind = TransferKind::send, .phase = Phase::gather,
                            .element = Element::plain, .source = Source::output, .peer = peer,
                            .shard = shard, .needs = needs, .next = {}});
}
/// A contribution or a finished slice comes in; `next` waits for it.
inline void receive(Plan& plan, std::uint16_t peer, std::uint16_t shard, Phase phase,
                    std::vector<std::uint16_t> next = {}) {
  const bool reduces = phase == Phase::reduce;
  plan.transfers.push_back(
      {.kind = reduces ? TransferKind::receive_reduce : TransferKind::receive_copy, .phase = phase,
       .element = Element::plain, .source = Source::none, .peer = peer, .shard = shard, .needs = 0,
       .next = std::move(next)});
}

void plan_exchange(Plan& plan);
void plan_direct(Plan& plan);
void plan_ring(Plan& plan);
void plan_reduce_scatter(Plan& plan);
void plan_all_gather(Plan& plan);  // direct or ring
void plan_broadcast(Plan& plan);   // flat, tree or direct
void plan_reduce(Plan& plan);      // flat or direct
void plan_pairwise(Plan& plan);    // gather, scatter, all_to_all

}  // namespace pccl::plan
