// native/tests/fragile_world.hpp — engines whose lanes and beats all run through proxies.
// Ownership: the world owns its engines and proxies.
// Threads:   see engine_world.hpp and lane_proxy.hpp.
// Errors:    CHECKs.
#pragma once

#include <memory>
#include <vector>

#include "engine_world.hpp"
#include "lane_proxy.hpp"

namespace world {

struct FragileWorld : World {
  /// With shared memory large payloads do not go through the proxies, their headers do.
  explicit FragileWorld(std::size_t size, std::uint16_t lanes = 1,
                        std::uint16_t coordinator_port = 9, bool shared_memory = false)
      : World(size, lanes, coordinator_port, shared_memory) {
    for (std::size_t rank = 0; rank < size; ++rank) {
      proxies.push_back(std::make_unique<LaneProxy>(engines[rank]->port(),
                                                    static_cast<unsigned>(rank)));
      members[rank].endpoint.port = proxies.back()->port();
    }
    install(1, everybody());
  }
  [[nodiscard]] int cuts() const {
    int all = 0;
    for (const auto& proxy : proxies) all += proxy->cuts();
    return all;
  }
  std::vector<std::unique_ptr<LaneProxy>> proxies;
};

}  // namespace world
