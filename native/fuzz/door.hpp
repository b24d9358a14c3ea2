// native/fuzz/door.hpp — the parts of a control thread, and a host that counts what it is given.
//
// Ownership: a Door owns all it is made of; one serves all inputs, for none leaves anything behind.
// Threads:   one; the relay has ended, so it opens no tunnel and starts no thread.
// Errors:    none.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "control/strangers.hpp"

namespace fuzz {

using namespace pccl;

template <class Id>
Id id(std::uint8_t fill) {
  Id value;
  value.bytes.fill(fill);
  return value;
}

class Host : public ControlHost {
 public:
  Report fence(Generation, Epoch) noexcept override { return {}; }
  HeartbeatStatus status() noexcept override { return {}; }
  void adopt_lane(const LaneHello&, std::unique_ptr<Conduit>) noexcept override { ++lanes; }
  void adopt_stream(PeerId, Fd) noexcept override { ++streams; }
  void connect_failed(PeerId, Incarnation, bool) noexcept override { ++failed; }
  void evicted(std::string) noexcept override {}
  void refused(std::uint8_t, std::string) noexcept override {}
  void coordinator_connected(bool, Generation) noexcept override {}
  void coordinator_followed(Generation) noexcept override {}
  void peer_beat(PeerId, Epoch, StepId) noexcept override {}
  void peer_silent(PeerId, Incarnation) noexcept override {}
  void routes(Generation, const std::vector<Route>&) noexcept override {}
  /// Every second peer is known, and cannot be dialled.
  bool endpoint_of(PeerId peer, Incarnation, PeerEndpoint& out) noexcept override {
    out = {};
    out.peer = peer;
    return (peer.bytes[0] & 1) == 0;
  }
  int lanes = 0;
  int streams = 0;
  int failed = 0;
  virtual ~Host() = default;
};

struct Door {
  explicit Door(std::shared_ptr<const TlsContext> tls = {}) : tls_context(std::move(tls)) {
    relay.stop();  // it takes nobody then: a member that says whom it answers begins a tunnel
  }
  std::shared_ptr<const TlsContext> tls_context;
  Host host;
  ControlConfig config;
  Poller poller;
  Counters counters;
  Context context{config, host, poller, counters, Identity{id<RunId>(9), 1, id<Secret>(1), 1}, 0,
                  tls_context};
  PeerLinks peers{context};
  Relay relay{1.0};
  Strangers strangers{context, peers, relay};
};

}  // namespace fuzz
