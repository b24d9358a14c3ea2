// native/src/plan/select.cpp — which algorithm, how large a slice, where the shards lie.
//
// Theory: all three look only at what the ranks agree on (never at `rank`), so every rank comes to
// the same answer without asking.  Shares are doubles: their running sum is formed in rank order
// and only divided, multiplied and rounded, which IEEE 754 makes the same on every machine.
//
// Ownership: the plan belongs to the caller.
// Threads:   pure functions.
// Errors:    none for valid arguments (asserted).  Shares that are negative, not finite, all zero
//            or of the wrong number count as equal, on all ranks alike.
#include <algorithm>
#include <cassert>
#include <cmath>
#include <numeric>

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

// Shards and slices start on a cache line when the buffer does: no line has two writers.
constexpr std::uint32_t line_bytes = 64;

constexpr std::uint64_t slices_max = std::uint64_t{1} << 31;

std::uint64_t ceil_div(std::uint64_t value, std::uint64_t divisor) {
  return value / divisor + (value % divisor != 0 ? 1 : 0);
}

/// The fewest elements whose bytes are a multiple of a line.
std::uint32_t line_elements(std::uint32_t element_bytes) {
  return line_bytes / std::gcd(line_bytes, element_bytes);
}

/// Sum of the shares, or 0 if they do not say how to divide.
double usable_total(std::span<const double> shares, std::uint16_t size) {
  if (shares.size() != size) return 0;
  double total = 0;
  for (const double share : shares) {
    if (!(share >= 0)) return 0;
    total += share;
  }
  return std::isfinite(total) ? total : 0;
}

/// Cuts into `size` shards at multiples of a line; their lines differ from the shares by rounding.
std::vector<Shard> split(const PlanRequest& request, std::span<const double> shares) {
  const std::uint64_t unit = line_elements(request.element_bytes);
  const std::uint64_t units = ceil_div(request.count, unit);
  const double total = usable_total(shares, request.size);
  std::vector<Shard> shards(request.size);
  std::uint64_t begin = 0;
  double sum = 0;
  for (std::uint32_t rank = 0; rank < request.size; ++rank) {
    std::uint64_t end_unit = units * (rank + 1) / request.size;
    if (total > 0) {
      sum += shares[rank];
      const double exact = static_cast<double>(units) * (sum / total);
      end_unit = static_cast<std::uint64_t>(std::round(exact));
    }
    const std::uint64_t end = std::min(request.count, end_unit * unit);
    shards[rank] = {.offset = begin, .count = end - begin, .slices = 0};
    begin = end;
  }
  return shards;
}

}  // namespace

Algorithm choose_algorithm(const PlanRequest& request) noexcept {
  if (request.algorithm != Algorithm::automatic) return request.algorithm;
  if (request.size <= 1) return Algorithm::exchange;
  const std::uint64_t sends = request.size - 1U;
  const std::uint64_t limit = sends == 1 ? exchange_pair_bytes_max : exchange_sent_bytes_max;
  const bool small = request.count <= limit / (sends * request.element_bytes);
  if (small) return Algorithm::exchange;
  const bool ring = request.one_host && sends > 1 &&
                    request.element_bytes == request.accumulator_bytes &&
                    request.count >= one_host_ring_bytes_min / request.element_bytes;
  return ring ? Algorithm::ring : Algorithm::direct;
}

std::uint32_t choose_slice_count(const PlanRequest& request, Algorithm algorithm) noexcept {
  const std::uint32_t widest = std::max(request.element_bytes, request.accumulator_bytes);
  const std::uint64_t most = std::max(slice_bytes_max / widest, 1U);
  const bool whole = algorithm == Algorithm::exchange || request.size <= 1;
  const std::uint64_t shard_count = whole ? request.count : ceil_div(request.count, request.size);
  // A pipeline gains nothing when the whole operation is one message to each peer.
  const bool one_slice = algorithm == Algorithm::exchange && shard_count <= most;
  const std::uint64_t least =
      std::min<std::uint64_t>(slice_bytes_min / request.element_bytes, most);
  const std::uint64_t wanted =
      one_slice ? most : std::clamp(shard_count / slices_per_shard, least, most);
  const std::uint64_t line = line_elements(request.element_bytes);
  const std::uint64_t aligned = wanted / line * line;
  return static_cast<std::uint32_t>(std::max<std::uint64_t>(aligned, std::min(line, most)));
}

Plan make_plan(const PlanRequest& request) {
  assert(request.size >= 1 && request.size <= 1024 && request.rank < request.size);
  assert(request.element_bytes > 0 && request.element_bytes <= slice_bytes_max);
  assert(request.accumulator_bytes > 0 && request.accumulator_bytes <= slice_bytes_max);
  Plan made;
  made.algorithm = choose_algorithm(request);
  made.rank = request.rank;
  made.size = request.size;
  made.count = request.count;
  made.slice_count = choose_slice_count(request, made.algorithm);
  // Exchange: all ranks compute every element and must agree.  Ring: one receive per accumulator,
  // so the order is the ring's in every run, and there is nothing to put in order.
  made.ordered = made.algorithm == Algorithm::exchange ||
                 (made.algorithm == Algorithm::direct && request.ordered);
  if (request.size == 1 || made.algorithm == Algorithm::exchange) {
    made.shards = {{.offset = 0, .count = request.count, .slices = 0}};
    made.finishes = {1};
  } else {
    const bool follows_shares = made.algorithm == Algorithm::direct;
    made.shards = split(request, follows_shares ? request.shares : std::span<const double>{});
    made.finishes.assign(request.size, 0);
    made.finishes[request.rank] = 1;
  }
  [[maybe_unused]] std::uint64_t slices_total = 0;
  for (Shard& shard : made.shards) {
    const std::uint64_t slices = ceil_div(shard.count, made.slice_count);
    shard.slices = static_cast<std::uint32_t>(slices);
    slices_total += slices;
  }
  assert(slices_total <= slices_max);
  if (request.size == 1) return made;
  switch (made.algorithm) {
    case Algorithm::exchange: plan::plan_exchange(made); break;
    case Algorithm::ring: plan::plan_ring(made); break;
    case Algorithm::automatic:
    case Algorithm::direct: plan::plan_direct(made); break;
  }
  return made;
}

}  // namespace pccl
