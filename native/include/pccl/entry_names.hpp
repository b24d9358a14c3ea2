// pccl/entry_names.hpp — how soon a program comes to an entry of some name again.
//
// A joiner waits at an entry, and can come in only where the members begin a step of that name.
// So before a join is agreed, members say whether they do.  A name that comes again and again is
// expected once more within its greatest distance (it may come twice in a row and then not for
// long), which shrinks by an eighth of the steps that pass while it comes sooner; one that came
// once, for a few steps; one that is long overdue, or was never begun, is not expected at all.
// Once names had to be thrown away, any that came once or never may be among them: it is expected
// within a few steps, too, so that the join is agreed and its deadline judges it.
//
// Invariant: at least the last `names_max` names are remembered, and at most twice as many.
// Ownership: values only.
// Threads:   one caller at a time.
// Errors:    none; an allocation may fail.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <utility>

#include "pccl/types.hpp"

namespace pccl {

class EntryNames {
 public:
  static constexpr std::size_t names_max = 8192;  // twice that are about 1 MiB
  static constexpr std::uint64_t slack = 16;  // steps: later than expected by so many is not late

  /// The program has come to this step; said again while it waits there.
  void come_to(std::uint64_t name_hash, StepId step) {
    auto found = recent_.find(name_hash);
    if (found == recent_.end()) {
      const auto before = older_.find(name_hash);
      const Seen seen = before == older_.end() ? Seen{step, 0, 0} : before->second;
      if (recent_.size() >= names_max) {
        some_forgotten_ = some_forgotten_ || !older_.empty();
        older_ = std::move(recent_);
        recent_.clear();
      }
      found = recent_.emplace(name_hash, seen).first;
    }
    Seen& seen = found->second;
    if (step > seen.step) {
      const std::uint64_t newest = step - seen.step;
      const std::uint64_t shrunk = newest / 8 + 1;
      seen = {step, std::max(newest, seen.distance - std::min(seen.distance, shrunk)), newest};
    }
  }

  /// Within so many steps of `next` the program is expected to come to this name; 0: not at all.
  /// A program that has begun nothing may begin with any name.
  [[nodiscard]] std::uint64_t within(std::uint64_t name_hash, StepId next) const {
    if (recent_.empty() && older_.empty()) return 1;
    auto found = recent_.find(name_hash);
    if (found == recent_.end()) {
      found = older_.find(name_hash);
      if (found == older_.end()) return unknown();
    }
    const Seen& seen = found->second;
    const std::uint64_t since = next > seen.step ? next - seen.step : 0;
    if (since > 2 * seen.distance + slack) return seen.distance == 0 ? unknown() : 0;
    return std::max({std::uint64_t{1}, since, seen.distance});
  }

  /// The step at which the program came to this name before it came to it last, if it is known.
  [[nodiscard]] std::optional<StepId> before(std::uint64_t name_hash) const {
    auto found = recent_.find(name_hash);
    if (found == recent_.end()) return std::nullopt;
    const Seen& seen = found->second;
    if (seen.newest == 0) return std::nullopt;
    return seen.step - seen.newest;
  }

  void forget() {
    recent_.clear();
    older_.clear();
    some_forgotten_ = false;
  }

 private:
  struct Seen {
    StepId step = 0;
    std::uint64_t distance = 0;  // the greatest, decaying; 0: it came once so far
    std::uint64_t newest = 0;    // since it came before; 0: likewise
  };

  /// Of a name that came once or never, as far as it is remembered.
  [[nodiscard]] std::uint64_t unknown() const { return some_forgotten_ ? slack : 0; }

  std::map<std::uint64_t, Seen> recent_;
  std::map<std::uint64_t, Seen> older_;
  bool some_forgotten_ = false;
};

}  // namespace pccl
