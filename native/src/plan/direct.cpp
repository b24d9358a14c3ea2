// native/src/plan/direct.cpp — contributions go to the owner of the shard, the finished shard to
// all: two latencies, the bytes of a ring, and shards as unequal as the links.
//
// Theory: the owner's gather sends of a slice wait for every contribution to that slice, so each
// receive_reduce lists all of them.  Peers are visited in rotated order: in every round each rank
// sends to one other and receives from one other.
//
// Ownership: see build.hpp.
// Threads:   pure function.
// Errors:    none.
#include <numeric>

#include "build.hpp"

namespace pccl::plan {

void plan_direct(Plan& plan) {
  const std::uint16_t size = plan.size;
  const std::uint16_t rank = plan.rank;
  const auto others = static_cast<std::uint16_t>(size - 1);
  plan.transfers.reserve(4U * others);
  for (std::uint32_t distance = 1; distance < size; ++distance) {
    const std::uint16_t owner = after(rank, distance, size);
    plan.transfers.push_back({.kind = TransferKind::send,
                              .phase = Phase::reduce,
                              .element = Element::plain,
                              .source = Source::input,
                              .peer = owner,
                              .shard = owner,
                              .needs = 0,
                              .next = {}});
  }
  std::vector<std::uint16_t> gather_sends(others);
  std::iota(gather_sends.begin(), gather_sends.end(),
            static_cast<std::uint16_t>(next_index(plan) + others));
  for (std::uint32_t distance = 1; distance < size; ++distance) {
    plan.transfers.push_back({.kind = TransferKind::receive_reduce,
                              .phase = Phase::reduce,
                              .element = Element::plain,
                              .source = Source::none,
                              .peer = before(rank, distance, size),
                              .shard = rank,
                              .needs = 0,
                              .next = gather_sends});
  }
  for (std::uint32_t distance = 1; distance < size; ++distance) {
    plan.transfers.push_back({.kind = TransferKind::send,
                              .phase = Phase::gather,
                              .element = Element::plain,
                              .source = Source::output,
                              .peer = after(rank, distance, size),
                              .shard = rank,
                              .needs = others,
                              .next = {}});
  }
  for (std::uint32_t distance = 1; distance < size; ++distance) {
    const std::uint16_t owner = before(rank, distance, size);
    plan.transfers.push_back({.kind = TransferKind::receive_copy,
                              .phase = Phase::gather,
                              .element = Element::plain,
                              .source = Source::none,
                              .peer = owner,
                              .shard = owner,
                              .needs = 0,
                              .next = {}});
  }
}

}  // namespace pccl::plan
