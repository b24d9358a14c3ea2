// native/src/plan/ring.cpp — every shard travels twice round the ring, to the next rank only.
//
// Theory: shard c starts at rank c+1 as a lifted input, is folded by c+2, c+3, ... and finished by
// rank c; then it travels c, c+1, ... to c-1 as output.  Partial sums stay accumulators on the way,
// so that the dtype rounds once.  A shard thus meets a rank at a fixed distance from its owner, and
// a rank meets the shards in falling order: its transfers are written in that order.
//
// Ownership: see build.hpp.
// Threads:   pure function.
// Errors:    none.
// Source:    Patarasuk and Yuan 2009, doi:10.1016/j.jpdc.2008.09.002.
#include "build.hpp"

namespace pccl::plan {
namespace {

void append_send(Plan& plan, Phase phase, Source source, std::uint16_t shard) {
  plan.transfers.push_back(
      {.kind = TransferKind::send,
       .phase = phase,
       .element = phase == Phase::reduce ? Element::accumulator : Element::plain,
       .source = source,
       .peer = after(plan.rank, 1, plan.size),
       .shard = shard,
       .needs = static_cast<std::uint16_t>(source == Source::input ? 0 : 1),
       .next = {}});
}

/// `feeds_next`: the transfer appended after this one sends on what this one has received.
void append_receive(Plan& plan, Phase phase, std::uint16_t shard, bool feeds_next) {
  const bool reduces = phase == Phase::reduce;
  plan.transfers.push_back(
      {.kind = reduces ? TransferKind::receive_reduce : TransferKind::receive_copy,
       .phase = phase,
       .element = reduces ? Element::accumulator : Element::plain,
       .source = Source::none,
       .peer = before(plan.rank, 1, plan.size),
       .shard = shard,
       .needs = 0,
       .next = {}});
  if (feeds_next) plan.transfers.back().next.push_back(next_index(plan));
}

}  // namespace

void plan_ring(Plan& plan) {
  const std::uint16_t size = plan.size;
  plan.transfers.reserve(4U * (size - 1U));
  append_send(plan, Phase::reduce, Source::input, before(plan.rank, 1, size));
  for (std::uint32_t distance = 2; distance < size; ++distance) {
    const std::uint16_t shard = before(plan.rank, distance, size);
    append_receive(plan, Phase::reduce, shard, true);
    append_send(plan, Phase::reduce, Source::accumulator, shard);
  }
  append_receive(plan, Phase::reduce, plan.rank, true);
  append_send(plan, Phase::gather, Source::output, plan.rank);
  for (std::uint32_t distance = 1; distance < size; ++distance) {
    const std::uint16_t shard = before(plan.rank, distance, size);
    const bool goes_on = distance + 1 < size;
    append_receive(plan, Phase::gather, shard, goes_on);
    if (goes_on) append_send(plan, Phase::gather, Source::output, shard);
  }
}

}  // namespace pccl::plan
