// native/tests/tls_proxy.hpp — a TCP relay that cannot read what it carries, and harms it all the
// same: it turns a bit, cuts, or stops carrying; and it keeps what it has heard.
// Ownership: owns its thread and sockets.
// Threads:   its own; the rest from any.
// Errors:    a connection that fails is closed on both sides.
#pragma once

#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <memory>
#include <mutex>
#include <span>
#include <thread>
#include <vector>

#include "check.hpp"
#include "pccl/fd.hpp"
#include "pccl/sockets.hpp"

namespace world {

using namespace pccl;

class TlsProxy {
 public:
  explicit TlsProxy(std::uint16_t target) : target_(target) {
    CHECK(listen_tcp("127.0.0.1", 0, 64, listener_) == Status::ok);
    port_ = local_port(listener_.get());
    thread_ = std::thread([this] { run(); });
  }
  ~TlsProxy() {
    stop_ = true;
    thread_.join();
  }
  TlsProxy(const TlsProxy&) = delete;
  TlsProxy& operator=(const TlsProxy&) = delete;

  [[nodiscard]] std::uint16_t port() const { return port_; }
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
  static constexpr std::size_t chunk = 64 * 1024;
  static constexpr std::size_t kept_max = 8 * 1024 * 1024;  // of one direction
  struct Way {
    std::array<std::byte, chunk> bytes;
    std::size_t begin = 0, end = 0;
    std::shared_ptr<Kept> kept;
  };
  struct Pair {
    Fd sides[2];
    Way ways[2];
    bool dead = false;
  };

  void run() {
    while (!stop_) {
      if (cut_all_) {
        cuts_ += static_cast<int>(pairs_.size());
        pairs_.clear();
        cut_all_ = false;
      }
      std::vector<pollfd> waits{{listener_.get(), POLLIN, 0}};
      for (const auto& pair : pairs_) {
        for (int i = 0; i < 2; ++i) {
          short events = 0;
          if (!stalled_ && pair->ways[i].begin == pair->ways[i].end) events |= POLLIN;
          if (!stalled_ && pair->ways[1 - i].begin != pair->ways[1 - i].end) events |= POLLOUT;
          waits.push_back({pair->sides[i].get(), events, 0});
        }
      }
      ::poll(waits.data(), waits.size(), 5);
      const std::size_t present = pairs_.size();
      for (std::size_t p = 0; p < present && !stalled_; ++p) {
        for (int i = 0; i < 2; ++i) {
          if (waits[1 + 2 * p + static_cast<std::size_t>(i)].revents != 0) move(*pairs_[p], i);
        }
      }
      if ((waits[0].revents & POLLIN) != 0) accept();
      std::erase_if(pairs_, [](const auto& pair) { return pair->dead; });
    }
  }
  void accept() {
    Fd fd;
    if (accept_tcp(listener_.get(), fd) != Status::ok) return;
    auto pair = std::make_unique<Pair>();
    pair->sides[0] = std::move(fd);
    if (connect_tcp("127.0.0.1", target_, pair->sides[1]) != Status::ok) return;
    const std::lock_guard lock(mutex_);
    for (Way& way : pair->ways) kept_.push_back(way.kept = std::make_shared<Kept>());
    pairs_.push_back(std::move(pair));
  }
  void move(Pair& pair, int i) {
    Way& in = pair.ways[i];
    Way& out = pair.ways[1 - i];
    if (out.begin != out.end) {
      const ssize_t sent = ::send(pair.sides[i].get(), out.bytes.data() + out.begin,
                                  out.end - out.begin, MSG_DONTWAIT | MSG_NOSIGNAL);
      if (sent > 0) out.begin += static_cast<std::size_t>(sent);
      if (sent < 0 && errno != EAGAIN && errno != ENOTCONN) pair.dead = true;
    }
    if (in.begin != in.end) return;
    const ssize_t got = ::recv(pair.sides[i].get(), in.bytes.data(), chunk, MSG_DONTWAIT);
    if (got == 0 || (got < 0 && errno != EAGAIN && errno != ENOTCONN)) pair.dead = true;
    in.begin = 0;
    in.end = got > 0 ? static_cast<std::size_t>(got) : 0;
    if (got > 0) harm(pair, std::span(in.bytes).first(in.end), *in.kept);
  }
  void harm(Pair& pair, std::span<std::byte> bytes, Kept& kept) {
    {
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

  const std::uint16_t target_;
  std::uint16_t port_ = 0;
  Fd listener_;
  std::vector<std::unique_ptr<Pair>> pairs_;
  std::atomic<bool> stop_{false};
  std::atomic<bool> cut_all_{false};
  std::atomic<bool> stalled_{false};
  std::atomic<std::size_t> least_{0};
  std::atomic<std::size_t> at_{0};
  std::atomic<std::size_t> cut_least_{0};
  std::atomic<int> flips_{0};
  std::atomic<int> cuts_{0};
  std::mutex mutex_;
  std::vector<std::shared_ptr<Kept>> kept_;  // under mutex_, as what is in them
  std::thread thread_;
};

}  // namespace world
