// native/tests/test_plan.cpp — what one plan looks like: algorithm, slices, shards, transfers.
// Ownership: plain values.
// Threads:   one.
// Errors:    counted by CHECK.
#include <algorithm>
#include <array>
#include <limits>

#include "check.hpp"
#include "pccl/plan.hpp"

namespace {

using pccl::Algorithm;
using pccl::Element;
using pccl::Phase;
using pccl::Plan;
using pccl::PlanRequest;
using pccl::Shard;
using pccl::Source;
using pccl::Transfer;
using pccl::TransferKind;

constexpr std::array algorithms{Algorithm::exchange, Algorithm::direct, Algorithm::ring};

PlanRequest request(Algorithm algorithm, std::uint16_t size, std::uint64_t count,
                    std::uint32_t element_bytes = 4, std::uint32_t accumulator_bytes = 4) {
  return {.algorithm = algorithm,
          .rank = 0,
          .size = size,
          .count = count,
          .element_bytes = element_bytes,
          .accumulator_bytes = accumulator_bytes,
          .ordered = false,
          .shares = {}};
}
Plan plan_of(PlanRequest asked, std::uint16_t rank) {
  asked.rank = rank;
  return pccl::make_plan(asked);
}
bool same(const Shard& left, const Shard& right) {
  return left.input == right.input && left.output == right.output && left.count == right.count &&
         left.slices == right.slices && left.name == right.name;
}
/// A compact picture of a transfer, so that a whole plan can be compared at once.
struct Picture {
  TransferKind kind;
  Phase phase;
  Element element;
  Source source;
  int peer;
  int shard;
  int needs;
  std::vector<std::uint16_t> next;
};
bool looks_like(const Plan& plan, const std::vector<Picture>& pictures) {
  return std::ranges::equal(plan.transfers, pictures, [](const Transfer& is, const Picture& must) {
    return is.kind == must.kind && is.phase == must.phase && is.element == must.element &&
           is.source == must.source && is.peer == must.peer && is.shard == must.shard &&
           is.needs == must.needs && is.next == must.next;
  });
}

constexpr auto sends = TransferKind::send;
constexpr auto reduces = TransferKind::receive_reduce;
constexpr auto copies = TransferKind::receive_copy;
constexpr auto plain = Element::plain;
constexpr auto partial = Element::accumulator;

TEST(one_rank_alone_finishes_its_only_shard_and_sends_nothing) {
  for (const Algorithm algorithm : algorithms) {
    for (const std::uint64_t count : {0, 1, 1 << 20}) {
      const Plan plan = pccl::make_plan(request(algorithm, 1, count));
      CHECK(plan.transfers.empty());
      CHECK(plan.finishes == std::vector<std::uint8_t>{1});
      CHECK(plan.shards.size() == 1 && plan.shards[0].input == 0);
      CHECK(plan.shards[0].count == count);
    }
  }
}

TEST(exchange_of_three_is_two_sends_and_two_receives_in_rotated_order) {
  const Plan plan = plan_of(request(Algorithm::exchange, 3, 10), 1);
  CHECK(looks_like(plan, {{sends, Phase::reduce, plain, Source::input, 2, 0, 0, {}},
                          {sends, Phase::reduce, plain, Source::input, 0, 0, 0, {}},
                          {reduces, Phase::reduce, plain, Source::none, 0, 0, 0, {}},
                          {reduces, Phase::reduce, plain, Source::none, 2, 0, 0, {}}}));
  CHECK(plan.ordered);
  CHECK(plan.finishes == std::vector<std::uint8_t>{1});
}

TEST(direct_of_three_sends_contributions_to_owners_and_the_own_shard_to_all) {
  const Plan plan = plan_of(request(Algorithm::direct, 3, 1000), 1);
  CHECK(looks_like(plan, {{sends, Phase::reduce, plain, Source::input, 2, 2, 0, {}},
                          {sends, Phase::reduce, plain, Source::input, 0, 0, 0, {}},
                          {reduces, Phase::reduce, plain, Source::none, 0, 1, 0, {4, 5}},
                          {reduces, Phase::reduce, plain, Source::none, 2, 1, 0, {4, 5}},
                          {sends, Phase::gather, plain, Source::output, 2, 1, 2, {}},
                          {sends, Phase::gather, plain, Source::output, 0, 1, 2, {}},
                          {copies, Phase::gather, plain, Source::none, 0, 0, 0, {}},
                          {copies, Phase::gather, plain, Source::none, 2, 2, 0, {}}}));
  CHECK((plan.finishes == std::vector<std::uint8_t>{0, 1, 0}));
}

TEST(ring_of_three_passes_partial_sums_and_then_results_to_the_next_rank_only) {
  const Plan plan = plan_of(request(Algorithm::ring, 3, 1000), 1);
  CHECK(looks_like(plan, {{sends, Phase::reduce, partial, Source::input, 2, 0, 0, {}},
                          {reduces, Phase::reduce, partial, Source::none, 0, 2, 0, {2}},
                          {sends, Phase::reduce, partial, Source::accumulator, 2, 2, 1, {}},
                          {reduces, Phase::reduce, partial, Source::none, 0, 1, 0, {4}},
                          {sends, Phase::gather, plain, Source::output, 2, 1, 1, {}},
                          {copies, Phase::gather, plain, Source::none, 0, 0, 0, {6}},
                          {sends, Phase::gather, plain, Source::output, 2, 0, 1, {}},
                          {copies, Phase::gather, plain, Source::none, 0, 2, 0, {}}}));
  CHECK((plan.finishes == std::vector<std::uint8_t>{0, 1, 0}));
}

TEST(only_direct_takes_its_order_from_the_request) {
  for (const bool ordered : {false, true}) {
    for (const Algorithm algorithm : algorithms) {
      PlanRequest asked = request(algorithm, 4, 1000);
      asked.ordered = ordered;
      const bool must = algorithm == Algorithm::exchange ||
                        (algorithm == Algorithm::direct && ordered);
      CHECK(pccl::make_plan(asked).ordered == must);
    }
  }
}

TEST(shards_cover_all_elements_once_and_start_on_cache_lines) {
  for (std::uint16_t size = 1; size <= 64; ++size) {
    for (const std::uint32_t bytes : {1U, 2U, 4U, 8U}) {
      for (const std::uint64_t count : {0ULL, 1ULL, 63ULL, 64ULL, 65ULL, 7919ULL, 100003ULL,
                                        1ULL << 20U, (1ULL << 40U) - 1}) {
        for (const Algorithm algorithm : algorithms) {
          const Plan plan = pccl::make_plan(request(algorithm, size, count, bytes, 4));
          std::uint64_t covered = 0;
          std::uint64_t slices = 0;
          bool aligned = true;
          for (const Shard& shard : plan.shards) {
            CHECK(shard.input == covered && shard.output == covered);
            covered += shard.count;
            slices += shard.slices;
            aligned = aligned && (shard.input * bytes % 64 == 0 || shard.input == count);
            std::uint64_t in_slices = 0;
            if (shard.slices > 0) {
              in_slices = std::uint64_t{shard.slices - 1U} * plan.slice_count +
                          pccl::slice_elements(plan, shard, shard.slices - 1);
            }
            CHECK(in_slices == shard.count);
          }
          CHECK(covered == count);
          CHECK(aligned);
          CHECK(slices <= 1ULL << 31U);
        }
      }
    }
  }
}

TEST(equal_shards_differ_by_at_most_a_cache_line) {
  for (std::uint16_t size = 2; size <= 64; ++size) {
    const Plan plan = pccl::make_plan(request(Algorithm::direct, size, 100003));
    const auto [least, most] = std::ranges::minmax(
        plan.shards, {}, [](const Shard& shard) { return shard.count; });
    CHECK(most.count - least.count < 2 * 64 / 4);
  }
}

TEST(shards_follow_the_shares_and_a_zero_share_owns_nothing) {
  const std::array<double, 5> shares{0, 1, 0, 3, 0};
  PlanRequest asked = request(Algorithm::direct, 5, 160);
  asked.shares = shares;
  const Plan plan = pccl::make_plan(asked);
  const std::array<std::uint64_t, 5> counts{0, 48, 0, 112, 0};  // 40 and 120 on lines of 16
  CHECK(std::ranges::equal(plan.shards, counts, {}, &Shard::count));
  CHECK(plan.shards[0].slices == 0 && plan.shards[4].slices == 0);
  CHECK(plan.transfers.size() == 16);  // the empty shards keep theirs
}

TEST(one_rank_may_own_everything) {
  const std::array<double, 3> shares{0, 0, 1e300};
  PlanRequest asked = request(Algorithm::direct, 3, 100003, 2);
  asked.shares = shares;
  const std::array<std::uint64_t, 3> counts{0, 0, 100003};
  CHECK(std::ranges::equal(pccl::make_plan(asked).shards, counts, {}, &Shard::count));
}

TEST(shares_that_say_nothing_mean_equal_shards) {
  const PlanRequest equal = request(Algorithm::direct, 3, 100003);
  const Plan wanted = pccl::make_plan(equal);
  constexpr double infinity = std::numeric_limits<double>::infinity();
  constexpr double none = std::numeric_limits<double>::quiet_NaN();
  const std::vector<std::vector<double>> useless{{0, 0, 0},        {1, none, 1}, {1, infinity, 1},
                                                 {1, -1, 2},       {1, 1},       {1, 1, 1, 1},
                                                 {1e308, 1e308, 0}};
  for (const std::vector<double>& shares : useless) {
    PlanRequest asked = equal;
    asked.shares = shares;
    CHECK(std::ranges::equal(pccl::make_plan(asked).shards, wanted.shards, same));
  }
}

TEST(a_slice_never_exceeds_a_frame_and_is_made_of_whole_cache_lines) {
  for (const Algorithm algorithm : algorithms) {
    for (const std::uint16_t size : std::array<std::uint16_t, 6>{1, 2, 3, 8, 64, 1024}) {
      for (const std::uint32_t element : {1U, 2U, 4U, 8U}) {
        for (const std::uint32_t accumulator : {1U, 2U, 4U, 8U}) {
          for (std::uint64_t count = 1; count <= 1ULL << 40U; count *= 4) {
            const PlanRequest asked = request(algorithm, size, count, element, accumulator);
            const std::uint64_t slice = pccl::choose_slice_count(asked, algorithm);
            CHECK(slice >= 1);
            CHECK(slice * element <= pccl::slice_bytes_max);
            CHECK(slice * accumulator <= pccl::slice_bytes_max);
            CHECK(slice * element % 64 == 0);
          }
        }
      }
    }
  }
}

TEST(a_medium_shard_is_cut_into_several_slices_but_not_into_crumbs) {
  const auto slice_bytes = [](Algorithm algorithm, std::uint64_t shard_bytes) {
    const PlanRequest asked = request(algorithm, 4, 4 * shard_bytes / 4);
    return 4 * pccl::choose_slice_count(asked, algorithm);
  };
  for (const Algorithm algorithm : {Algorithm::direct, Algorithm::ring}) {
    CHECK(slice_bytes(algorithm, 4 * 1024) == 64 * 1024);
    CHECK(slice_bytes(algorithm, 256 * 1024) == 128 * 1024);
    CHECK(slice_bytes(algorithm, 64 << 20) == 256 * 1024);
  }
}

TEST(a_small_exchange_is_one_slice) {
  for (const std::uint64_t bytes : {4, 1024, 128 * 1024, 256 * 1024}) {
    CHECK(pccl::make_plan(request(Algorithm::exchange, 2, bytes / 4)).shards[0].slices == 1);
  }
  CHECK(pccl::make_plan(request(Algorithm::exchange, 2, 1 << 20)).shards[0].slices == 16);
}

TEST(large_elements_still_make_slices_of_at_least_one) {
  CHECK(pccl::choose_slice_count(request(Algorithm::direct, 4, 1 << 20, 4096), Algorithm::direct) ==
        64);
  CHECK(pccl::choose_slice_count(request(Algorithm::direct, 4, 3, pccl::slice_bytes_max),
                                 Algorithm::direct) == 1);
}

TEST(automatic_becomes_exchange_up_to_the_thresholds_and_direct_above) {
  const auto choice = [](std::uint16_t size, std::uint64_t count, std::uint32_t bytes) {
    return pccl::choose_algorithm(request(Algorithm::automatic, size, count, bytes));
  };
  CHECK(choice(2, 32 * 1024, 4) == Algorithm::exchange);
  CHECK(choice(2, 32 * 1024 + 1, 4) == Algorithm::direct);
  CHECK(choice(5, 4 * 1024, 4) == Algorithm::exchange);
  CHECK(choice(5, 4 * 1024 + 1, 4) == Algorithm::direct);
  CHECK(choice(1024, 16, 4) == Algorithm::exchange);
  CHECK(choice(1024, 17, 4) == Algorithm::direct);
  CHECK(choice(64, 0, 8) == Algorithm::exchange);
  CHECK(choice(1024, 1ULL << 40U, 8) == Algorithm::direct);
  CHECK(choice(1024, std::numeric_limits<std::uint64_t>::max(), 8) == Algorithm::direct);
}

TEST(on_one_machine_automatic_becomes_a_ring_where_that_saves_processor_time) {
  const auto choice = [](std::uint16_t size, std::uint64_t count, std::uint32_t wide) {
    PlanRequest asked = request(Algorithm::automatic, size, count, 4, wide);
    asked.one_host = true;
    return pccl::choose_algorithm(asked);
  };
  CHECK(choice(4, 128 * 1024, 4) == Algorithm::ring);
  CHECK(choice(4, 128 * 1024 - 1, 4) == Algorithm::direct);
  CHECK(choice(2, 1 << 20, 4) == Algorithm::direct);   // two ranks: the same, with a step more
  CHECK(choice(4, 1 << 20, 8) == Algorithm::direct);   // partial sums would be twice the bytes
  CHECK(choice(4, 1 << 10, 4) == Algorithm::exchange);
}

TEST(what_is_added_in_rank_order_is_no_ring_so_that_other_machines_have_the_same_bits) {
  PlanRequest asked = request(Algorithm::automatic, 4, 1 << 20);
  asked.ordered = true;
  for (const bool one_host : {false, true}) {
    asked.one_host = one_host;
    const Plan plan = pccl::make_plan(asked);
    CHECK(plan.algorithm == Algorithm::direct && plan.ordered);
  }
}

TEST(an_algorithm_asked_for_is_the_one_used) {
  for (const Algorithm algorithm : algorithms) {
    CHECK(pccl::make_plan(request(algorithm, 7, 1 << 20)).algorithm == algorithm);
  }
}

TEST(all_ranks_choose_alike_without_asking) {
  const std::array<double, 5> shares{0.1, 0.2, 0.3, 0.7, 1.1};
  for (const Algorithm algorithm :
       {Algorithm::automatic, Algorithm::exchange, Algorithm::direct, Algorithm::ring}) {
    for (const std::uint64_t count : {10, 1000, 100003, 1 << 24}) {
      PlanRequest asked = request(algorithm, 5, count, 2, 4);
      asked.shares = shares;
      const Plan first = plan_of(asked, 0);
      for (std::uint16_t rank = 1; rank < 5; ++rank) {
        const Plan other = plan_of(asked, rank);
        CHECK(other.algorithm == first.algorithm);
        CHECK(other.slice_count == first.slice_count);
        CHECK(std::ranges::equal(other.shards, first.shards, same));
      }
    }
  }
}

}  // namespace
