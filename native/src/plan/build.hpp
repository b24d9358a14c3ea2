// native/src/plan/build.hpp — what the planners share: they append one rank's transfers to a plan
// whose other fields (rank, size, shards, finishes) make_plan has already filled.
// Ownership: nothing is kept; a planner writes only into the plan it is given.
// Threads:   pure functions.
// Errors:    none; plan.size > 1 is assumed.
#pragma once

#include "pccl/plan.hpp"

namespace pccl::plan {

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

void plan_exchange(Plan& plan);
void plan_direct(Plan& plan);
void plan_ring(Plan& plan);

}  // namespace pccl::plan
