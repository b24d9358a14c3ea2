// native/tests/lane_proxy.hpp — a TCP relay that knows lanes, and cuts them when told to.
// A cut closes both halves with bytes still in their buffers, so frames are lost on either side.
// flip() turns one bit of one frame of the kind asked for.
// deafen() drops what arrives before TCP sees it, so that nothing is acknowledged: a cut way.
// Ownership: see tcp_proxy.hpp.
// Threads:   its own; cut() from any.
// Errors:    a connection that fails is closed on both sides.
#pragma once

#include <linux/filter.h>
#include <sys/socket.h>

#include <algorithm>
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
#include "pccl/wire.hpp"
#include "tcp_proxy.hpp"

namespace world {

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

class LaneProxy final : private TcpProxy {
 public:
  LaneProxy(std::uint16_t target, unsigned seed) : TcpProxy(target), dice_(seed) { begin(); }
  ~LaneProxy() override { end(); }

  using TcpProxy::port;
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
  struct Carried final : Pair {
    FrameWatcher watchers[2];
    bool lane = false;
    bool relay = false;
    bool known = false;
  };

  /// A packet filter that lets nothing through.
  static void drop_all(int fd) {
    sock_filter nothing = BPF_STMT(BPF_RET | BPF_K, 0);
    const sock_fprog program{1, &nothing};
    CHECK(::setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program) == 0);
  }
  std::unique_ptr<Pair> make_pair() override { return std::make_unique<Carried>(); }
  void pass_time() override {
    if (!deafen_wanted_) return;
    for (const auto& pair : pairs_) {
      if (deaf_lanes_only_ && !static_cast<Carried&>(*pair).lane) continue;
      drop_all(pair->sides[0].get());
      if (deaf_both_) drop_all(pair->sides[1].get());
    }
    deafen_wanted_ = false;
  }
  void passes(Pair& between, int i, std::span<std::byte> bytes) override {
    auto& pair = static_cast<Carried&>(between);
    const bool first = bytes.size() > 15 && !pair.known && i == 0;
    if (first) {
      pair.known = true;
      const int purpose = std::to_integer<int>(bytes[15]);  // in its HELLO
      pair.relay = purpose == static_cast<int>(Purpose::relay);
      pair.lane = pair.relay || purpose == static_cast<int>(Purpose::data_lane);
    }
    if (pair.lane) watch(pair, i, bytes);
    if (first) return;
    // Small frames pass: most cuts should hit something large.
    const bool worth = bytes.size() > 200 || dice_() % 4 == 0;
    const bool meant = pair.lane && (pair.relay || !cut_tunnels_only_);
    if (meant && worth && cuts_wanted_ > 0 && dice_() % 3 == 0) {
      cuts_wanted_ = 0;
      ++cuts_;
      pair.dead = true;
    }
  }

  void watch(Carried& pair, int i, std::span<std::byte> bytes) {
    // Through a relay: HELLO, RELAY, HELLO; and a WELCOME of each.
    const std::size_t handshakes = !pair.relay ? 1 : i == 0 ? 3 : 2;
    const std::lock_guard lock(flip_mutex_);
    const bool here = flip_ && (pair.relay || !in_tunnel_);
    if (pair.watchers[i].pass(bytes, handshakes, here ? &*flip_ : nullptr)) {
      flip_.reset();
      ++flips_;
    }
  }

  std::mt19937 dice_;
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
};

}  // namespace world
