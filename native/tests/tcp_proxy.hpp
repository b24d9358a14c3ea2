// native/tests/tcp_proxy.hpp — a TCP relay in front of an engine; what it does to what passes is
// said by whoever derives from it.
// Ownership: owns its thread and sockets.  A derived class begins it last and ends it first.
// Threads:   its own, on which all hooks run.
// Errors:    a connection that fails is closed on both sides.
#pragma once

#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <memory>
#include <span>
#include <thread>
#include <vector>

#include "check.hpp"
#include "pccl/fd.hpp"
#include "pccl/sockets.hpp"

namespace world {

using namespace pccl;

class TcpProxy {
 public:
  TcpProxy(const TcpProxy&) = delete;
  TcpProxy& operator=(const TcpProxy&) = delete;
  [[nodiscard]] std::uint16_t port() const { return port_; }

 protected:
  struct Way {
    std::array<std::byte, 64 * 1024> bytes;
    std::size_t begin = 0, end = 0;
    [[nodiscard]] bool empty() const { return begin == end; }
  };
  struct Pair {
    virtual ~Pair() = default;
    Fd sides[2];
    Way ways[2];  // from side i to the other
    bool dead = false;
  };

  explicit TcpProxy(std::uint16_t target) : target_(target) {
    CHECK(listen_tcp("127.0.0.1", 0, 64, listener_) == Status::ok);
    port_ = local_port(listener_.get());
  }
  virtual ~TcpProxy() { CHECK(!thread_.joinable()); }

  void begin() {
    thread_ = std::thread([this] { run(); });
  }
  void end() {
    stop_ = true;
    thread_.join();
  }

  virtual std::unique_ptr<Pair> make_pair() = 0;
  /// Before each wait.
  virtual void pass_time() = 0;
  /// What came from side `i`, before it is sent on; it may be changed, or the pair declared dead.
  virtual void passes(Pair& pair, int i, std::span<std::byte> bytes) = 0;
  [[nodiscard]] virtual bool stalled() const { return false; }

  std::vector<std::unique_ptr<Pair>> pairs_;

 private:
  static constexpr int wait_ms = 5;

  void run() {
    while (!stop_) {
      pass_time();
      const bool still = stalled();
      std::vector<pollfd> waits{{listener_.get(), POLLIN, 0}};
      for (const auto& pair : pairs_) {
        for (int i = 0; i < 2; ++i) {
          short events = 0;
          if (!still && pair->ways[i].empty()) events |= POLLIN;
          if (!still && !pair->ways[1 - i].empty()) events |= POLLOUT;
          waits.push_back({pair->sides[i].get(), events, 0});
        }
      }
      ::poll(waits.data(), waits.size(), wait_ms);
      const std::size_t present = pairs_.size();
      for (std::size_t p = 0; p < present && !still; ++p) {
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
    std::unique_ptr<Pair> pair = make_pair();
    pair->sides[0] = std::move(fd);
    if (connect_tcp("127.0.0.1", target_, pair->sides[1]) != Status::ok) return;
    pairs_.push_back(std::move(pair));
  }
  /// What side i can take, and what it has.
  void move(Pair& pair, int i) {
    Way& in = pair.ways[i];
    Way& out = pair.ways[1 - i];
    if (!out.empty()) {
      const ssize_t sent = ::send(pair.sides[i].get(), out.bytes.data() + out.begin,
                                  out.end - out.begin, MSG_DONTWAIT | MSG_NOSIGNAL);
      if (sent > 0) out.begin += static_cast<std::size_t>(sent);
      if (sent < 0 && errno != EAGAIN && errno != ENOTCONN) pair.dead = true;
    }
    if (!in.empty()) return;
    const ssize_t got =
        ::recv(pair.sides[i].get(), in.bytes.data(), in.bytes.size(), MSG_DONTWAIT);
    if (got == 0 || (got < 0 && errno != EAGAIN && errno != ENOTCONN)) pair.dead = true;
    in.begin = 0;
    in.end = got > 0 ? static_cast<std::size_t>(got) : 0;
    if (got > 0) passes(pair, i, std::span(in.bytes).first(in.end));
  }

  const std::uint16_t target_;
  std::uint16_t port_ = 0;
  Fd listener_;
  std::atomic<bool> stop_{false};
  std::thread thread_;
};

}  // namespace world
