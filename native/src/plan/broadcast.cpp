// native/src/plan/broadcast.cpp — what the root has goes to all.
//
// Theory: flat, the root sends everything to everybody: one latency, size-1 times the bytes.  Tree:
// with ranks counted from the root, rank v > 0 hears from v without its highest bit, and passes on
// to all v + 2^k < size with 2^k > v: log2(size) latencies, as many sends at the root.  Direct:
// shard j goes to rank j, which passes it on to all others but the root: two latencies, and every
// byte leaves the root once (but for its own shard, which it must send to all itself).
//
// Ownership: see build.hpp.
// Threads:   pure function.
// Errors:    none.
// Source:    Chan, Heimlich, Purkayastha and van de Geijn 2007, doi:10.1002/cpe.1206.
#include <bit>

#include "build.hpp"

namespace pccl::plan {
namespace {

/// Appends the receive of `shard` and the sends that pass it on to `others`.
void pass_on(Plan& plan, std::uint16_t from, std::uint16_t shard,
             const std::vector<std::uint16_t>& others) {
  receive(plan, from, shard, Phase::gather);
  std::vector<std::uint16_t>& next = plan.transfers.back().next;
  for (std::size_t i = 0; i < others.size(); ++i) {
    next.push_back(static_cast<std::uint16_t>(next_index(plan) + i));
  }
  for (const std::uint16_t other : others) send_output(plan, other, shard, 1);
}

void flat(Plan& plan) {
  if (plan.rank != plan.root) return receive(plan, plan.root, 0, Phase::gather);
  for (std::uint32_t distance = 1; distance < plan.size; ++distance) {
    send_input(plan, after(plan.root, distance, plan.size), 0, Phase::gather);
  }
}

void tree(Plan& plan) {
  const std::uint32_t place = (plan.rank + plan.size - plan.root) % plan.size;
  std::vector<std::uint16_t> below;
  for (std::uint32_t bit = std::bit_ceil(place + 1); place + bit < plan.size; bit *= 2) {
    below.push_back(after(plan.root, place + bit, plan.size));
  }
  if (place != 0) {
    const std::uint32_t above = place - std::bit_floor(place);
    return pass_on(plan, after(plan.root, above, plan.size), 0, below);
  }
  for (const std::uint16_t other : below) send_input(plan, other, 0, Phase::gather);
}

void direct(Plan& plan) {
  const std::uint16_t size = plan.size;
  if (plan.rank == plan.root) {
    for (std::uint32_t distance = 1; distance < size; ++distance) {
      const std::uint16_t owner = after(plan.root, distance, size);
      send_input(plan, owner, owner, Phase::gather);
    }
    for (std::uint32_t distance = 1; distance < size; ++distance) {
      send_input(plan, after(plan.root, distance, size), plan.root, Phase::gather);
    }
    return;
  }
  std::vector<std::uint16_t> others;
  for (std::uint32_t distance = 1; distance < size; ++distance) {
    const std::uint16_t other = after(plan.rank, distance, size);
    if (other != plan.root) others.push_back(other);
  }
  pass_on(plan, plan.root, plan.rank, others);
  for (const std::uint16_t other : others) receive(plan, other, other, Phase::gather);
  receive(plan, plan.root, plan.root, Phase::gather);
}

}  // namespace

void plan_broadcast(Plan& plan) {
  switch (plan.algorithm) {
    case Algorithm::direct: return direct(plan);
    case Algorithm::tree: return tree(plan);
    default: return flat(plan);
  }
}

}  // namespace pccl::plan
