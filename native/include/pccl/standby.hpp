// native/include/pccl/standby.hpp — the reactor thread's leave while callers move the frames.
//
// It looks every now and then whether it is needed again, since who drove last tells nobody: that
// would cost each small operation a wake.  It looks without the turn, which a caller may hold.
//
// Ownership: a value.
// Threads:   one waits; the rest from any thread.
// Errors:    none.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <limits>
#include <mutex>

#include "pccl/clock.hpp"

namespace pccl {

class Standby {
 public:
  static constexpr double for_good_s = std::numeric_limits<double>::infinity();

  /// Others see to everything until then; a call ends that.
  void leave(double until_s) noexcept { until_s_.store(until_s, std::memory_order_relaxed); }

  [[nodiscard]] bool on_leave() const noexcept {
    return monotonic_s() < until_s_.load(std::memory_order_relaxed);
  }

  /// Ends a wait in progress, or the next one.
  void call() noexcept {
    {
      const std::lock_guard lock(mutex_);
      called_ = true;
    }
    changed_.notify_one();
  }

  /// Returns when the leave is over, or when called.
  void wait(double look_every_s) {
    std::unique_lock lock(mutex_);
    const std::chrono::duration<double> grain(look_every_s);
    while (!called_ && on_leave()) (void)changed_.wait_for(lock, grain);
    called_ = false;
  }

 private:
  std::atomic<double> until_s_{0};
  std::mutex mutex_;
  std::condition_variable changed_;
  bool called_ = false;
};

}  // namespace pccl
