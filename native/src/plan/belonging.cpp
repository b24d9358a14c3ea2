// native/src/plan/belonging.cpp — see belonging.hpp.
// Ownership: plain values.
// Threads:   pure functions.
// Errors:    a text naming the ranks, empty if there is nothing to say.
#include "belonging.hpp"

#include <numeric>

namespace pccl {

std::uint64_t elements_to(const Plan& plan, std::uint16_t rank) noexcept {
  if (plan.input.empty() || !has_output(plan.collective, rank == plan.root)) return 0;
  return plan.input[plan.input.size() > 1 ? rank : 0];
}

std::uint64_t elements_from(const Plan& plan, std::uint16_t rank) noexcept {
  if (plan.output.empty() || !has_input(plan.collective, rank == plan.root)) return 0;
  return plan.output[plan.output.size() > 1 ? rank : 0];
}

namespace plan {

Belonging belonging(std::span<const Plan> plans, std::uint16_t rank, std::uint64_t place) {
  const Plan& here = plans[rank];
  Belonging found{.exists = false, .sum = reduces(here.collective), .rank = here.root,
                  .place = place, .rest = 0};
  for (std::uint16_t part = 0; part < here.output.size(); ++part) {
    const std::uint64_t count = here.output[part];
    if (found.place >= count) {
      found.place -= count;
      continue;
    }
    found.exists = true;
    found.rest = count - found.place;
    if (here.output.size() > 1) found.rank = part;
    break;
  }
  // In a sum the parts lie alike on all ranks: what holds for this rank's input holds for theirs.
  const Plan& source = found.sum ? here : plans[found.rank];
  if (source.input.size() > 1) {
    found.place = std::accumulate(source.input.begin(), source.input.begin() + rank, found.place);
  }
  return found;
}

std::string check_spaces(std::span<const Plan> plans) {
  for (const Plan& plan : plans) {
    const std::string here = "rank " + std::to_string(plan.rank) + ": ";
    const bool is_root = plan.rank == plan.root;
    const auto parts = [&](bool has_it, bool in_parts) {
      return has_it ? (in_parts ? plans.size() : 1) : 0;
    };
    const Collective kind = plan.collective;
    if (plan.input.size() != parts(has_input(kind, is_root), input_in_parts(kind)) ||
        plan.output.size() != parts(has_output(kind, is_root), output_in_parts(kind))) {
      return here + "input or output is not in the parts that it should be in";
    }
    for (const Plan& other : plans) {
      if (elements_from(plan, other.rank) == elements_to(other, plan.rank)) continue;
      return here + "counts on " + std::to_string(elements_from(plan, other.rank)) +
             " elements of rank " + std::to_string(other.rank) + ", which has " +
             std::to_string(elements_to(other, plan.rank)) + " for it";
    }
  }
  return {};
}

}  // namespace plan
}  // namespace pccl
