// native/tests/relay_world.hpp — engines some of which do not reach, or cannot dial, each other.
// Ownership: see engine_world.hpp, listener.hpp.
// Threads:   see there.
// Errors:    CHECKs.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <thread>
#include <vector>

#include "engine_world.hpp"
#include "listener.hpp"

namespace world {

using rig::eventually;

inline constexpr std::size_t count = check::sanitized ? 100'000 : 400'000;
inline constexpr std::uint16_t nobody = 9;

/// Every peer's own idea of where the others are: rank 0 does not reach the last one.
struct WithCoordinator {
  Listener coordinator;  // before the engines that dial it
};
struct BrokenWorld : WithCoordinator, World {
  explicit BrokenWorld(std::size_t size) : World(size, 1, coordinator.port()) {
    directory.assign(size, members);
    last = size - 1;
    directory[0][last].endpoint.port = nobody;
    coordinator.greet(peer_id(0));
    coordinator.greet(peer_id(last));
  }
  void install_all(Epoch epoch, const std::vector<Decision>& decisions = {}) {
    for (const std::size_t rank : everybody()) {
      const View view = view_of(epoch, everybody(), Pause::none);
      engines[rank]->install(view, directory[rank], 0, decisions);
    }
  }
  /// What a coordinator does: waits for the report, and says through whom.
  void route_through(std::size_t via) {
    for (const std::size_t end : {std::size_t{0}, last}) {
      const PeerId other = peer_id(end == 0 ? last : 0);
      CHECK(coordinator.until(peer_id(end), [&](const HeartbeatStatus& status) {
        return status.down == std::vector<PeerId>{other};
      }));
    }
    for (const std::size_t end : {std::size_t{0}, last}) {
      const PeerId other = peer_id(end == 0 ? last : 0);
      coordinator.say(peer_id(end), frames::Routes{1, 1, {{other, peer_id(via)}}});
    }
  }
  bool relayed(bool expected) {
    bool all = true;
    for (const std::size_t end : {std::size_t{0}, last}) {
      const PeerId other = peer_id(end == 0 ? last : 0);
      all = all && coordinator.until(peer_id(end), [&](const HeartbeatStatus& status) {
        return status.down.empty() &&
               (status.relayed == std::vector<PeerId>{other}) == expected;
      });
    }
    return all;
  }
  /// All take part in so many steps, and every sum is exact.
  void sum(int steps, const std::vector<Algorithm>& algorithms) {
    all(everybody(), [&](std::size_t rank) {
      for (int i = 0; i < steps; ++i) {
        const Algorithm algorithm = algorithms[static_cast<std::size_t>(i) % algorithms.size()];
        std::vector<float> data(count, static_cast<float>(rank + 1));
        const bool committed = sum_step(*engines[rank], data, algorithm, 30);
        CHECK(committed);
        if (!committed) std::abort();  // else the others wait for ever
        const auto whole = static_cast<float>(engines.size() * (engines.size() + 1) / 2);
        CHECK(std::all_of(data.begin(), data.end(), [&](float x) { return x == whole; }));
      }
    });
  }

  std::vector<std::vector<MemberEntry>> directory;  // by who looks
  std::size_t last = 0;
};

inline const std::vector<Algorithm> algorithms = {Algorithm::direct, Algorithm::ring,
                                           Algorithm::exchange};

/// Nobody can dial these: as all others know, before anything is opened.
struct HiddenWorld : BrokenWorld {
  HiddenWorld(std::size_t size, const std::vector<std::size_t>& hidden) : BrokenWorld(size) {
    directory.assign(size, members);
    for (std::vector<MemberEntry>& entries : directory) {
      for (const std::size_t rank : hidden) entries[rank].endpoint.port = 0;
    }
  }
};

}  // namespace world
