// native/src/plan/validate.hpp — what can be said about plans without running them.
//
// Theory: a set of plans is well formed if the ranks agree on what they do and on its sizes, every
// transfer is of a possible kind, every send waits for all that fills what it reads, and sends and
// receives pair up one to one by (from, to, phase, name of the shard).  What is left for a
// run is order and arithmetic.
//
// Ownership: plain values.
// Threads:   pure functions.
// Errors:    a text naming the rank, empty if there is nothing to say.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "pccl/plan.hpp"

namespace pccl::plan {

/// "rank 3: send of shard 2 to rank 4 (gather)"
std::string describe(const Plan& plan, std::size_t index);

/// Transfers of all ranks in one numbering: rank r's start at first[r].
struct Pairing {
  std::vector<std::uint32_t> first;    // per rank, and one past the last
  std::vector<std::uint32_t> partner;  // per transfer: the send's receive, the receive's send
  std::string error;
};

/// Everything but the pairing.
std::string check_plans(std::span<const Plan> plans);
/// Cost: O(transfers * log transfers).  The plans have passed check_plans.
Pairing pair_transfers(std::span<const Plan> plans);

}  // namespace pccl::plan
