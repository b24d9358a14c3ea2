// native/src/plan/make.cpp — one rank's plan for an operation.
// Ownership: the plan belongs to the caller.
// Threads:   pure function.
// Errors:    none for valid arguments (asserted).
#include <cassert>

#include "build.hpp"

namespace pccl {
namespace {

constexpr std::uint64_t slices_max = std::uint64_t{1} << 31;

void cut(Plan& plan) {
  [[maybe_unused]] std::uint64_t slices_total = 0;
  for (Shard& shard : plan.shards) {
    const std::uint64_t slices = plan::ceil_div(shard.count, plan.slice_count);
    shard.slices = static_cast<std::uint32_t>(slices);
    slices_total += slices;
  }
  assert(slices_total <= slices_max);
}

void plan_all_reduce(Plan& made) {
  switch (made.algorithm) {
    case Algorithm::exchange: return plan::plan_exchange(made);
    case Algorithm::ring: return plan::plan_ring(made);
    default: return plan::plan_direct(made);
  }
}

}  // namespace

Plan make_plan(const PlanRequest& request) {
  assert(request.size >= 1 && request.size <= 1024 && request.rank < request.size);
  assert(request.root < request.size);
  assert(request.element_bytes > 0 && request.element_bytes <= slice_bytes_max);
  assert(request.accumulator_bytes > 0 && request.accumulator_bytes <= slice_bytes_max);
  Plan made;
  made.collective = request.collective;
  made.algorithm = choose_algorithm(request);
  made.rank = request.rank;
  made.size = request.size;
  made.root = request.root;
  made.slice_count = choose_slice_count(request, made.algorithm);
  // Exchange: all ranks compute every element and must agree.  Ring: one receive per accumulator,
  // so the order is the ring's in every run, and there is nothing to put in order.
  const bool any_order = made.algorithm == Algorithm::ring || !reduces(made.collective);
  made.ordered = made.algorithm == Algorithm::exchange || (!any_order && request.ordered);
  plan::lay_out(made, request);
  cut(made);
  if (request.size == 1) return made;
  switch (made.collective) {
    case Collective::all_reduce: plan_all_reduce(made); break;
    case Collective::reduce_scatter: plan::plan_reduce_scatter(made); break;
    case Collective::all_gather: plan::plan_all_gather(made); break;
    case Collective::broadcast: plan::plan_broadcast(made); break;
    case Collective::reduce: plan::plan_reduce(made); break;
    case Collective::gather:
    case Collective::scatter:
    case Collective::all_to_all: plan::plan_pairwise(made); break;
    case Collective::barrier: break;
  }
  return made;
}

}  // namespace pccl
