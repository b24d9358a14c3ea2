// native/tests/tls_world.hpp — engines of a secured run that sum, also behind proxies.
// Ownership: see engine_world.hpp and tls_proxy.hpp.
// Threads:   one per rank.
// Errors:    CHECKs.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <functional>
#include <memory>
#include <vector>

#include "engine_world.hpp"
#include "tls_proxy.hpp"
#include "tls_rig.hpp"

namespace world {

using Contexts = std::function<std::shared_ptr<const TlsContext>(std::size_t)>;
inline constexpr std::size_t count = check::sanitized ? 100'000 : 300'000;
inline constexpr float mark = 1234567.0f;
inline const std::vector<Algorithm> algorithms = {Algorithm::direct, Algorithm::ring,
                                           Algorithm::exchange};

/// All of `ranks` sum so many times; every sum is exact.
inline void sums(World& world, const std::vector<std::size_t>& ranks, int steps,
          std::size_t elements = count) {
  World::all(ranks, [&](std::size_t rank) {
    for (int i = 0; i < steps; ++i) {
      std::vector<float> data(elements, mark);
      const bool committed = sum_step(*world.engines[rank], data,
                                      algorithms[static_cast<std::size_t>(i) % 3], 30);
      CHECK(committed);
      if (!committed) std::abort();  // else the others wait for ever
      const float whole = mark * static_cast<float>(ranks.size());
      CHECK(std::all_of(data.begin(), data.end(), [&](float x) { return x == whole; }));
    }
  });
}

/// Each engine behind a proxy, by which all others reach it.
struct HarmedWorld : World {
  explicit HarmedWorld(std::size_t size, std::uint16_t lanes, const Contexts& tls)
      : World(size, lanes, 9, false, tls) {
    for (std::size_t rank = 0; rank < size; ++rank) {
      proxies.push_back(std::make_unique<TlsProxy>(engines[rank]->port()));
      members[rank].endpoint.port = proxies.back()->port();
    }
    install(1, everybody());
  }
  std::vector<std::unique_ptr<TlsProxy>> proxies;
};

inline double fenced(Engine& engine, Epoch target, Report& report) {
  const double began_s = monotonic_s();
  report = engine.fence_for_test(1, target);
  return monotonic_s() - began_s;
}

}  // namespace world
