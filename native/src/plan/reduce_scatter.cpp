// native/src/plan/reduce_scatter.cpp — contributions go to the owner of the part: one latency.
//
// Theory: shard j is rank j's; peers are visited in rotated order, as in direct.cpp.
//
// Ownership: see build.hpp.
// Threads:   pure function.
// Errors:    none.
#include "build.hpp"

namespace pccl::plan {

void plan_reduce_scatter(Plan& plan) {
  const std::uint16_t size = plan.size;
  plan.transfers.reserve(2U * (size - 1U));
  for (std::uint32_t distance = 1; distance < size; ++distance) {
    const std::uint16_t owner = after(plan.rank, distance, size);
    send_input(plan, owner, owner, Phase::reduce);
  }
  for (std::uint32_t distance = 1; distance < size; ++distance) {
    receive(plan, before(plan.rank, distance, size), plan.rank, Phase::reduce);
  }
}

}  // namespace pccl::plan
