// native/src/plan/exchange.cpp — everybody sends its whole input to everybody: one latency.
//
// Theory: all ranks compute the same sum for themselves, so they fold in rank order; no gather.
// An operation in place overwrites a slice of its own input when it finishes it, while slower sends
// of the same slice may still be queued: whoever runs the plan must have copied it or must wait.
//
// Ownership: see build.hpp.
// Threads:   pure function.
// Errors:    none.
#include "build.hpp"

namespace pccl::plan {

void plan_exchange(Plan& plan) {
  const std::uint16_t size = plan.size;
  plan.transfers.reserve(2U * (size - 1U));
  for (std::uint32_t distance = 1; distance < size; ++distance) {
    plan.transfers.push_back({.kind = TransferKind::send,
                              .phase = Phase::reduce,
                              .element = Element::plain,
                              .source = Source::input,
                              .peer = after(plan.rank, distance, size),
                              .shard = 0,
                              .needs = 0,
                              .next = {}});
  }
  for (std::uint32_t distance = 1; distance < size; ++distance) {
    plan.transfers.push_back({.kind = TransferKind::receive_reduce,
                              .phase = Phase::reduce,
                              .element = Element::plain,
                              .source = Source::none,
                              .peer = before(plan.rank, distance, size),
                              .shard = 0,
                              .needs = 0,
                              .next = {}});
  }
}

}  // namespace pccl::plan
