// native/src/control/peer_links.hpp — one quiet heartbeat connection per peer.
//
// Its death says nothing by itself (the data lanes tell); the next connect() dials it again.
// When both sides dial at once a pair has two; both carry beats and nobody needs to choose.
//
// Its silence does say something: a peer of which no beat has come for peer_silence_s, or for 20
// round trips, cannot be reached from here or cannot reach us, also if it cuts one direction only.
// The connection is closed and the host hears of it.  What has arrived is read before that, and a
// time in which this thread itself did not run is no silence.
//
// A peer that nobody can dial is called over it: see CALL in docs/PROTOCOL.md.
//
// Who dials here may be in no view: a newcomer of which this peer hears in a moment, or one that
// was put out and keeps its certificate.  A peer has two of these incarnations here at a time,
// whatever it calls them, and none for longer than stranger_age_s.
//
// Ownership: owns the connections.
// Threads:   the control thread only.
// Errors:    a connection that fails in any way is closed.
#pragma once

#include <unordered_map>
#include <utility>
#include <vector>

#include "control/context.hpp"

namespace pccl {

/// A CALL, and who has said it.
struct Called {
  PeerId relay;
  Incarnation incarnation = 0;
  frames::Call call;
};

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
  /// Says CALL to a peer; false: there is no connection that works.
  bool call(PeerId peer, Incarnation incarnation, const frames::Call& call);
  /// The calls that have come since this was asked last.
  [[nodiscard]] std::vector<Called> take_calls() noexcept { return std::exchange(calls_, {}); }

  void on_ready(std::uint64_t serial, std::uint32_t bits, double now_s);
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
    double heard_s = 0;
    double strange_since_s = no_deadline;  // the host does not know it
    [[nodiscard]] bool strange() const noexcept { return strange_since_s < no_deadline; }
  };
  using Links = std::unordered_map<std::uint64_t, Link>;
  [[nodiscard]] bool known(PeerId peer, Incarnation incarnation) const;
  void make_room_for(PeerId peer);
  void drop_strangers(double now_s);
  void forgive_lag(double now_s) noexcept;
  void judge(double now_s);
  [[nodiscard]] bool silent(const Link& link, double now_s) const noexcept;
  bool beat(std::uint64_t serial, Link& link, const HeartbeatStatus& status);
  bool hear(std::uint64_t serial, Link& link, std::uint32_t bits, double now_s);

  Context& context_;
  Links links_;
  std::vector<Called> calls_;
  double next_beat_s_ = 0;
  double ran_s_ = 0;  // when timers were last looked at
};

}  // namespace pccl
