// native/tests/bench_sealing.cpp — what the ways of sealing a lane cost in an all-reduce.
// PCCL_BENCH_MIB (64) and PCCL_BENCH_ROUNDS (9) say how much and how often.  Two engines per way on
// loopback, payloads by their lanes; an f32 sum in place, by turns over all ways, so that a
// machine's good and bad moments fall on all alike.  One line of JSON per way: its name, the
// median and the fastest, and both as shares of plain lanes' speed; the median of processor time,
// both ends together.
// Ownership: each way owns its world.
// Threads:   one per rank; see engine_world.hpp.
// Errors:    CHECKs: every sum is compared.
#include <algorithm>
#include <cstdlib>
#include <ctime>

#include "engine_world.hpp"
#include "tls_rig.hpp"

using namespace world;

namespace {

struct Way {
  const char* name;
  std::shared_ptr<const TlsContext> (*tls)(const rig_tls::Authority&);
  std::unique_ptr<World> world{};
  std::vector<double> seconds{};
  std::vector<double> cpu_seconds{};  // of the process: hardly changed by what else runs
};

template <bool pieces, std::uint32_t piece_bytes>
std::shared_ptr<const TlsContext> sealed(const rig_tls::Authority& authority) {
  return std::make_shared<const TlsContext>(
      authority.material(authority.issue()),
      LaneSealing{.pieces = pieces, .piece_bytes = piece_bytes, .pieces_per_key = 1 << 16});
}

double cpu_s() {
  timespec now{};
  CHECK(::clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now) == 0);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

void one_sum(Way& way, std::vector<std::vector<float>>& data) {
  for (std::size_t rank = 0; rank < data.size(); ++rank) {
    for (std::size_t i = 0; i < data[rank].size(); ++i) {
      data[rank][i] = static_cast<float>(i % 251 + rank);
    }
  }
  const double began_s = monotonic_s();
  const double began_cpu_s = cpu_s();
  World::all(way.world->everybody(), [&](std::size_t rank) {
    CHECK(sum_step(*way.world->engines[rank], data[rank], Algorithm::automatic));
  });
  way.seconds.push_back(monotonic_s() - began_s);
  way.cpu_seconds.push_back(cpu_s() - began_cpu_s);
  for (const auto& one : data) {
    for (std::size_t i = 0; i < one.size(); ++i) {
      if (one[i] == static_cast<float>(2 * (i % 251) + 1)) continue;
      CHECK(!"a sum is wrong");
      break;
    }
  }
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

}  // namespace

TEST(ways_of_sealing) {
  const auto number = [](const char* name, std::size_t otherwise) {
    const char* said = std::getenv(name);
    return said != nullptr ? static_cast<std::size_t>(std::strtoul(said, nullptr, 10)) : otherwise;
  };
  const std::size_t count = number("PCCL_BENCH_MIB", 64) * 1024 * 1024 / sizeof(float);
  const std::size_t rounds = std::max<std::size_t>(number("PCCL_BENCH_ROUNDS", 9), 1);
  const rig_tls::Authority authority;
  Way ways[] = {
      {"plain", [](const rig_tls::Authority&) { return std::shared_ptr<const TlsContext>(); }},
      {"records of 16 KiB", &sealed<false, 65536>},
      {"pieces of 16 KiB", &sealed<true, 16 * 1024>},
      {"pieces of 32 KiB", &sealed<true, 32 * 1024>},
      {"pieces of 64 KiB", &sealed<true, 64 * 1024>},
      {"pieces of 128 KiB", &sealed<true, 128 * 1024>},
      {"pieces of 256 KiB", &sealed<true, 256 * 1024>},
  };
  for (Way& way : ways) {
    way.world = std::make_unique<World>(
        2, std::uint16_t{1}, std::uint16_t{9}, false,
        [&](std::size_t) { return way.tls(authority); });
    way.world->install(1, way.world->everybody());
  }
  std::vector<std::vector<float>> data(2, std::vector<float>(count));
  for (std::size_t round = 0; round <= rounds; ++round) {
    for (Way& way : ways) one_sum(way, data);
    if (round > 0) continue;
    for (Way& way : ways) {  // lanes came up, memory was touched
      way.seconds.clear();
      way.cpu_seconds.clear();
    }
  }
  const double plain_s = median(ways[0].seconds);
  const auto fastest = [](const Way& way) {
    return *std::min_element(way.seconds.begin(), way.seconds.end());
  };
  for (const Way& way : ways) {
    const double s = median(way.seconds);
    std::printf("{\"way\": \"%s\", \"ms\": %.1f, \"best_ms\": %.1f, \"of_plain\": %.3f, "
                "\"best_of_plain\": %.3f, \"cpu_ms\": %.1f}\n",
                way.name, 1e3 * s, 1e3 * fastest(way), plain_s / s,
                fastest(ways[0]) / fastest(way), 1e3 * median(way.cpu_seconds));
  }
}
