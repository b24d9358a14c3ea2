// native/tests/test_plan_faults.cpp — the simulator finds every fault planted in a sound plan, and
// says on which rank.
// Ownership: plain values.
// Threads:   one.
// Errors:    counted by CHECK.
#include <algorithm>
#include <cctype>
#include <functional>
#include <string>

#include "check.hpp"
#include "plan_setting.hpp"

namespace {

using pccl::Algorithm;
using pccl::Element;
using pccl::Phase;
using pccl::Plan;
using pccl::Simulation;
using pccl::Source;
using pccl::Transfer;
using pccl::TransferKind;
using plan_setting::algorithms;
using plan_setting::plans_of;
using plan_setting::Setting;

bool names(const std::string& error, std::uint16_t rank) {
  const std::string wanted = "rank " + std::to_string(rank);
  for (std::size_t at = error.find(wanted); at != std::string::npos;
       at = error.find(wanted, at + 1)) {
    const std::size_t end = at + wanted.size();
    if (end == error.size() || std::isdigit(static_cast<unsigned char>(error[end])) == 0) {
      return true;
    }
  }
  return false;
}

constexpr std::uint16_t faulty_size = 5;
/// Every shard has several slices.
const Setting& faulty(Algorithm algorithm) {
  static const Setting exchange{Algorithm::exchange, faulty_size, 200000, 4, 4};
  static const Setting direct{Algorithm::direct, faulty_size, 200000, 4, 4};
  static const Setting ring{Algorithm::ring, faulty_size, 200000, 4, 4};
  if (algorithm == Algorithm::exchange) return exchange;
  return algorithm == Algorithm::direct ? direct : ring;
}

/// Plants `fault` at every transfer of every rank in turn; `fault` returns false if it cannot.
void check_found(const std::function<bool(Plan&, std::uint16_t)>& fault) {
  int planted = 0;
  for (const Algorithm algorithm : algorithms) {
    const std::vector<Plan> sound = plans_of(faulty(algorithm));
    for (std::uint16_t rank = 0; rank < faulty_size; ++rank) {
      for (std::uint16_t index = 0; index < sound[rank].transfers.size(); ++index) {
        std::vector<Plan> plans = sound;
        if (!fault(plans[rank], index)) continue;
        ++planted;
        const Simulation seen = pccl::simulate(plans, 4, 4);
        if (!names(seen.error, rank)) std::fprintf(stderr, "said: %s\n", seen.error.c_str());
        CHECK(!seen.correct);
        CHECK(names(seen.error, rank));
      }
    }
  }
  CHECK(planted > 0);
}

/// Takes a transfer out and mends the indices of the others, as a planner that forgot it would.
void forget(Plan& plan, std::uint16_t index, bool mend_needs) {
  for (const std::uint16_t next : plan.transfers[index].next) {
    if (mend_needs) --plan.transfers[next].needs;
  }
  plan.transfers.erase(plan.transfers.begin() + index);
  for (Transfer& transfer : plan.transfers) {
    std::erase(transfer.next, index);
    for (std::uint16_t& next : transfer.next) {
      if (next > index) --next;
    }
  }
}

TEST(a_forgotten_transfer_is_found) {
  check_found([](Plan& plan, std::uint16_t index) { return forget(plan, index, false), true; });
  check_found([](Plan& plan, std::uint16_t index) { return forget(plan, index, true), true; });
}

/// Takes out the receive of `shard` at `rank` from `peer`, and its send.
void forget_both(std::vector<Plan>& plans, TransferKind kind, std::uint16_t rank,
                 std::uint16_t peer, std::uint16_t shard) {
  const auto forget_one = [&](Plan& plan, TransferKind wanted, Phase phase, std::uint16_t other) {
    for (std::uint16_t index = 0; index < plan.transfers.size(); ++index) {
      const Transfer& one = plan.transfers[index];
      const bool is_it = one.kind == wanted && one.phase == phase && one.peer == other;
      if (is_it && one.shard == shard) return forget(plan, index, true);
    }
  };
  const Phase phase = kind == TransferKind::receive_copy ? Phase::gather : Phase::reduce;
  forget_one(plans[rank], kind, phase, peer);
  forget_one(plans[peer], TransferKind::send, phase, rank);
}

TEST(a_transfer_forgotten_by_both_its_ends_is_found) {
  std::vector<Plan> plans = plans_of(faulty(Algorithm::direct));
  forget_both(plans, TransferKind::receive_reduce, 1, 3, 1);
  Simulation seen = pccl::simulate(plans, 4, 4);
  CHECK(!seen.correct);
  CHECK(seen.error == "rank 1: shard 1, slice 0 is finished without the contribution of rank 3");
  plans = plans_of(faulty(Algorithm::direct));
  forget_both(plans, TransferKind::receive_copy, 4, 2, 2);
  seen = pccl::simulate(plans, 4, 4);
  CHECK(!seen.correct);
  CHECK(seen.error == "rank 4: shard 2, slice 0 is never written");
}

TEST(a_transfer_done_twice_is_found) {
  check_found([](Plan& plan, std::uint16_t index) {
    const auto copy = static_cast<std::uint16_t>(plan.transfers.size());
    plan.transfers.push_back(plan.transfers[index]);
    for (const std::uint16_t next : plan.transfers[index].next) ++plan.transfers[next].needs;
    for (Transfer& transfer : plan.transfers) {
      if (std::ranges::find(transfer.next, index) != transfer.next.end()) {
        transfer.next.push_back(copy);
      }
    }
    return true;
  });
}

TEST(a_wrong_peer_is_found) {
  for (std::uint16_t turn = 1; turn < faulty_size; ++turn) {
    check_found([turn](Plan& plan, std::uint16_t index) {
      std::uint16_t& peer = plan.transfers[index].peer;
      peer = static_cast<std::uint16_t>((peer + turn) % faulty_size);
      return true;  // one of them is the rank itself
    });
  }
  check_found([](Plan& plan, std::uint16_t index) {
    plan.transfers[index].peer = faulty_size;
    return true;
  });
}

TEST(a_wrong_shard_is_found) {
  check_found([](Plan& plan, std::uint16_t index) {
    std::uint16_t& shard = plan.transfers[index].shard;
    shard = static_cast<std::uint16_t>((shard + 1) % faulty_size);  // none such in exchange
    return true;
  });
}

TEST(wrong_needs_are_found) {
  check_found([](Plan& plan, std::uint16_t index) { return ++plan.transfers[index].needs, true; });
  check_found([](Plan& plan, std::uint16_t index) {
    if (plan.transfers[index].needs == 0) return false;
    return --plan.transfers[index].needs, true;
  });
}

TEST(a_send_that_does_not_wait_for_all_it_sends_on_is_found) {
  check_found([](Plan& plan, std::uint16_t index) {
    Transfer& transfer = plan.transfers[index];
    if (transfer.next.empty()) return false;
    --plan.transfers[transfer.next.back()].needs;
    transfer.next.pop_back();
    return true;
  });
}

TEST(a_wrong_element_source_or_kind_is_found) {
  check_found([](Plan& plan, std::uint16_t index) {
    Element& element = plan.transfers[index].element;
    element = element == Element::plain ? Element::accumulator : Element::plain;
    return true;
  });
  for (const Source source : {Source::none, Source::input, Source::accumulator, Source::output}) {
    check_found([source](Plan& plan, std::uint16_t index) {
      const bool differs = plan.transfers[index].source != source;
      plan.transfers[index].source = source;
      return differs;
    });
  }
  check_found([](Plan& plan, std::uint16_t index) {
    TransferKind& kind = plan.transfers[index].kind;
    if (kind == TransferKind::send) return false;
    const bool reduces = kind == TransferKind::receive_reduce;
    kind = reduces ? TransferKind::receive_copy : TransferKind::receive_reduce;
    return true;
  });
}

TEST(a_transfer_that_waits_for_itself_is_found) {
  check_found([](Plan& plan, std::uint16_t index) {
    plan.transfers[index].next.push_back(index);
    ++plan.transfers[index].needs;
    return true;
  });
}

/// Makes `later` wait for `earlier`, and says so in both: the plan is consistent by itself.
void wait_for(Plan& plan, std::uint16_t later, std::uint16_t earlier) {
  ++plan.transfers[later].needs;
  plan.transfers[earlier].next.push_back(later);
}

TEST(a_circle_through_several_ranks_is_found) {
  // The contribution to a shard waits for the finished shard, which waits for the contribution.
  check_found([](Plan& plan, std::uint16_t index) {
    if (plan.transfers[index].source != Source::input) return false;
    for (std::uint16_t other = 0; other < plan.transfers.size(); ++other) {
      const bool copies = plan.transfers[other].kind == TransferKind::receive_copy;
      if (!copies || plan.transfers[other].shard != plan.transfers[index].shard) continue;
      return wait_for(plan, index, other), true;
    }
    return false;
  });
}

TEST(a_circle_is_told_from_end_to_end) {
  std::vector<Plan> plans = plans_of({Algorithm::direct, 2, 1000, 4, 4});
  wait_for(plans[0], 0, 3);  // its contribution to shard 1 waits for shard 1
  CHECK(pccl::simulate(plans, 4, 4).error ==
        "a circle in slice 0: rank 0: send of shard 1 to rank 1 (reduce) waits for"
        ": rank 0: receive of shard 1 from rank 1 (gather) waits for"
        ": rank 1: send of shard 1 to rank 0 (gather) waits for"
        ": rank 1: receive of shard 1 from rank 0 (reduce) waits for the first");
}

TEST(sending_an_input_that_the_result_has_overwritten_is_found) {
  std::vector<Plan> plans = plans_of(faulty(Algorithm::exchange));
  Plan& plan = plans[3];
  for (std::uint16_t index = 0; index < plan.transfers.size(); ++index) {
    if (plan.transfers[index].kind == TransferKind::receive_reduce) wait_for(plan, 0, index);
  }
  const Simulation seen = pccl::simulate(plans, 4, 4);
  CHECK(!seen.correct);
  CHECK(seen.error.find("rank 3: send of shard 0 to rank 4 (reduce), slice 0: the input") == 0);
}

TEST(finishing_too_early_or_never_is_found) {
  for (const Algorithm algorithm : algorithms) {
    for (std::uint16_t rank = 0; rank < faulty_size; ++rank) {
      std::vector<Plan> plans = plans_of(faulty(algorithm));
      for (std::size_t shard = 0; shard < plans[rank].finishes.size(); ++shard) {
        const std::vector<Plan> sound = plans;
        plans[rank].finishes[shard] ^= 1U;
        const Simulation seen = pccl::simulate(plans, 4, 4);
        CHECK(!seen.correct);
        CHECK(names(seen.error, rank));
        plans = sound;
      }
    }
  }
}

TEST(a_contribution_counted_twice_is_found) {
  // Two ranks of a ring of three also exchange their inputs of shard 0 directly: each send meets
  // its receive, nothing is left over, but rank 0 gets the input of rank 1 a second time.
  std::vector<Plan> plans = plans_of({Algorithm::ring, 3, 3000, 4, 4});
  plans[1].transfers.push_back({.kind = TransferKind::send,
                                .phase = Phase::reduce,
                                .element = Element::accumulator,
                                .source = Source::input,
                                .peer = 0,
                                .shard = 0,
                                .needs = 0,
                                .next = {}});
  for (std::uint16_t index = 0; index < plans[0].transfers.size(); ++index) {
    Transfer& transfer = plans[0].transfers[index];
    if (transfer.source != Source::output || transfer.shard != 0) continue;
    const auto added = static_cast<std::uint16_t>(plans[0].transfers.size());
    plans[0].transfers.push_back({.kind = TransferKind::receive_reduce,
                                  .phase = Phase::reduce,
                                  .element = Element::accumulator,
                                  .source = Source::none,
                                  .peer = 1,
                                  .shard = 0,
                                  .needs = 0,
                                  .next = {}});
    wait_for(plans[0], index, added);
    break;
  }
  const Simulation seen = pccl::simulate(plans, 4, 4);
  CHECK(!seen.correct);
  CHECK(seen.error.find("rank 0: receive of shard 0") == 0);
  CHECK(seen.error.find("a contribution comes twice") != std::string::npos);
}

TEST(a_result_that_overwrites_a_result_is_found) {
  // Rank 1 finishes the shard of an exchange itself, and rank 0 sends it the same result again.
  std::vector<Plan> plans = plans_of({Algorithm::exchange, 2, 1000, 4, 4});
  plans[0].transfers.push_back({.kind = TransferKind::send,
                                .phase = Phase::gather,
                                .element = Element::plain,
                                .source = Source::output,
                                .peer = 1,
                                .shard = 0,
                                .needs = 0,
                                .next = {}});
  wait_for(plans[0], 2, 1);
  plans[1].transfers.push_back({.kind = TransferKind::receive_copy,
                                .phase = Phase::gather,
                                .element = Element::plain,
                                .source = Source::none,
                                .peer = 0,
                                .shard = 0,
                                .needs = 0,
                                .next = {}});
  const Simulation seen = pccl::simulate(plans, 4, 4);
  CHECK(!seen.correct);
  CHECK(seen.error ==
        "rank 1: receive of shard 0 from rank 0 (gather), slice 0: the output is written twice");
}

TEST(a_receive_that_waits_for_a_send_of_its_rank_is_no_fault) {
  std::vector<Plan> plans = plans_of({Algorithm::direct, 2, 100000, 4, 4});
  const double free_s = pccl::simulate(plans, 4, 4).time_s;
  wait_for(plans[0], 1, 2);  // rank 0 folds into shard 0 ...
  CHECK(!pccl::simulate(plans, 4, 4).correct);  // ... after it has sent the result: a circle
  plans = plans_of({Algorithm::direct, 2, 100000, 4, 4});
  wait_for(plans[0], 3, 0);  // rank 0 takes shard 1 after its contribution to it has left
  const Simulation seen = pccl::simulate(plans, 4, 4);
  CHECK(seen.correct);
  CHECK(seen.time_s >= free_s);
}

TEST(plans_that_cut_the_elements_differently_are_found) {
  const std::vector<Plan> sound = plans_of(faulty(Algorithm::direct));
  const auto check_wrong = [&sound](const std::function<void(Plan&)>& change) {
    std::vector<Plan> plans = sound;
    change(plans[2]);
    const Simulation seen = pccl::simulate(plans, 4, 4);
    CHECK(!seen.correct);
    CHECK(names(seen.error, 2));
  };
  check_wrong([](Plan& plan) { plan.slice_count /= 2; });
  check_wrong([](Plan& plan) { plan.slice_count = 0; });
  check_wrong([](Plan& plan) { plan.input[0] += 1; });
  check_wrong([](Plan& plan) { plan.output[0] += 1; });
  check_wrong([](Plan& plan) { plan.input.clear(); });
  check_wrong([](Plan& plan) { plan.shards[1].count -= 1; });
  check_wrong([](Plan& plan) { plan.shards[1].input += 1; });
  check_wrong([](Plan& plan) { plan.shards[1].output += 1; });
  check_wrong([](Plan& plan) { plan.root = 1; });
  check_wrong([](Plan& plan) { plan.collective = pccl::Collective::all_gather; });
  check_wrong([](Plan& plan) { plan.shards.pop_back(); });
  check_wrong([](Plan& plan) { plan.shards[0].slices += 1; });
  check_wrong([](Plan& plan) { plan.ordered = !plan.ordered; });
  check_wrong([](Plan& plan) { plan.rank = 1; });
  check_wrong([](Plan& plan) { plan.size = 4; });
  check_wrong([](Plan& plan) { plan.finishes.clear(); });
  check_wrong([](Plan& plan) {
    plan.shards[0].count += 16;
    plan.shards[1].input += 16;
    plan.shards[1].output += 16;
    plan.shards[1].count -= 16;
  });
}

TEST(a_missing_plan_is_found) {
  std::vector<Plan> plans = plans_of(faulty(Algorithm::direct));
  plans.pop_back();
  CHECK(!pccl::simulate(plans, 4, 4).correct);
  CHECK(!pccl::simulate({}, 4, 4).correct);
}

TEST(a_plan_too_large_to_simulate_is_refused_instead_of_eating_the_memory) {
  const Simulation seen =
      pccl::simulate(plans_of({Algorithm::direct, 8, 1ULL << 40U, 8, 8}), 8, 8);
  CHECK(!seen.correct);
  CHECK(seen.error.find("too many slices") != std::string::npos);
}

}  // namespace
