// native/include/pccl/plan.hpp — who sends what to whom in a collective, as data.
//
// Theory: an operation on `count` elements is cut into shards; every shard is cut into slices of at
// most `slice_count` elements (the last may be shorter; an empty shard has no slices).  A plan
// holds one rank's transfers, each standing for all slices of one shard.  For a slice, a transfer
// may run once `needs` others of the same plan have run for the same slice index of the same shard;
// running it satisfies one need of each in `next`.  Receives of Phase::reduce are folded into the
// accumulator of the slice; those of Phase::gather are copied into the output.  When all
// receive_reduce of a shard have run for a slice and `finishes[shard]` is set, the rank lowers the
// accumulator into its output ("finishes" it), and only then do the sends run that need them.
//
//   exchange  one shard, everybody sends its input to everybody, all finish it; rank order.
//   direct    rank j owns shard j: contributions go to the owner, the finished shard to all.
//   ring      shard c starts at rank c+1, is folded on the way round and finished by rank c, then
//             travels round once more; partial sums travel as accumulators.
//
// Ownership: immutable once made; shared by the operations that run it.
// Threads:   pure functions; a Plan may be read from any thread.
// Errors:    make_plan: none for valid arguments (asserted); simulate returns what is wrong.
// Source:    ring: Patarasuk and Yuan 2009, doi:10.1016/j.jpdc.2008.09.002.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace pccl {

enum class Algorithm : std::uint8_t { automatic = 0, exchange = 1, direct = 2, ring = 3 };
enum class Phase : std::uint8_t { reduce = 0, gather = 1 };
enum class TransferKind : std::uint8_t { send, receive_reduce, receive_copy };
/// What travels: elements of the operation's dtype, or of its accumulator's.
enum class Element : std::uint8_t { plain, accumulator };
/// Where a send reads: the caller's input, the slice's accumulator, or the finished output.
enum class Source : std::uint8_t { none, input, accumulator, output };

struct Shard {
  std::uint64_t offset = 0;  // elements
  std::uint64_t count = 0;   // elements
  std::uint32_t slices = 0;  // ceil(count / slice_count)
};

struct Transfer {
  TransferKind kind = TransferKind::send;
  Phase phase = Phase::reduce;
  Element element = Element::plain;
  Source source = Source::none;     // none exactly for receives
  std::uint16_t peer = 0;           // rank in the plan
  std::uint16_t shard = 0;
  std::uint16_t needs = 0;          // transfers that must have run first, per slice
  std::vector<std::uint16_t> next;  // indices into Plan::transfers, all of the same shard
};

struct Plan {
  Algorithm algorithm = Algorithm::direct;
  std::uint16_t rank = 0;
  std::uint16_t size = 1;
  std::uint64_t count = 0;        // elements
  std::uint32_t slice_count = 0;  // elements per slice
  bool ordered = false;           // contributions are folded in rank order, one's own among them
  std::vector<Shard> shards;      // same on all ranks; contiguous, covering [0, count)
  std::vector<std::uint8_t> finishes;   // per shard: this rank lowers it
  std::vector<Transfer> transfers;      // sends in the order they should be queued
};

struct PlanRequest {
  Algorithm algorithm = Algorithm::automatic;
  std::uint16_t rank = 0;
  std::uint16_t size = 1;               // 1..1024
  std::uint64_t count = 0;              // elements
  std::uint32_t element_bytes = 4;      // of the operation's dtype
  std::uint32_t accumulator_bytes = 4;  // of its accumulator
  bool ordered = false;                 // deterministic=True
  bool one_host = false;                // all ranks are on one machine, as the view says
  std::span<const double> shares{};     // per rank, >= 0, any scale; empty: equal.  direct only
};

inline constexpr std::uint32_t slice_bytes_max = 256 * 1024;  // payload of one frame
inline constexpr std::uint32_t slice_bytes_min = 64 * 1024;   // below it, headers and wake-ups win

/// What `automatic` becomes: the same on all ranks, since it looks only at what they agree on.
Algorithm choose_algorithm(const PlanRequest& request) noexcept;
/// Elements per slice: a slice never exceeds slice_bytes_max, as dtype or as accumulator.
std::uint32_t choose_slice_count(const PlanRequest& request, Algorithm algorithm) noexcept;
/// Cost: O(size + shards * transfers).
Plan make_plan(const PlanRequest& request);
/// Elements in slice `slice` of `shard`.
inline std::uint64_t slice_elements(const Plan& plan, const Shard& shard, std::uint32_t slice) {
  const std::uint64_t first = std::uint64_t{slice} * plan.slice_count;
  const std::uint64_t rest = shard.count - first;
  return rest < plan.slice_count ? rest : plan.slice_count;
}

/// A link model: seconds per message and per byte, and per reduced byte.
struct CostModel {
  double latency_s = 30e-6;
  double seconds_per_byte = 0.2e-9;
  double seconds_per_reduced_byte = 0.04e-9;
};
struct Simulation {
  bool correct = false;
  std::string error;                 // what is wrong, naming rank, shard and slice
  double time_s = 0;                 // predicted
  std::uint64_t bytes_sent_max = 0;  // by the busiest rank
  std::uint64_t bytes_sent_total = 0;
  std::uint32_t accumulators_max = 0;  // slices accumulated and not yet finished or forwarded
};
/// Runs the plans of all ranks against each other, symbolically: every slice ends everywhere with
/// each contribution exactly once, every send meets its receive, nothing is left over, no cycle.
/// Cost: O(total transfers * slices).
Simulation simulate(std::span<const Plan> plans, std::uint32_t element_bytes,
                    std::uint32_t accumulator_bytes, const CostModel& cost = {});

}  // namespace pccl
