// native/fuzz/door.hpp — a listening port for strangers, and a host that counts whom it is given.
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

class Host final : public ControlHost {
 public:
  Report fence(Generation, Epoch) noexcept override { return {}; }
  HeartbeatStatus status() noexcept override { return {}; }
  void adopt_lane(const LaneHello&, std::unique_ptr<Conduit>) noexcept override { ++lanes; }
  void adopt_stream(PeerId, Fd) noexcept override { ++streams; }
  void connect_failed(PeerId, Incarnation, bool) noexcept override {}
  void evicted(std::string) noexcept override {}
  void refused(std::uint8_t, std::string) noexcept override {}
  void coordinator_connected(bool, Generation) noexcept override {}
  void coordinator_followed(Generation) noexcept override {}
  void peer_beat(PeerId, Epoch, StepId) noexcept override {}
  void peer_silent(PeerId, Incarnation) noexcept override {}
  void routes(Generation, const std::vector<Route>&) noexcept override {}
  bool endpoint_of(PeerId, Incarnation, PeerEndpoint&) noexcept override { return false; }
  int lanes = 0;
  int streams = 0;
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
