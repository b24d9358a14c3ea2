// native/include/pccl/polling.hpp — whether a waiting caller looks for events again, or sleeps.
//
// What a peer of this machine sends comes within tens of microseconds, if it has a processor: so
// between two looks the caller offers its own to whoever is ready to run.  To sleep costs more,
// for the caller, whose processor may halt, and for all who send to it, since each must wake it.
// Where something else computes, though, an offer is taken for a whole time slice, while who sleeps
// is woken at once.  So after an offer that was taken for long, waits sleep for a while.
//
// Ownership: a value.  Pure: the caller tells it the time.
// Threads:   under the engine's turn.
// Errors:    none.
#pragma once

#include <algorithm>

namespace pccl {

class Polling {
 public:
  static constexpr double taken_for_long_s = 1e-3;  // peers' shares of a small operation take less
  static constexpr int asleep_min = 8;              // waits without an offer, after one was taken
  static constexpr int asleep_max = 1024;           // a lost time slice in so many is noise

  /// `limit_s`: for how long a wait looks without finding anything; 0: not at all.
  void set_limit(double limit_s) noexcept { limit_s_ = limit_s; }

  /// A wait begins.
  void begin(double now_s) noexcept {
    looks_ = asleep_ == 0;
    if (!looks_) --asleep_;
    until_s_ = now_s + limit_s_;
  }

  /// Something was found: what follows from it will hardly be far.
  void found(double now_s) noexcept { until_s_ = now_s + limit_s_; }

  /// Says whether to look again, after an offer, rather than to sleep.
  [[nodiscard]] bool looks(double now_s) const noexcept { return looks_ && now_s < until_s_; }

  /// An offer of the processor came back after so long.
  void offered(double took_s) noexcept {
    if (took_s < taken_for_long_s) return;
    penalty_ = std::min(2 * penalty_, asleep_max);
    asleep_ = penalty_;
    looks_ = false;
  }

  /// The wait is over: one that went well makes the next penalty smaller.
  void end() noexcept {
    if (looks_) penalty_ = std::max(penalty_ / 2, asleep_min / 2);
  }

 private:
  double limit_s_ = 0;
  double until_s_ = 0;
  int asleep_ = 0;  // so many waits are yet to sleep at once
  int penalty_ = asleep_min / 2;
  bool looks_ = true;
};

}  // namespace pccl
