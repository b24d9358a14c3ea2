// native/tests/tls_proxy.hpp — a TCP relay that cannot read what it carries, and harms it all the
// same: it turns a bit, cuts, or stops carrying; and it keeps what it has heard.
// Ownership: see tcp_proxy.hpp.
// Threads:   its own; the public members from any.
// Errors:    a connection that fails is closed on both sides.
#pragma once

#include <algorithm>
#include <atomic>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "tcp_proxy.hpp"

namespace world {

class TlsProxy final : private TcpProxy {
 public:
  explicit TlsProxy(std::uint16_t target) : TcpProxy(target) { begin(); }
  ~TlsProxy() override { end(); }

  using TcpProxy::port;
  /// Turns one bit in the next block of at least `least` bytes, `at` of 1000 parts into it.
  void flip(std::size_t least, std::size_t at) {
    at_ = at;
    least_ = least;
  }
  /// Ends the next connection that carries such a block.
  void cut(std::size_t least) { cut_least_ = least; }
  /// Ends all connections; those made later work.
  void cut_all() {
    cut_all_ = true;
    while (cut_all_) std::this_thread::yield();
  }
  /// Carries nothing more, until told otherwise.
  void stall(bool stalled) { stalled_ = stalled; }
  [[nodiscard]] int flips() const { return flips_; }
  [[nodiscard]] int cuts() const { return cuts_; }
  /// Whether these bytes have passed, in one direction of one connection.
  [[nodiscard]] bool heard(std::span<const std::byte> needle) {
    const std::lock_guard lock(mutex_);
    return std::any_of(kept_.begin(), kept_.end(), [&](const auto& way) {
      return std::search(way->begin(), way->end(), needle.begin(), needle.end()) != way->end();
    });
  }
  [[nodiscard]] std::size_t heard_bytes() {
    const std::lock_guard lock(mutex_);
    std::size_t all = 0;
    for (const auto& way : kept_) all += way->size();
    return all;
  }

 private:
  using Kept = std::vector<std::byte>;
  static constexpr std::size_t kept_max = 8 * 1024 * 1024;  // of one direction
  struct Heard final : Pair {
    std::shared_ptr<Kept> kept[2];
  };

  std::unique_ptr<Pair> make_pair() override {
    auto pair = std::make_unique<Heard>();
    const std::lock_guard lock(mutex_);
    for (auto& kept : pair->kept) kept_.push_back(kept = std::make_shared<Kept>());
    return pair;
  }
  void pass_time() override {
    if (!cut_all_) return;
    cuts_ += static_cast<int>(pairs_.size());
    pairs_.clear();
    cut_all_ = false;
  }
  [[nodiscard]] bool stalled() const override { return stalled_; }
  void passes(Pair& pair, int i, std::span<std::byte> bytes) override {
    {
      Kept& kept = *static_cast<Heard&>(pair).kept[i];
      const std::lock_guard lock(mutex_);
      if (kept.size() < kept_max) kept.insert(kept.end(), bytes.begin(), bytes.end());
    }
    if (const std::size_t least = least_; least > 0 && bytes.size() >= least) {
      least_ = 0;
      const std::size_t at = bytes.size() * at_ / 1000;
      bytes[at] ^= static_cast<std::byte>(1u << at % 8);
      ++flips_;
    }
    if (const std::size_t least = cut_least_; least > 0 && bytes.size() >= least) {
      cut_least_ = 0;
      ++cuts_;
      pair.dead = true;
    }
  }

  std::atomic<bool> cut_all_{false};
  std::atomic<bool> stalled_{false};
  std::atomic<std::size_t> least_{0};
  std::atomic<std::size_t> at_{0};
  std::atomic<std::size_t> cut_least_{0};
  std::atomic<int> flips_{0};
  std::atomic<int> cuts_{0};
  std::mutex mutex_;
  std::vector<std::shared_ptr<Kept>> kept_;  // under mutex_, as what is in them
};

}  // namespace world
