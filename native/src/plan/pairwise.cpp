// native/src/plan/pairwise.cpp — gather, scatter and all-to-all: one message for each pair that has
// something for each other.
//
// Theory: peers are visited in rotated order: in every round each rank sends to one other and
// receives from one other.
//
// Ownership: see build.hpp.
// Threads:   pure function.
// Errors:    none.
#include "build.hpp"

namespace pccl::plan {
namespace {

void gather(Plan& plan) {
  if (plan.rank != plan.root) return send_input(plan, plan.root, 0, Phase::gather);
  for (std::uint32_t distance = 1; distance < plan.size; ++distance) {
    const std::uint16_t from = before(plan.root, distance, plan.size);
    receive(plan, from, from, Phase::gather);
  }
}

void scatter(Plan& plan) {
  if (plan.rank != plan.root) return receive(plan, plan.root, 0, Phase::gather);
  for (std::uint32_t distance = 1; distance < plan.size; ++distance) {
    const std::uint16_t to = after(plan.root, distance, plan.size);
    send_input(plan, to, to, Phase::gather);
  }
}

void all_to_all(Plan& plan) {
  const std::uint16_t size = plan.size;
  plan.transfers.reserve(2U * (size - 1U));
  for (std::uint32_t distance = 1; distance < size; ++distance) {
    const std::uint16_t to = after(plan.rank, distance, size);
    send_input(plan, to, to, Phase::gather);
  }
  for (std::uint32_t distance = 1; distance < size; ++distance) {
    const std::uint16_t from = before(plan.rank, distance, size);
    receive(plan, from, static_cast<std::uint16_t>(size + from), Phase::gather);
  }
}

}  // namespace

void plan_pairwise(Plan& plan) {
  switch (plan.collective) {
    case Collective::gather: return gather(plan);
    case Collective::scatter: return scatter(plan);
    default: return all_to_all(plan);
  }
}

}  // namespace pccl::plan
