// native/src/control/relay.hpp — carries bytes between two members that do not reach each other.
//
// A tunnel lies below a data lane: both ends make their ordinary handshake through it and hash what
// they send, so the relay needs to be neither asked nor trusted about steps; or below a stream to
// a peer that nobody can dial, which is called here for it.  A tunnel ends when either end does.
// Both directions have a bounded buffer; who does not read slows down who writes, as without a
// relay.  Tunnels have a thread of their own, `pccl-relay`, which starts with the first of them:
// neither the control thread nor the own data path waits for others' bytes.
//
// Ownership: owns its thread and both sockets of every tunnel.
// Threads:   public members from any; a mailbox behind a mutex and an eventfd.
// Errors:    a tunnel that fails in any way is closed on both sides; a target that cannot be
//            reached is told as REFUSED.  open() throws std::system_error if no thread can start.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <map>
#include <mutex>
#include <optional>
#include <thread>
#include <unordered_map>
#include <vector>

#include "pccl/control.hpp"
#include "pccl/control_frames.hpp"
#include "pccl/fd.hpp"
#include "pccl/poller.hpp"

namespace pccl {

class Relay {
 public:
  explicit Relay(double connect_timeout_s) noexcept : connect_timeout_s_(connect_timeout_s) {}
  ~Relay() { stop(); }
  Relay(const Relay&) = delete;
  Relay& operator=(const Relay&) = delete;

  /// Whether one more tunnel for that peer is within the limits.
  [[nodiscard]] bool has_room(PeerId from) const;
  /// Takes over a connection that has said HELLO and RELAY; the WELCOME, or why not, is sent to it
  /// when the target has been dialled; or, where that cannot be, has come by itself with the same
  /// wish, or, called by the one who asks for it here, with the number of the call.
  void open(std::unique_ptr<Conduit> client, PeerId from, const PeerEndpoint& target,
            std::uint64_t call = 0);
  /// The same for one who comes since `caller` waits for it here.
  void answer(std::unique_ptr<Conduit> client, PeerId from, PeerId caller, std::uint64_t call);
  [[nodiscard]] std::size_t tunnels() const;
  [[nodiscard]] std::uint64_t bytes() const noexcept { return bytes_; }
  void stop() noexcept;

  static constexpr std::size_t tunnels_max = 256;
  static constexpr std::size_t tunnels_per_peer_max = 64;  // as many as lanes of a link

 private:
  static constexpr std::size_t buffer_bytes = 128 * 1024;
  struct Way {
    std::vector<std::byte> bytes;  // none before there is something to carry
    std::size_t begin = 0;
    std::size_t end = 0;
  };
  struct Tunnel {
    std::array<Fd, 2> sides;  // the client (bare, once it has its WELCOME), the target
    std::unique_ptr<Conduit> client;  // before that
    std::array<Way, 2> ways;  // from that side to the other
    std::array<std::uint32_t, 2> interest{};
    PeerId from;
    std::optional<PeerId> awaits;  // who is to come by itself; none: it was dialled, or has come
    std::uint64_t call = 0;        // by what it was called; 0: not
    bool open = false;
    double deadline_s = 0;  // of the dial, or of the wait
  };
  struct Order {
    std::unique_ptr<Conduit> client;
    PeerId from;
    PeerEndpoint target;
    std::uint64_t call = 0;
    bool answers = false;
  };

  void take(Order order);
  void run() noexcept;
  void turn(double now_s);
  void take_orders(double now_s);
  void begin(Order order, double now_s);
  void meet(Order order, double now_s);
  void match(Order order);
  void await(Order order, double now_s);
  bool join(std::uint64_t serial, Tunnel& tunnel, std::unique_ptr<Conduit> other);
  void on_ready(std::uint64_t token, std::uint32_t bits);
  bool welcome(Tunnel& tunnel);
  static bool greet(std::unique_ptr<Conduit>& client, Fd& bare);
  bool move(Tunnel& tunnel, std::size_t side);
  bool drain(Tunnel& tunnel, std::size_t side);
  bool watch(std::uint64_t serial, Tunnel& tunnel);
  void refuse(Conduit& client, frames::Refusal code, const char* text) noexcept;
  void end(std::uint64_t serial);
  void forget(PeerId from);
  void wake() noexcept;

  const double connect_timeout_s_;
  mutable std::mutex mutex_;
  std::vector<Order> orders_;            // under mutex_
  std::map<PeerId, std::size_t> users_;  // tunnels of each peer, orders too; under mutex_
  std::size_t count_ = 0;                // of all; under mutex_
  bool stopping_ = false;                // under mutex_
  Fd wake_;
  std::thread thread_;
  std::atomic<std::uint64_t> bytes_{0};

  // The relay thread's own.
  Poller poller_;
  std::uint64_t serial_ = 0;
  std::unordered_map<std::uint64_t, Tunnel> tunnels_;
};

}  // namespace pccl
