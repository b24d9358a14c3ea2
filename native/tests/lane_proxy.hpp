// native/tests/lane_proxy.hpp — a TCP relay in front of an engine, which cuts lanes when told to.
// A cut closes both halves with bytes still in their buffers, so frames are lost on either side.
// flip() turns one bit of one frame of the kind asked for.
// deafen() drops what arrives before TCP sees it, so that nothing is acknowledged: a cut way.
// Ownership: owns its thread and sockets.
// Threads:   its own; cut() from any.
// Errors:    a connection that fails is closed on both sides.
#pragma once

#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <poll.h>
#include <sys/socket.h>

#include <array>
#include <atomic>
#include <memory>
#include <mutex>
#include <optional>
#include <random>
#include <thread>
#include <vector>

#include "check.hpp"
#include "pccl/control.hpp"
#include "pccl/control_frames.hpp"
#include "pccl/fd.hpp"
#include "pccl/sockets.hpp"
#include "pccl/wire.hpp"

namespace world {

using namespace pccl;

/// One bit of the next frame of a kind that comes along.
struct Flip {
  FrameType type = FrameType::data;
  Phase phase = Phase::reduce;  // of data and have
  std::size_t at = 0;           // byte: of the header if below header_bytes, else of what follows
  unsigned bit = 0;
};

/// Follows the frames of one direction of a lane, whatever pieces they come in.
class FrameWatcher {
 public:
  /// `handshakes`: control frames before the first data frame.  True if a bit was turned.
  bool pass(std::span<std::byte> bytes, std::size_t handshakes, const Flip* flip) {
    bool flipped = false;
    while (!bytes.empty()) {
      if (rest_ == 0 && !begin(bytes, handshakes)) return flipped;
      const std::size_t here = std::min(rest_, bytes.size());
      const bool wanted = lane_ && flip != nullptr && !flipped && header_.type == flip->type &&
                          (flip->type != FrameType::data || header_.phase == flip->phase);
      if (wanted && flip->at >= passed_ && flip->at < passed_ + here) {
        bytes[flip->at - passed_] ^= static_cast<std::byte>(1u << flip->bit);
        flipped = true;
      }
      bytes = bytes.subspan(here);
      rest_ -= here;
      passed_ += here;
    }
    return flipped;
  }

 private:
  /// Finds out what begins here.  A head that is cut in two is passed on unseen: false, for good.
  bool begin(std::span<const std::byte> bytes, std::size_t handshakes) {
    if (lost_) return false;
    passed_ = 0;
    lane_ = seen_ >= handshakes;
    const std::size_t head = lane_ ? header_bytes : frames::head_bytes;
    frames::Head front;
    lost_ = bytes.size() < head;
    if (lost_) return false;
    if (lane_) {
      lost_ = decode(bytes.first<header_bytes>(), header_) != Status::ok;
      rest_ = head + header_.length;
    } else {
      lost_ = !frames::decode_head(bytes.first<frames::head_bytes>(), front);
      rest_ = head + front.length;
      ++seen_;
    }
    return !lost_;
  }

  FrameHeader header_;
  std::size_t seen_ = 0;    // handshakes
  std::size_t rest_ = 0;    // of the frame under way
  std::size_t passed_ = 0;  // of it
  bool lane_ = false;
  bool lost_ = false;
};

class LaneProxy {
 public:
  LaneProxy(std::uint16_t target, unsigned seed) : target_(target), dice_(seed) {
    CHECK(listen_tcp("127.0.0.1", 0, 64, listener_) == Status::ok);
    port_ = local_port(listener_.get());
    thread_ = std::thread([this] { run(); });
  }
  ~LaneProxy() {
    stop_ = true;
    thread_.join();
  }
  LaneProxy(const LaneProxy&) = delete;
  LaneProxy& operator=(const LaneProxy&) = delete;

  [[nodiscard]] std::uint16_t port() const { return port_; }
  /// Cuts a lane, chosen by chance, as soon as bytes move through one; or only a tunnel.
  void cut(bool in_tunnel = false) {
    cut_tunnels_only_ = in_tunnel;
    cuts_wanted_ = 1;
  }
  [[nodiscard]] int cuts() const { return cuts_; }
  /// Turns a bit of the next such frame, in either direction of any lane, or only of a tunnel.
  void flip(const Flip& wanted, bool in_tunnel = false) {
    const std::lock_guard lock(flip_mutex_);
    flip_ = wanted;
    in_tunnel_ = in_tunnel;
  }
  [[nodiscard]] int flips() const { return flips_; }
  /// From now on no packet of the present connections gets here: from the diallers, or from both
  /// ends.  Other connections, made later, work.
  void deafen(bool both_ends, bool lanes_only) {
    deaf_both_ = both_ends;
    deaf_lanes_only_ = lanes_only;
    deafen_wanted_ = true;
    while (deafen_wanted_) std::this_thread::yield();
  }

