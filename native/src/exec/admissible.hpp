// native/src/exec/admissible.hpp — whether an operation has a meaning in an attempt of its step.
//
// Theory: ranks, roots and sizes are those of the view that the step began in.  An operation whose
// shape depends on the view means nothing among other members; one with a root needs it alive.
// All members of an attempt see the same members, and those that began the step earlier the same
// ones before, so they come to the same answer, and none of them lets such an attempt complete.
//
// Ownership: plain values.
// Threads:   under the engine's turn.
// Errors:    a text for people, empty if nothing is in the way.
#pragma once

#include <string>

#include "pccl/executor.hpp"

namespace pccl {

/// Turns the root's rank into its name; false: there is no such member, or no need of a root.
[[nodiscard]] bool name_root(Posted& posted, const StepRecord& step) noexcept;
/// The counts are one for each rank, or as few as the collective needs of this one, what a rank has
/// for itself is what it gets of itself, and all of it can lie in memory.  The root is named.
[[nodiscard]] bool fits(const Posted& posted, const StepRecord& step, const PeerId& self) noexcept;
[[nodiscard]] std::string obstacle_to(const StepRecord& step, const Posted& posted);

}  // namespace pccl
