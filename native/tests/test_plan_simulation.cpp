// native/tests/test_plan_simulation.cpp — all plans add every contribution exactly once and send no
// byte too many; predicted times are what can be counted by hand.
// Ownership: plain values.
// Threads:   one.
// Errors:    counted by CHECK.
#include <cmath>

#include "check.hpp"
#include "plan_setting.hpp"

namespace {

using pccl::Algorithm;
using pccl::CostModel;
using pccl::Simulation;

using plan_setting::algorithms;
using plan_setting::plans_of;
using plan_setting::Setting;
template <std::size_t N>
using Sizes = std::array<std::uint16_t, N>;

Simulation simulation_of(const Setting& setting, const CostModel& cost = {}) {
  return pccl::simulate(plans_of(setting), setting.element_bytes, setting.accumulator_bytes, cost);
}
/// What all ranks together must send: 2(N-1) times the buffer, N(N-1) times for exchange.
std::uint64_t bytes_due(const Setting& setting) {
  const std::uint64_t others = setting.size - 1U;
  const std::uint64_t plain = setting.count * setting.element_bytes;
  if (setting.algorithm == Algorithm::exchange) return setting.size * others * plain;
  const bool ring = setting.algorithm == Algorithm::ring;
  const std::uint64_t reduced = ring ? setting.count * setting.accumulator_bytes : plain;
  return others * (reduced + plain);
}
void check_setting(const Setting& setting) {
  const Simulation seen = simulation_of(setting);
  if (!seen.correct) std::fprintf(stderr, "%s\n", seen.error.c_str());
  CHECK(seen.correct);
  CHECK(seen.error.empty());
  CHECK(seen.bytes_sent_total == bytes_due(setting));
  CHECK(seen.bytes_sent_max <= seen.bytes_sent_total);
  CHECK(seen.bytes_sent_max * setting.size >= seen.bytes_sent_total);
}
TEST(every_contribution_arrives_exactly_once_for_all_sizes_and_small_counts) {
  for (std::uint16_t size = 1; size <= 64; ++size) {
    for (const Algorithm algorithm : algorithms) {
      const std::uint64_t ranks = size;
      for (const std::uint64_t count : {std::uint64_t{0}, std::uint64_t{1}, ranks - 1, ranks + 1}) {
        check_setting({algorithm, size, count, 8, 8});
      }
      check_setting({algorithm, size, ranks, 64, 64});  // a line each
      check_setting({algorithm, size, 7919, 1, 4});
      check_setting({algorithm, size, 100003, 2, 4});
    }
  }
}

TEST(every_contribution_arrives_exactly_once_for_all_element_sizes) {
  for (std::uint16_t size = 1; size <= 9; ++size) {
    for (const Algorithm algorithm : algorithms) {
      for (const std::uint32_t element : {1U, 2U, 4U, 8U}) {
        for (const std::uint32_t accumulator : {1U, 2U, 4U, 8U}) {
          for (const std::uint64_t count : {0, 1, 13, 100003, 1 << 20}) {
            check_setting({algorithm, size, count, element, accumulator});
          }
        }
      }
    }
  }
}

TEST(many_slices_per_shard_are_correct_too) {
  for (const std::uint16_t size : Sizes<5>{1, 2, 3, 5, 8}) {
    for (const Algorithm algorithm : algorithms) {
      // Elements of 64 KiB make slices of four: as many slices as a buffer of gigabytes has.
      check_setting({algorithm, size, 8191, 64 * 1024, 64 * 1024});
    }
  }
  check_setting({Algorithm::direct, 2, 1 << 20, 4096, 4096});
}

TEST(more_ranks_than_bits_in_a_word_are_correct) {
  for (const std::uint16_t size : Sizes<3>{65, 128, 129}) {
    for (const Algorithm algorithm : algorithms) check_setting({algorithm, size, 5003, 4, 4});
  }
}

TEST(unequal_and_empty_shards_are_correct_and_send_no_more) {
  for (std::uint16_t size = 1; size <= 64; ++size) {
    std::vector<double> rising(size);
    std::vector<double> every_third(size);
    std::vector<double> last(size);
    for (std::size_t rank = 0; rank < size; ++rank) {
      rising[rank] = static_cast<double>(rank + 1);
      every_third[rank] = rank % 3 == 1 ? 0.37 : 0;
      last[rank] = rank + 1U == size ? 1 : 0;
    }
    for (const std::vector<double>& shares : {rising, every_third, last}) {
      check_setting({Algorithm::direct, size, 100003, 4, 4, shares});
      check_setting({Algorithm::direct, size, size, 2, 4, shares});
    }
  }
}

TEST(the_busiest_rank_sends_its_contributions_and_its_shard_to_all) {
  // Rank 1 owns 3/4 of 4096 f32: it sends 1/4 to the owners and 3/4 to each of two.
  const Simulation seen = simulation_of({Algorithm::direct, 3, 4096, 4, 4, {1, 6, 1}});
  CHECK(seen.correct);
  CHECK(seen.bytes_sent_max == 4096 * 4 / 4 + 2 * (4096 * 4 / 4 * 3));
}

bool about(double left, double right) { return std::abs(left - right) <= 1e-9 * right; }

TEST(with_latency_alone_exchange_takes_one_direct_two_and_a_ring_twice_the_others) {
  const CostModel latency{.latency_s = 1, .seconds_per_byte = 0, .seconds_per_reduced_byte = 0};
  for (const std::uint16_t size : Sizes<4>{2, 3, 8, 32}) {
    CHECK(about(simulation_of({Algorithm::exchange, size, 5000}, latency).time_s, 1));
    CHECK(about(simulation_of({Algorithm::direct, size, 5000}, latency).time_s, 2));
    const double rounds = 2.0 * (size - 1);
    CHECK(about(simulation_of({Algorithm::ring, size, 5000}, latency).time_s, rounds));
  }
}

TEST(with_bytes_alone_direct_and_ring_keep_the_links_busy) {
  const CostModel bytes{.latency_s = 0, .seconds_per_byte = 1, .seconds_per_reduced_byte = 0};
  for (const std::uint16_t size : Sizes<3>{2, 4, 8}) {
    const std::uint64_t count = std::uint64_t{size} * 32 * 64 * 1024;  // 32 slices a shard
    const double due = 2.0 * (size - 1) / size * 4.0 * static_cast<double>(count);
    for (const Algorithm algorithm : {Algorithm::direct, Algorithm::ring}) {
      const double seen = simulation_of({algorithm, size, count}, bytes).time_s;
      CHECK(seen >= due * (1 - 1e-9));
      CHECK(seen <= due * 1.10);
    }
  }
}

TEST(reduction_is_paid_by_who_reduces) {
  const CostModel work{.latency_s = 0, .seconds_per_byte = 0, .seconds_per_reduced_byte = 1};
  CHECK(about(simulation_of({Algorithm::exchange, 4, 1600}, work).time_s, 3 * 6400));
  CHECK(about(simulation_of({Algorithm::direct, 4, 1600}, work).time_s, 3 * 1600));
}

TEST(a_rank_holds_few_accumulators_at_a_time) {
  CHECK(simulation_of({Algorithm::direct, 2, 1 << 22}).accumulators_max == 1);
  CHECK(simulation_of({Algorithm::exchange, 2, 1 << 22}).accumulators_max == 1);
  CHECK(simulation_of({Algorithm::ring, 2, 1 << 22}).accumulators_max == 1);
  // Contributions come slice by slice, so the owner finishes one before it opens many.
  const Simulation direct = simulation_of({Algorithm::direct, 8, 1 << 23});
  CHECK(direct.correct && direct.accumulators_max >= 1 && direct.accumulators_max <= 4);
}

}  // namespace
