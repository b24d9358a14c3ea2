// native/src/plan/reduce.cpp — contributions become one value at the root.
//
// Theory: flat, all send to the root, which folds them: one latency.  Direct: rank j folds shard j
// and sends the result to the root, so that folding is shared and the root takes in about twice the
// bytes whatever the number of ranks.
//
// Ownership: see build.hpp.
// Threads:   pure function.
// Errors:    none.
// Source:    Chan, Heimlich, Purkayastha and van de Geijn 2007, doi:10.1002/cpe.1206.
#include "build.hpp"

namespace pccl::plan {
namespace {

void flat(Plan& plan) {
  if (plan.rank != plan.root) return send_input(plan, plan.root, 0, Phase::reduce);
  for (std::uint32_t distance = 1; distance < plan.size; ++distance) {
    receive(plan, before(plan.root, distance, plan.size), 0, Phase::reduce);
  }
}

void direct(Plan& plan) {
  const std::uint16_t size = plan.size;
  const bool is_root = plan.rank == plan.root;
  plan_reduce_scatter(plan);
  if (!is_root) {
    const std::uint16_t result = next_index(plan);
    for (Transfer& transfer : plan.transfers) {
      if (transfer.kind == TransferKind::receive_reduce) transfer.next.push_back(result);
    }
    return send_output(plan, plan.root, plan.rank, static_cast<std::uint16_t>(size - 1));
  }
  for (std::uint32_t distance = 1; distance < size; ++distance) {
    const std::uint16_t owner = before(plan.rank, distance, size);
    receive(plan, owner, owner, Phase::gather);
  }
}

}  // namespace

void plan_reduce(Plan& plan) {
  if (plan.algorithm == Algorithm::direct) {
    direct(plan);
  } else {
    flat(plan);
  }
}

}  // namespace pccl::plan
