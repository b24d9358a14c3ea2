// native/src/control/peer_links.hpp — one quiet heartbeat connection per peer.
//
// Its death says nothing by itself (the data lanes tell); the next connect() dials it again.
// When both sides dial at once a pair has two; both carry beats and nobody needs to choose.
//
// Ownership: owns the connections.
// Threads:   the control thread only.
// Errors:    a connection that fails in any way is closed.
#pragma once

#include <unordered_map>

#include "control/context.hpp"

namespace pccl {

class PeerLinks {
 public:
  explicit PeerLinks(Context& context) noexcept : context_(context) {}

  /// Takes over a connection whose handshake is done.  A new one that a peer dialled replaces the
  /// one it dialled before: it would not have dialled again if that still worked for it.
  void adopt(FramedSocket socket, PeerId peer, Incarnation incarnation, bool dialled, double now_s);
  [[nodiscard]] bool has(PeerId peer, Incarnation incarnation) const noexcept;
  [[nodiscard]] bool full() const noexcept;
  void forget(PeerId peer, Incarnation incarnation) noexcept;
  void clear() noexcept { links_.clear(); }

  void on_ready(std::uint64_t serial, std::uint32_t bits);
  [[nodiscard]] double due_s() const noexcept {
    return links_.empty() ? no_deadline : next_beat_s_;
  }
  void on_time(double now_s);

 private:
  struct Link {
    FramedSocket socket;
    PeerId peer;
    Incarnation incarnation = 0;
    bool dialled = false;
  };
  bool beat(std::uint64_t serial, Link& link, const HeartbeatStatus& status);
  bool hear(std::uint64_t serial, Link& link, std::uint32_t bits);

  Context& context_;
  std::unordered_map<std::uint64_t, Link> links_;
  double next_beat_s_ = 0;
};

}  // namespace pccl
