// native/src/plan/belonging.hpp — what belongs where in the outputs, without any plan's shards.
//
// Theory: an output is one part, or one per rank; so is an input.  Part j of an output in parts
// comes from rank j, an undivided one from the root, or is the sum over all ranks.  Of an input in
// parts rank q gets part q, of an undivided one all of it.  That is the whole of what a collective
// means; who sends what to whom must come to it in the end.
//
// Ownership: the plans are borrowed during the call.
// Threads:   pure functions.
// Errors:    check_spaces returns a text, empty if there is nothing to say.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "pccl/plan.hpp"

namespace pccl::plan {

struct Belonging {
  bool exists = false;      // there is such an element of the output
  bool sum = false;         // of all ranks' elements at that place of their inputs
  std::uint16_t rank = 0;   // else: whose element it is
  std::uint64_t place = 0;  // in the inputs
  std::uint64_t rest = 0;   // elements from here to the end of the part, this one included
};

/// What belongs at element `place` of the output of `rank`.  Cost: O(parts).
Belonging belonging(std::span<const Plan> plans, std::uint16_t rank, std::uint64_t place);

/// The ranks have the spaces that the collective gives them, and each counts on what others send.
std::string check_spaces(std::span<const Plan> plans);

}  // namespace pccl::plan
