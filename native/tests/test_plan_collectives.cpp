// native/tests/test_plan_collectives.cpp — plans of all collectives but all-reduce: sound at every
// size, count and root, as cheap as they claim to be, and found out when they are broken.
// Ownership: plain values.
// Threads:   one.
// Errors:    counted by CHECK.
#include <algorithm>
#include <array>
#include <functional>

#include "check.hpp"
#include "pccl/plan.hpp"

namespace {

using namespace pccl;

struct Setting {
  Collective collective = Collective::broadcast;
  std::uint16_t size = 2;
  std::uint64_t count = 0;
  std::uint16_t root = 0;
  Algorithm algorithm = Algorithm::automatic;
  bool uneven = false;
  bool one_host = false;
  bool ordered = false;
  std::uint32_t bytes = 4;
};

/// So many elements go from `from` to `to`; some none, some more than a slice.
std::uint64_t between(std::uint64_t count, std::uint32_t from, std::uint32_t to) {
  return (from * 7 + to * 3) % 5 == 0 ? 0 : count * ((from + 2 * to) % 4) + from;
}

std::vector<Plan> plans_of(const Setting& set) {
  std::vector<Plan> plans;
  for (std::uint16_t rank = 0; rank < set.size; ++rank) {
    std::vector<std::uint64_t> sends, receives;
    const auto alike = [&](std::uint32_t part) { return between(set.count, part, 1); };
    for (std::uint32_t other = 0; other < set.size && set.uneven; ++other) {
      const bool all_to_all = set.collective == Collective::all_to_all;
      sends.push_back(all_to_all ? between(set.count, rank, other) : alike(other));
      receives.push_back(all_to_all ? between(set.count, other, rank) : alike(other));
    }
    if (set.uneven && set.collective == Collective::gather) sends = {alike(rank)};
    if (set.uneven && set.collective == Collective::scatter) receives = {alike(rank)};
    plans.push_back(make_plan({.algorithm = set.algorithm,
                               .rank = rank,
                               .size = set.size,
                               .count = set.count,
                               .element_bytes = set.bytes,
                               .accumulator_bytes = 4,
                               .ordered = set.ordered,
                               .one_host = set.one_host,
                               .shares = {},
                               .collective = set.collective,
                               .root = set.root,
                               .uneven = set.uneven,
                               .send_counts = sends,
                               .receive_counts = receives}));
  }
  return plans;
}

Simulation seen_of(const Setting& set) { return simulate(plans_of(set), set.bytes, 4); }

void check_sound(const Setting& set) {
  const Simulation seen = seen_of(set);
  CHECK(seen.correct);
  if (seen.correct) return;
  std::fprintf(stderr, "  collective %d, size %d, count %llu, root %d, algorithm %d%s: %s\n",
               static_cast<int>(set.collective), set.size,
               static_cast<unsigned long long>(set.count), set.root,
               static_cast<int>(set.algorithm), set.uneven ? ", uneven" : "", seen.error.c_str());
}

constexpr Collective all[] = {Collective::reduce_scatter, Collective::all_gather,
                              Collective::broadcast,      Collective::reduce,
                              Collective::gather,         Collective::scatter,
                              Collective::all_to_all,     Collective::barrier};

std::vector<Algorithm> algorithms_of(Collective kind) {
  switch (kind) {
    case Collective::all_gather: return {Algorithm::direct, Algorithm::ring};
    case Collective::broadcast: return {Algorithm::flat, Algorithm::tree, Algorithm::direct};
    case Collective::reduce: return {Algorithm::flat, Algorithm::direct};
    default: return {Algorithm::direct};
  }
}

/// Every setting worth a plan at this size and count.
void each(std::uint16_t size, std::uint64_t count, const std::function<void(Setting)>& body) {
  for (const Collective kind : all) {
    for (const Algorithm algorithm : algorithms_of(kind)) {
      for (std::uint16_t root = 0; root < (rooted(kind) ? size : 1); ++root) {
        body({.collective = kind, .size = size, .count = count, .root = root,
              .algorithm = algorithm});
        if (!may_be_uneven(kind)) continue;
        body({.collective = kind, .size = size, .count = count, .root = root,
              .algorithm = algorithm, .uneven = true});
      }
    }
  }
}

TEST(every_collective_is_sound_at_every_size_count_and_root) {
  for (std::uint16_t size = 1; size <= 17; ++size) {
    for (const std::uint64_t count : {0u, 1u, 7u, 1021u}) each(size, count, check_sound);
  }
}

TEST(every_collective_is_sound_with_many_slices) {
  for (const std::uint16_t size : std::array<std::uint16_t, 4>{2, 3, 5, 9}) {
    for (const std::uint64_t count : {70'001u, 300'007u}) each(size, count, check_sound);
  }
}

TEST(what_is_chosen_is_sound_for_all_element_sizes_and_orders) {
  for (const std::uint16_t size : std::array<std::uint16_t, 4>{2, 3, 9, 12}) {
    for (const std::uint64_t count : {5u, 40'000u, 600'011u}) {
      for (const Collective kind : all) {
        for (const std::uint32_t bytes : {1u, 2u, 16u}) {
          for (const bool flag : {false, true}) {
            check_sound({.collective = kind, .size = size, .count = count,
                         .root = static_cast<std::uint16_t>(size - 1), .one_host = flag,
                         .ordered = flag, .bytes = bytes});
          }
        }
      }
    }
  }
}

TEST(only_reducing_collectives_keep_an_order) {
  for (const Collective kind : all) {
    const Plan plan = plans_of({.collective = kind, .size = 4, .count = 100, .ordered = true})[0];
    CHECK(plan.ordered == reduces(kind));
  }
}

TEST(the_root_of_a_large_broadcast_sends_its_bytes_about_once) {
  const std::uint64_t bytes = 4 << 20;
  const Setting large{.collective = Collective::broadcast, .size = 8, .count = bytes / 4};
  const std::vector<Plan> plans = plans_of(large);
  CHECK(plans[0].algorithm == Algorithm::direct);
  const Simulation seen = simulate(plans, 4, 4);
  CHECK(seen.correct);
  CHECK(seen.bytes_sent_max < 2 * bytes);  // its own shard goes to all seven
  CHECK(seen.bytes_sent_total == 7 * bytes);
}

TEST(a_small_broadcast_is_flat_and_from_nine_ranks_on_a_tree) {
  const auto chosen = [](std::uint16_t size, std::uint64_t count) {
    return plans_of({.collective = Collective::broadcast, .size = size, .count = count})[0]
        .algorithm;
  };
  CHECK(chosen(8, 16 * 1024) == Algorithm::flat);
  CHECK(chosen(9, 16 * 1024) == Algorithm::tree);
  CHECK(chosen(9, 16 * 1024 + 1) == Algorithm::direct);
  CHECK(chosen(2, 1 << 24) == Algorithm::flat);
}

TEST(a_large_reduction_to_a_root_is_shared_by_all) {
  const std::uint64_t bytes = 4 << 20;
  const Simulation seen =
      seen_of({.collective = Collective::reduce, .size = 8, .count = bytes / 4, .root = 3});
  CHECK(seen.correct);
  CHECK(seen.bytes_sent_max <= bytes);
}

TEST(an_all_gather_rings_on_one_machine_where_that_pays) {
  const auto chosen = [](std::uint64_t count, bool one_host) {
    return plans_of({.collective = Collective::all_gather, .size = 4, .count = count,
                     .one_host = one_host})[0].algorithm;
  };
  CHECK(chosen(64 * 1024, true) == Algorithm::ring);
  CHECK(chosen(64 * 1024, false) == Algorithm::direct);
  CHECK(chosen(1024, true) == Algorithm::direct);
}

TEST(every_byte_of_gather_scatter_and_all_to_all_travels_once) {
  const std::uint64_t part = 4 * 1000;
  for (const Collective kind : {Collective::gather, Collective::scatter}) {
    CHECK(seen_of({.collective = kind, .size = 6, .count = 1000}).bytes_sent_total == 5 * part);
  }
  CHECK(seen_of({.collective = Collective::all_to_all, .size = 6, .count = 1000})
            .bytes_sent_total == 30 * part);
}

TEST(an_algorithm_that_a_collective_does_not_have_is_chosen_anew) {
  for (const Algorithm algorithm : {Algorithm::exchange, Algorithm::ring, Algorithm::flat,
                                    Algorithm::tree}) {
    for (const Collective kind : all) {
      for (const std::uint64_t count : {100u, 100'000u}) {
        check_sound({.collective = kind, .size = 5, .count = count, .algorithm = algorithm});
      }
    }
  }
}

TEST(a_barrier_moves_nothing) {
  for (const Plan& plan : plans_of({.collective = Collective::barrier, .size = 5})) {
    CHECK(plan.shards.empty() && plan.transfers.empty());
  }
}

// ---- broken plans

using Fault = std::function<bool(std::vector<Plan>&, std::uint16_t rank, std::uint16_t index)>;

/// Plants `fault` at every rank and every index below its transfers (or shards) in turn.
void check_found(const char* name, const Fault& fault, bool shards = false) {
  int planted = 0;
  each(4, 90'001, [&](const Setting& set) {
    const std::vector<Plan> sound = plans_of(set);
    for (std::uint16_t rank = 0; rank < set.size; ++rank) {
      const std::size_t end = shards ? sound[rank].shards.size() : sound[rank].transfers.size();
      for (std::uint16_t index = 0; index < end; ++index) {
        std::vector<Plan> plans = sound;
        if (!fault(plans, rank, index)) continue;
        ++planted;
        const Simulation seen = simulate(plans, 4, 4);
        CHECK(!seen.correct && seen.error.find("rank") != std::string::npos);
        if (!seen.correct) continue;
        std::fprintf(stderr, "  %s: not found in collective %d, rank %d, index %d%s\n", name,
                     static_cast<int>(set.collective), rank, index, set.uneven ? ", uneven" : "");
      }
    }
  });
  CHECK(planted > 0);
}

bool moves(const Plan& plan, std::uint16_t transfer) {
  return plan.shards[plan.transfers[transfer].shard].slices > 0;
}

TEST(a_transfer_that_is_missing_doubled_or_misdirected_is_found) {
  check_found("missing", [](std::vector<Plan>& plans, std::uint16_t rank, std::uint16_t index) {
    Plan& plan = plans[rank];
    for (const std::uint16_t next : plan.transfers[index].next) --plan.transfers[next].needs;
    plan.transfers.erase(plan.transfers.begin() + index);
    for (Transfer& transfer : plan.transfers) {
      std::erase(transfer.next, index);
      for (std::uint16_t& next : transfer.next) {
        if (next > index) --next;
      }
    }
    return true;
  });
  check_found("doubled", [](std::vector<Plan>& plans, std::uint16_t rank, std::uint16_t index) {
    plans[rank].transfers.push_back(plans[rank].transfers[index]);
    return true;
  });
  check_found("misdirected", [](std::vector<Plan>& plans, std::uint16_t rank, std::uint16_t index) {
    std::uint16_t& peer = plans[rank].transfers[index].peer;
    peer = static_cast<std::uint16_t>((peer + 1) % 4);
    return true;
  });
}

TEST(a_transfer_of_a_wrong_shard_source_phase_or_need_is_found) {
  check_found("shard", [](std::vector<Plan>& plans, std::uint16_t rank, std::uint16_t index) {
    Plan& plan = plans[rank];
    if (plan.shards.size() < 2) return false;
    std::uint16_t& shard = plan.transfers[index].shard;
    shard = static_cast<std::uint16_t>((shard + 1) % plan.shards.size());
    return moves(plan, index);
  });
  for (const Source source : {Source::none, Source::input, Source::accumulator, Source::output}) {
    check_found("source", [source](std::vector<Plan>& plans, std::uint16_t rank,
                                   std::uint16_t index) {
      const bool differs = plans[rank].transfers[index].source != source;
      plans[rank].transfers[index].source = source;
      return differs;
    });
  }
  check_found("phase", [](std::vector<Plan>& plans, std::uint16_t rank, std::uint16_t index) {
    Phase& phase = plans[rank].transfers[index].phase;
    phase = phase == Phase::reduce ? Phase::gather : Phase::reduce;
    return true;
  });
  check_found("needs", [](std::vector<Plan>& plans, std::uint16_t rank, std::uint16_t index) {
    return ++plans[rank].transfers[index].needs, true;
  });
}

TEST(a_shard_that_lies_or_ends_elsewhere_is_found) {
  check_found("input", [](std::vector<Plan>& plans, std::uint16_t rank, std::uint16_t index) {
    Shard& shard = plans[rank].shards[index];
    if (shard.input == no_place || shard.slices == 0) return false;
    shard.input = shard.input > 0 ? shard.input - 1 : 1;
    return true;
  }, true);
  check_found("output", [](std::vector<Plan>& plans, std::uint16_t rank, std::uint16_t index) {
    Shard& shard = plans[rank].shards[index];
    if (shard.output == no_place || shard.slices == 0) return false;
    return ++shard.output, true;
  }, true);
  check_found("count", [](std::vector<Plan>& plans, std::uint16_t rank, std::uint16_t index) {
    Shard& shard = plans[rank].shards[index];
    if (shard.slices == 0) return false;
    return --shard.count, true;
  }, true);
  check_found("finishes", [](std::vector<Plan>& plans, std::uint16_t rank, std::uint16_t index) {
    plans[rank].finishes[index] ^= 1U;
    return plans[rank].shards[index].slices > 0;
  }, true);
}

/// Two shards change places at all ranks: everything meets, but what arrives belongs elsewhere.
TEST(parts_that_all_ranks_mix_up_are_found) {
  for (const Collective kind : {Collective::all_gather, Collective::gather, Collective::scatter,
                                Collective::reduce_scatter, Collective::all_to_all}) {
    std::vector<Plan> plans = plans_of({.collective = kind, .size = 4, .count = 1000});
    for (Plan& plan : plans) {
      const bool root_only = kind == Collective::gather || kind == Collective::scatter;
      if (root_only && plan.rank != 0) continue;
      const bool by_output = output_in_parts(kind);
      const std::size_t first = kind == Collective::all_to_all ? 4 : 0;
      Shard& one = plan.shards[first + 1];
      Shard& two = plan.shards[first + 2];
      if (by_output && one.output != no_place && two.output != no_place) {
        std::swap(one.output, two.output);
      }
      if (!by_output) std::swap(one.input, two.input);
    }
    const Simulation seen = simulate(plans, 4, 4);
    CHECK(!seen.correct);
    CHECK(seen.error.find("elsewhere") != std::string::npos ||
          seen.error.find("elements of") != std::string::npos);
  }
}

TEST(sizes_on_which_two_ranks_differ_are_found) {
  each(4, 1000, [&](const Setting& set) {
    const std::vector<Plan> sound = plans_of(set);
    for (std::uint16_t rank = 0; rank < set.size; ++rank) {
      for (const bool input : {true, false}) {
        std::vector<Plan> plans = sound;
        auto& parts = input ? plans[rank].input : plans[rank].output;
        for (std::size_t part = 0; part < parts.size(); ++part) {
          ++parts[part];
          CHECK(!simulate(plans, 4, 4).correct);
          --parts[part];
        }
      }
    }
  });
}

}  // namespace
