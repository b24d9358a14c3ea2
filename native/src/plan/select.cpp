// native/src/plan/select.cpp — which algorithm, how large a slice.
//
// Theory: both look only at what the ranks agree on (never at `rank`, nor at unequal parts, of
// which a rank may know its own only), so every rank comes to the same answer without asking.
//
// Ownership: plain values.
// Threads:   pure functions.
// Errors:    none.
#include <algorithm>

#include "build.hpp"

namespace pccl {
namespace {

// Up to these sizes the latency saved by exchange outweighs what it adds.  For two ranks both send
// the same bytes, but exchange reduces all of them on both; for more, a rank sends size-1 whole
// inputs, so the limit is on what one rank sends.
constexpr std::uint64_t exchange_pair_bytes_max = 128 * 1024;
constexpr std::uint64_t exchange_sent_bytes_max = 64 * 1024;

// On one machine the links are its processors and caches: a ring keeps one stream per rank in
// flight instead of size-1, so slices are still cached when they are read (measured at 4 and 8
// ranks on two processors: 20 to 30 % less CPU time per byte from 1 MiB up).
constexpr std::uint64_t one_host_ring_bytes_min = 512 * 1024;

// So many slices per shard let reduction, gathering and the next contributions overlap; more only
// make more system calls (measured at 1 MiB).
constexpr std::uint64_t slices_per_shard = 2;

// Up to this size a root talks to everybody itself: one latency, and bytes that are soon sent.
constexpr std::uint64_t rooted_flat_bytes_max = 64 * 1024;
// From so many ranks on the root's sends, one after the other, cost more than the tree's levels.
constexpr std::uint16_t tree_size_min = 9;

Algorithm choose_all_reduce(const PlanRequest& request) noexcept {
  if (request.size <= 1) return Algorithm::exchange;
  const std::uint64_t sends = request.size - 1U;
  const std::uint64_t limit = sends == 1 ? exchange_pair_bytes_max : exchange_sent_bytes_max;
  const bool small = request.count <= limit / (sends * request.element_bytes);
  if (small) return Algorithm::exchange;
  // A ring adds each shard in an order of its own, the others in rank order: what is to be the same
  // in every run is then also the same on other machines.
  const bool ring = request.one_host && !request.ordered && sends > 1 &&
                    request.element_bytes == request.accumulator_bytes &&
                    request.count >= one_host_ring_bytes_min / request.element_bytes;
  return ring ? Algorithm::ring : Algorithm::direct;
}

/// Bytes of what every rank gets (all_gather: of one part).
Algorithm choose_other(const PlanRequest& request) noexcept {
  const bool small = request.count <= rooted_flat_bytes_max / request.element_bytes;
  const bool part_fills_ring =
      request.count >= one_host_ring_bytes_min / request.size / request.element_bytes;
  switch (request.collective) {
    case Collective::all_gather:
      return request.one_host && request.size > 2 && !request.uneven && part_fills_ring
                 ? Algorithm::ring
                 : Algorithm::direct;
    case Collective::broadcast:
      if (request.size > 2 && !small) return Algorithm::direct;
      return request.size >= tree_size_min ? Algorithm::tree : Algorithm::flat;
    case Collective::reduce:
      return request.size > 2 && !small ? Algorithm::direct : Algorithm::flat;
    default: return Algorithm::direct;
  }
}

/// Elements of the longest shard, as far as all ranks know it; no limit where they may not.
std::uint64_t longest_shard(const PlanRequest& request, Algorithm algorithm) noexcept {
  if (request.uneven) return ~std::uint64_t{0};
  const bool in_parts = may_be_uneven(request.collective);
  const bool whole = in_parts || algorithm == Algorithm::exchange ||
                     algorithm == Algorithm::flat || algorithm == Algorithm::tree ||
                     request.size <= 1;
  return whole ? request.count : plan::ceil_div(request.count, request.size);
}

/// A pipeline gains nothing where no transfer of a slice waits for another rank's.
bool pipelined(const PlanRequest& request, Algorithm algorithm) noexcept {
  switch (request.collective) {
    case Collective::all_reduce:
    case Collective::reduce_scatter: return true;
    case Collective::all_gather: return algorithm == Algorithm::ring;
    case Collective::broadcast:
    case Collective::reduce: return algorithm != Algorithm::flat;
    default: return false;
  }
}

/// There is such a plan.
bool exists(Collective collective, Algorithm algorithm) noexcept {
  switch (algorithm) {
    case Algorithm::automatic: return false;
    case Algorithm::exchange: return collective == Collective::all_reduce;
    case Algorithm::direct: return true;
    case Algorithm::ring:
      return collective == Collective::all_reduce || collective == Collective::all_gather;
    case Algorithm::flat:
      return collective == Collective::broadcast || collective == Collective::reduce;
    case Algorithm::tree: return collective == Collective::broadcast;
  }
  return false;
}

}  // namespace

Algorithm choose_algorithm(const PlanRequest& request) noexcept {
  // Where everybody computes everything, each would have another part of it unquantised; and
  // partial sums that travel would be rounded again at every rank.
  if (request.codec) return Algorithm::direct;
  if (exists(request.collective, request.algorithm)) return request.algorithm;
  return request.collective == Collective::all_reduce ? choose_all_reduce(request)
                                                      : choose_other(request);
}

std::uint32_t choose_slice_count(const PlanRequest& request, Algorithm algorithm) noexcept {
  const std::uint32_t widest = std::max(request.element_bytes, request.accumulator_bytes);
  std::uint64_t most = std::max(slice_bytes_max / widest, 1U);
  if (request.codec) {
    const std::uint64_t block = request.codec.block();
    most = std::min(most, coded_slice_bytes_max / coded_bytes(request.codec, block) * block);
  }
  const std::uint64_t shard_count = longest_shard(request, algorithm);
  // A pipeline gains nothing when the whole operation is one message to each peer.
  const bool one_slice = !pipelined(request, algorithm) ||
                         (algorithm == Algorithm::exchange && shard_count <= most);
  const std::uint64_t least =
      std::min<std::uint64_t>(slice_bytes_min / request.element_bytes, most);
  const std::uint64_t wanted =
      one_slice ? most : std::clamp(shard_count / slices_per_shard, least, most);
  const std::uint64_t unit = plan::unit_elements(request);
  const std::uint64_t aligned = wanted / unit * unit;
  return static_cast<std::uint32_t>(std::max<std::uint64_t>(aligned, std::min(unit, most)));
}

}  // namespace pccl
