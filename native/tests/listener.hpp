// native/tests/listener.hpp — a coordinator that listens to heartbeats and says what it is told to.
// Ownership: owns its sockets.
// Threads:   the test's.
// Errors:    CHECKs; every wait ends by rig::patience_s.
#pragma once

#include <map>
#include <optional>
#include <vector>

#include "control_rig.hpp"

namespace world {

using namespace pccl;

class Listener {
 public:
  [[nodiscard]] std::uint16_t port() const { return gate_.port(); }
  /// Welcomes that peer; others that come first have to wait for their turn.
  void greet(PeerId peer) {
    while (!wires_.contains(peer)) {
      rig::Wire wire = gate_.accept();
      const auto hello = wire.next<frames::Hello>();
      CHECK(hello.has_value());
      if (!hello) return;
      wires_[hello->peer] = std::move(wire);
    }
    wires_[peer].write(frames::Welcome{1});
  }
  void say(PeerId peer, const frames::Frame& frame) { wires_.at(peer).write(frame); }
  /// Listens until a heartbeat of that peer says so; none if that does not come to pass.
  template <class Says>
  std::optional<frames::Heartbeat> until(PeerId peer, const Says& says) {
    const double deadline_s = monotonic_s() + rig::patience_s;
    while (monotonic_s() < deadline_s) {
      auto beat = wires_.at(peer).next<frames::Heartbeat>();
      if (!beat) return std::nullopt;
      wires_.at(peer).write(frames::Pong{1, 1});
      if (says(beat->status)) return beat;
    }
    return std::nullopt;
  }

 private:
  rig::Gate gate_;
  std::map<PeerId, rig::Wire> wires_;
};

}  // namespace world