 private:
  static constexpr std::size_t chunk = 64 * 1024;
  struct Way {
    std::array<std::byte, chunk> bytes;
    std::size_t begin = 0, end = 0;
    FrameWatcher watcher;
  };
  struct Pair {
    Fd sides[2];
    Way ways[2];  // from side i to the other
    bool lane = false;
    bool relay = false;
    bool known = false;
    bool dead = false;
  };

  /// A packet filter that lets nothing through.
  static void drop_all(int fd) {
    sock_filter nothing = BPF_STMT(BPF_RET | BPF_K, 0);
    const sock_fprog program{1, &nothing};
    CHECK(::setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program) == 0);
  }
  void run() {
    while (!stop_) {
      if (deafen_wanted_) {
        for (const auto& pair : pairs_) {
          if (deaf_lanes_only_ && !pair->lane) continue;
          drop_all(pair->sides[0].get());
          if (deaf_both_) drop_all(pair->sides[1].get());
        }
        deafen_wanted_ = false;
      }
      std::vector<pollfd> waits{{listener_.get(), POLLIN, 0}};
      for (const auto& pair : pairs_) {
        for (int i = 0; i < 2; ++i) {
          short events = 0;
          if (pair->ways[i].begin == pair->ways[i].end) events |= POLLIN;
          if (pair->ways[1 - i].begin != pair->ways[1 - i].end) events |= POLLOUT;
          waits.push_back({pair->sides[i].get(), events, 0});
        }
      }
      ::poll(waits.data(), waits.size(), 10);
      const std::size_t present = pairs_.size();
      for (std::size_t p = 0; p < present; ++p) {
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
    pairs_.push_back(std::move(pair));
  }
  /// What side i can take, and what it has.
  void move(Pair& pair, int i) {
    Way& in = pair.ways[i];
    Way& out = pair.ways[1 - i];
    if (out.begin != out.end) {
      const ssize_t sent = ::send(pair.sides[i].get(), out.bytes.data() + out.begin,
                                  out.end - out.begin, MSG_DONTWAIT | MSG_NOSIGNAL);
      if (sent > 0) out.begin += static_cast<std::size_t>(sent);
      if (sent < 0 && errno != EAGAIN && errno != ENOTCONN) pair.dead = true;
    }
    if (in.begin == in.end) {
      const ssize_t got = ::recv(pair.sides[i].get(), in.bytes.data(), chunk, MSG_DONTWAIT);
      if (got == 0 || (got < 0 && errno != EAGAIN && errno != ENOTCONN)) pair.dead = true;
      in.begin = 0;
      in.end = got > 0 ? static_cast<std::size_t>(got) : 0;
      const bool first = got > 15 && !pair.known && i == 0;
      if (first) {
        pair.known = true;
        const int purpose = std::to_integer<int>(in.bytes[15]);  // in its HELLO
        pair.relay = purpose == static_cast<int>(Purpose::relay);
        pair.lane = pair.relay || purpose == static_cast<int>(Purpose::data_lane);
      }
      if (got > 0 && pair.lane) watch(pair, i, {in.bytes.data(), in.end});
      if (first) return;
      // Small frames pass: most cuts should hit something large.
      const bool worth = got > 200 || dice_() % 4 == 0;
      const bool meant = pair.lane && (pair.relay || !cut_tunnels_only_);
      if (got > 0 && meant && worth && cuts_wanted_ > 0 && dice_() % 3 == 0) {
        cuts_wanted_ = 0;
        ++cuts_;
        pair.dead = true;
      }
    }
  }

  void watch(Pair& pair, int i, std::span<std::byte> bytes) {
    // Through a relay: HELLO, RELAY, HELLO; and a WELCOME of each.
    const std::size_t handshakes = !pair.relay ? 1 : i == 0 ? 3 : 2;
    const std::lock_guard lock(flip_mutex_);
    const bool here = flip_ && (pair.relay || !in_tunnel_);
    if (pair.ways[i].watcher.pass(bytes, handshakes, here ? &*flip_ : nullptr)) {
      flip_.reset();
      ++flips_;
    }
  }

  const std::uint16_t target_;
  std::uint16_t port_ = 0;
  std::mt19937 dice_;
  Fd listener_;
  std::vector<std::unique_ptr<Pair>> pairs_;
  std::atomic<bool> stop_{false};
  std::atomic<bool> deafen_wanted_{false};
  std::atomic<bool> deaf_both_{false};
  std::atomic<bool> deaf_lanes_only_{false};
  std::atomic<bool> cut_tunnels_only_{false};
  std::atomic<int> cuts_wanted_{0};
  std::atomic<int> cuts_{0};
  std::mutex flip_mutex_;
  std::optional<Flip> flip_;  // under flip_mutex_, as the next
  bool in_tunnel_ = false;
  std::atomic<int> flips_{0};
  std::thread thread_;
};

}  // namespace world
