// native/src/plan/validate.cpp — see validate.hpp.
// Ownership: plain values.
// Threads:   pure functions.
// Errors:    a text naming the rank, empty if there is nothing to say.
#include "validate.hpp"

#include <algorithm>
#include <numeric>

#include "belonging.hpp"

namespace pccl::plan {
namespace {

constexpr std::uint32_t nobody = 0xffffffff;

std::string on_rank(const Plan& plan, const std::string& what) {
  return "rank " + std::to_string(plan.rank) + ": " + what;
}

std::uint64_t total(const std::vector<std::uint64_t>& parts) {
  return std::accumulate(parts.begin(), parts.end(), std::uint64_t{0});
}

/// Shards lie in the spaces, cover the output once, and have the slices that slice_count makes.
std::string check_cut(const Plan& plan) {
  if (plan.finishes.size() != plan.shards.size()) return on_rank(plan, "finishes is not per shard");
  const std::uint64_t input = total(plan.input);
  std::vector<std::size_t> by_output;
  for (std::size_t index = 0; index < plan.shards.size(); ++index) {
    const Shard& shard = plan.shards[index];
    const std::string name = "shard " + std::to_string(index);
    if (shard.output != no_place) by_output.push_back(index);
    if (shard.input != no_place && (shard.input > input || shard.count > input - shard.input)) {
      return on_rank(plan, name + " is not in the input");
    }
    if (shard.count == 0 && shard.slices == 0) continue;
    const std::uint64_t whole = plan.slice_count == 0 ? 0 : shard.count / plan.slice_count;
    const bool rest = plan.slice_count != 0 && shard.count % plan.slice_count != 0;
    if (plan.slice_count == 0 || shard.slices != whole + (rest ? 1 : 0)) {
      return on_rank(plan, name + " has a wrong number of slices");
    }
  }
  std::ranges::stable_sort(by_output, {}, [&](std::size_t index) {
    return plan.shards[index].output;
  });
  const std::uint64_t output = total(plan.output);
  std::uint64_t covered = 0;
  for (const std::size_t index : by_output) {
    const Shard& shard = plan.shards[index];
    const std::string name = "shard " + std::to_string(index);
    if (shard.output != covered) return on_rank(plan, name + " does not start where the last ends");
    if (shard.count > output - covered) return on_rank(plan, name + " is too long");
    covered += shard.count;
  }
  if (covered != output) return on_rank(plan, "the shards do not cover the elements");
  return {};
}

std::string check_agreement(const Plan& plan, const Plan& reference) {
  if (plan.collective != reference.collective || plan.root != reference.root) {
    return on_rank(plan, "does something else than rank 0, or for another root");
  }
  if (plan.slice_count != reference.slice_count) {
    return on_rank(plan, "cuts the elements otherwise than rank 0");
  }
  if (plan.algorithm != reference.algorithm || plan.ordered != reference.ordered) {
    return on_rank(plan, "runs another algorithm or order than rank 0");
  }
  return {};
}

/// A transfer by itself: who, what and from where.
std::string check_transfer(const Plan& plan, const Transfer& transfer) {
  const bool sends = transfer.kind == TransferKind::send;
  const bool gathers = transfer.phase == Phase::gather;
  if (transfer.peer >= plan.size || transfer.peer == plan.rank) return "has no such peer";
  if (transfer.shard >= plan.shards.size()) return "has no such shard";
  if (sends == (transfer.source == Source::none)) return "has a wrong source";
  const Shard& shard = plan.shards[transfer.shard];
  const bool verbatim = transfer.source == Source::input && !reduces(plan.collective);
  if (sends && gathers != (transfer.source == Source::output || verbatim)) {
    return "reads a source of the other phase";
  }
  if (transfer.source == Source::input && shard.input == no_place) return "reads no input";
  if (transfer.kind == TransferKind::receive_copy && shard.output == no_place) {
    return "has no place to be copied to";
  }
  if (transfer.kind == TransferKind::receive_reduce && shard.input == no_place) {
    return "has nothing to be added to";
  }
  if (!sends && gathers != (transfer.kind == TransferKind::receive_copy)) {
    return "is of a kind of the other phase";
  }
  if (!gathers && !reduces(plan.collective)) return "reduces what is to be copied";
  if (gathers && transfer.element != Element::plain) return "gathers unfinished elements";
  if (transfer.source == Source::accumulator && transfer.element != Element::accumulator) {
    return "rounds a partial sum";
  }
  return {};
}

/// Whether running `receive` fills what `send`, of the same shard, reads.
bool fills(const Plan& plan, const Transfer& receive, const Transfer& send) {
  const bool from_sum = send.source == Source::accumulator ||
                        (send.source == Source::output && plan.finishes[send.shard] != 0);
  if (from_sum) return receive.kind == TransferKind::receive_reduce;
  return send.source == Source::output && receive.kind == TransferKind::receive_copy;
}

/// Contributions that a rank accumulates are finished there or sent on, and so are results.
std::string check_use(const Plan& plan) {
  std::vector<bool> used(plan.shards.size(), false);
  std::vector<bool> wanted(plan.shards.size(), false);
  for (std::size_t shard = 0; shard < used.size(); ++shard) {
    used[shard] = plan.finishes[shard] != 0;
    wanted[shard] = plan.shards[shard].output != no_place;
  }
  for (const Transfer& transfer : plan.transfers) {
    if (transfer.source == Source::accumulator) used[transfer.shard] = true;
    if (transfer.source == Source::output) wanted[transfer.shard] = true;
  }
  for (std::size_t shard = 0; shard < used.size(); ++shard) {
    const std::string name = "shard " + std::to_string(shard);
    if (plan.finishes[shard] == 0) continue;
    if (!wanted[shard]) return on_rank(plan, name + " is finished for nobody");
    if (plan.shards[shard].input == no_place) return on_rank(plan, name + " is made of nothing");
  }
  for (std::size_t index = 0; index < plan.transfers.size(); ++index) {
    const Transfer& transfer = plan.transfers[index];
    if (transfer.kind == TransferKind::receive_reduce && !used[transfer.shard]) {
      return describe(plan, index) + " is accumulated for nobody";
    }
  }
  return {};
}

/// Every transfer needs as many as name it, and a send is named by all that fill its source.
std::string check_needs(const Plan& plan) {
  const std::vector<Transfer>& transfers = plan.transfers;
  std::vector<std::uint32_t> named(transfers.size(), 0);
  std::vector<std::uint32_t> filled(transfers.size(), 0);
  std::vector<std::uint32_t> named_last(transfers.size(), nobody);
  std::vector<std::uint32_t> reduces(plan.shards.size(), 0);
  std::vector<std::uint32_t> copies(plan.shards.size(), 0);
  for (std::uint32_t index = 0; index < transfers.size(); ++index) {
    const Transfer& transfer = transfers[index];
    if (transfer.kind == TransferKind::receive_reduce) ++reduces[transfer.shard];
    if (transfer.kind == TransferKind::receive_copy) ++copies[transfer.shard];
    for (const std::uint16_t next : transfer.next) {
      if (next >= transfers.size() || transfers[next].shard != transfer.shard) {
        return describe(plan, index) + " names a transfer of another shard or none";
      }
      if (named_last[next] == index) return describe(plan, index) + " names a transfer twice";
      named_last[next] = index;
      ++named[next];
      if (fills(plan, transfer, transfers[next])) ++filled[next];
    }
  }
  for (std::size_t index = 0; index < transfers.size(); ++index) {
    const Transfer& transfer = transfers[index];
    if (named[index] != transfer.needs) {
      return describe(plan, index) + " needs " + std::to_string(transfer.needs) +
             " others but is named by " + std::to_string(named[index]);
    }
    if (transfer.kind != TransferKind::send || transfer.source == Source::input) continue;
    const bool from_sum =
        transfer.source == Source::accumulator || plan.finishes[transfer.shard] != 0;
    const std::uint32_t all = from_sum ? reduces[transfer.shard] : copies[transfer.shard];
    if (all == 0 || filled[index] != all) {
      return describe(plan, index) + " does not wait for all that it sends on";
    }
  }
  return {};
}

std::uint64_t key(std::uint32_t from, std::uint32_t to, const Plan& plan,
                  const Transfer& transfer) {
  const std::uint64_t phase = transfer.phase == Phase::gather ? 1 : 0;
  return std::uint64_t{from} << 48U | std::uint64_t{to} << 32U | phase << 16U |
         plan.shards[transfer.shard].name;
}

/// A transfer under the name that both its ends give it.
struct Keyed {
  std::uint64_t key = 0;
  std::uint32_t number = 0;
  std::uint16_t rank = 0;
  std::uint16_t index = 0;
};

}  // namespace

std::string describe(const Plan& plan, std::size_t index) {
  const Transfer& transfer = plan.transfers[index];
  const bool sends = transfer.kind == TransferKind::send;
  return on_rank(plan, (sends ? "send of shard " : "receive of shard ") +
                           std::to_string(transfer.shard) + (sends ? " to rank " : " from rank ") +
                           std::to_string(transfer.peer) +
                           (transfer.phase == Phase::gather ? " (gather)" : " (reduce)"));
}

std::string check_plans(std::span<const Plan> plans) {
  if (plans.empty()) return "there is no plan, not even of rank 0";
  for (std::size_t rank = 0; rank < plans.size(); ++rank) {
    const Plan& plan = plans[rank];
    if (plan.rank != rank || plan.size != plans.size()) {
      return "rank " + std::to_string(rank) + ": the plan is of another rank or size";
    }
    if (std::string error = check_cut(plan); !error.empty()) return error;
    if (std::string error = check_agreement(plan, plans[0]); !error.empty()) return error;
    if (plan.transfers.size() > 0xffff) return on_rank(plan, "more transfers than can be named");
    for (std::size_t index = 0; index < plan.transfers.size(); ++index) {
      const std::string error = check_transfer(plan, plan.transfers[index]);
      if (!error.empty()) return describe(plan, index) + " " + error;
    }
    if (std::string error = check_use(plan); !error.empty()) return error;
    if (std::string error = check_needs(plan); !error.empty()) return error;
  }
  return check_spaces(plans);
}

Pairing pair_transfers(std::span<const Plan> plans) {
  Pairing pairing;
  std::vector<Keyed> sends;
  std::vector<Keyed> receives;
  std::uint32_t number = 0;
  for (const Plan& plan : plans) {
    pairing.first.push_back(number);
    for (std::uint16_t index = 0; index < plan.transfers.size(); ++index, ++number) {
      const Transfer& transfer = plan.transfers[index];
      if (transfer.kind == TransferKind::send) {
        sends.push_back({key(plan.rank, transfer.peer, plan, transfer), number, plan.rank, index});
      } else {
        receives.push_back(
            {key(transfer.peer, plan.rank, plan, transfer), number, plan.rank, index});
      }
    }
  }
  pairing.first.push_back(number);
  pairing.partner.assign(number, nobody);
  std::ranges::sort(sends, {}, &Keyed::key);
  std::ranges::sort(receives, {}, &Keyed::key);
  for (const std::vector<Keyed>* side : {&sends, &receives}) {
    const auto twice = std::ranges::adjacent_find(*side, {}, &Keyed::key);
    if (twice == side->end()) continue;
    pairing.error = describe(plans[twice->rank], twice->index) + " appears twice";
    return pairing;
  }
  std::size_t next = 0;
  for (const Keyed& send : sends) {
    if (next < receives.size() && receives[next].key < send.key) break;  // a receive left over
    const Plan& plan = plans[send.rank];
    if (next == receives.size() || receives[next].key != send.key) {
      pairing.error = describe(plan, send.index) + " is not received there";
      return pairing;
    }
    const Keyed& receive = receives[next++];
    if (plans[receive.rank].transfers[receive.index].element !=
        plan.transfers[send.index].element) {
      pairing.error = describe(plan, send.index) + " is received there as the other element";
      return pairing;
    }
    const Plan& other = plans[receive.rank];
    const Shard& here = plan.shards[plan.transfers[send.index].shard];
    const Shard& there = other.shards[other.transfers[receive.index].shard];
    if (here.count != there.count) {
      pairing.error = describe(plan, send.index) + " is of another length there";
      return pairing;
    }
    pairing.partner[send.number] = receive.number;
    pairing.partner[receive.number] = send.number;
  }
  if (next < receives.size()) {
    const Keyed& receive = receives[next];
    pairing.error = describe(plans[receive.rank], receive.index) + " is not sent there";
  }
  return pairing;
}

}  // namespace pccl::plan
