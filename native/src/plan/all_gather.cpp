// native/src/plan/all_gather.cpp — every rank's part goes to all: directly, or round a ring.
//
// Theory: shard j is rank j's input.  Direct costs one latency.  A ring keeps one stream per rank
// in flight, so that on one machine slices are still cached when they are read; a rank passes on
// what comes from the one before it until the next one is its owner.
//
// Ownership: see build.hpp.
// Threads:   pure function.
// Errors:    none.
#include "build.hpp"

namespace pccl::plan {
namespace {

void direct(Plan& plan) {
  const std::uint16_t size = plan.size;
  for (std::uint32_t distance = 1; distance < size; ++distance) {
    send_input(plan, after(plan.rank, distance, size), plan.rank, Phase::gather);
  }
  for (std::uint32_t distance = 1; distance < size; ++distance) {
    const std::uint16_t owner = before(plan.rank, distance, size);
    receive(plan, owner, owner, Phase::gather);
  }
}

void ring(Plan& plan) {
  const std::uint16_t size = plan.size;
  const std::uint16_t next = after(plan.rank, 1, size);
  const std::uint16_t last = before(plan.rank, 1, size);
  send_input(plan, next, plan.rank, Phase::gather);
  for (std::uint32_t distance = 1; distance < size; ++distance) {
    const std::uint16_t shard = before(plan.rank, distance, size);
    const bool goes_on = distance + 1 < size;
    receive(plan, last, shard, Phase::gather);
    if (!goes_on) continue;
    plan.transfers.back().next.push_back(next_index(plan));
    send_output(plan, next, shard, 1);
  }
}

}  // namespace

void plan_all_gather(Plan& plan) {
  plan.transfers.reserve(2U * (plan.size - 1U));
  if (plan.algorithm == Algorithm::ring) {
    ring(plan);
  } else {
    direct(plan);
  }
}

}  // namespace pccl::plan
