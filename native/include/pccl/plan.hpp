// native/include/pccl/plan.hpp — who sends what to whom in a collective, as data.
//
// Theory: an operation has an input space and an output space, each in one part or in one part per
// rank; a rank may lack either.  What moves together is a shard: it has a place in the input,
// in the output, in both or in none of a rank's spaces, and is cut into slices of at most
// `slice_count` elements (the last may be shorter; an empty shard has no slices).  A plan holds one
// rank's transfers, each standing for all slices of one shard.  For a slice, a transfer may run
// once `needs` others of the same plan have run for the same slice index of the same shard; running
// it satisfies one need of each in `next`.  Receives of Phase::reduce are folded into the slice's
// accumulator; those of Phase::gather are copied into the output.  When all receive_reduce of a
// shard have run for a slice and `finishes[shard]` is set, the rank lowers the accumulator into its
// output ("finishes" it), and only then do the sends run that need them; without a place in the
// output the result stays where it was accumulated.  A shard that is finished without any
// receive_reduce is the rank's own input, copied where its two places differ.
//
// All-reduce:
//   exchange  one shard, everybody sends its input to everybody, all finish it; rank order.
//   direct    rank j owns shard j: contributions go to the owner, the finished shard to all.
//   ring      shard c starts at rank c+1, is folded on the way round and finished by rank c, then
//             travels round once more; partial sums travel as accumulators.
//
// The others:
//   reduce_scatter  direct, without the second half.
//   all_gather      direct, without the first half; a ring on one machine.
//   broadcast       flat: the root sends all to all.  tree: binomial.  direct: the root sends
//                   shard j to rank j, which sends it to all: every byte leaves the root once.
//   reduce          flat: all send to the root.  direct: as reduce_scatter, then to the root.
//   gather, scatter, all_to_all   direct: one shard for each pair.
//
// Ownership: immutable once made; shared by the operations that run it.
// Threads:   pure functions; a Plan may be read from any thread.
// Errors:    make_plan: none for valid arguments (asserted); simulate returns what is wrong.
// Source:    ring: Patarasuk and Yuan 2009, doi:10.1016/j.jpdc.2008.09.002; the others: Chan,
//            Heimlich, Purkayastha and van de Geijn 2007, doi:10.1002/cpe.1206.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "pccl/codec.hpp"
#include "pccl/collective.hpp"

namespace pccl {

enum class Algorithm : std::uint8_t {
  automatic = 0, exchange = 1, direct = 2, ring = 3, flat = 4, tree = 5,
};
inline constexpr std::uint8_t algorithm_count = 6;
enum class Phase : std::uint8_t { reduce = 0, gather = 1 };
enum class TransferKind : std::uint8_t { send, receive_reduce, receive_copy };
/// What travels: elements of the operation's dtype, or of its accumulator's.
enum class Element : std::uint8_t { plain, accumulator };
/// Where a send reads: the caller's input, the slice's accumulator, or the finished output.
enum class Source : std::uint8_t { none, input, accumulator, output };

inline constexpr std::uint64_t no_place = ~std::uint64_t{0};

struct Shard {
  std::uint64_t input = no_place;   // where it begins in this rank's input, elements
  std::uint64_t output = no_place;  // and in its output
  std::uint64_t count = 0;          // elements
  std::uint32_t slices = 0;         // ceil(count / slice_count)
  std::uint16_t name = 0;           // what both ends of a transfer call it
};

struct Transfer {
  TransferKind kind = TransferKind::send;
  Phase phase = Phase::reduce;
  Element element = Element::plain;
  Source source = Source::none;     // none exactly for receives
  std::uint16_t peer = 0;           // rank in the plan
  std::uint16_t shard = 0;          // index into Plan::shards
  std::uint16_t needs = 0;          // transfers that must have run first, per slice
  std::vector<std::uint16_t> next;  // indices into Plan::transfers, all of the same shard
};

struct Plan {
  Collective collective = Collective::all_reduce;
  Algorithm algorithm = Algorithm::direct;
  std::uint16_t rank = 0;
  std::uint16_t size = 1;
  std::uint16_t root = 0;
  std::uint32_t slice_count = 0;  // elements per slice
  bool ordered = false;           // contributions are folded in rank order, one's own among them
  std::vector<std::uint64_t> input;   // elements of its parts: one, one per rank, or none
  std::vector<std::uint64_t> output;
  std::vector<Shard> shards;
  std::vector<std::uint8_t> finishes;   // per shard: this rank lowers it
  std::vector<Transfer> transfers;      // sends in the order they should be queued
};

struct PlanRequest {
  Algorithm algorithm = Algorithm::automatic;
  std::uint16_t rank = 0;
  std::uint16_t size = 1;               // 1..1024
  std::uint64_t count = 0;              // elements: of the whole, or of one part where there are
  std::uint32_t element_bytes = 4;      // of the operation's dtype
  std::uint32_t accumulator_bytes = 4;  // of its accumulator
  bool ordered = false;                 // deterministic=True
  bool one_host = false;                // all ranks are on one machine, as the view says
  std::span<const double> shares{};     // per rank, >= 0, any scale; empty: equal.  direct only
  Collective collective = Collective::all_reduce;
  std::uint16_t root = 0;
  /// Parts of unequal size, per rank, instead of `count`: what this rank has for each (or, with an
  /// undivided input, for all: one number), and what it gets of each.  See Descriptor::uneven.
  bool uneven = false;
  std::span<const std::uint64_t> send_counts{};
  std::span<const std::uint64_t> receive_counts{};
  /// Shards and slices begin where a block does.  All-reduce only, which is direct then.
  Codec codec{};
};

inline constexpr std::uint32_t slice_bytes_max = 256 * 1024;  // payload of one frame
inline constexpr std::uint32_t coded_slice_bytes_max = 64 * 1024;  // fits a pool's third class
inline constexpr std::uint32_t slice_bytes_min = 64 * 1024;   // below it, headers and wake-ups win

/// What `automatic`, or one that the collective does not have, becomes: the same on all ranks,
/// since it looks only at what they agree on.
Algorithm choose_algorithm(const PlanRequest& request) noexcept;
/// Elements per slice: a slice never exceeds slice_bytes_max, as dtype or as accumulator.
std::uint32_t choose_slice_count(const PlanRequest& request, Algorithm algorithm) noexcept;
/// Counts of the wrong number are asserted.  Cost: O(size + shards * transfers).
Plan make_plan(const PlanRequest& request);
/// What this rank has for `rank`, and what it expects of it (to be summed, or copied).
std::uint64_t elements_to(const Plan& plan, std::uint16_t rank) noexcept;
std::uint64_t elements_from(const Plan& plan, std::uint16_t rank) noexcept;
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
/// Runs the plans of all ranks against each other, symbolically: every element of every output is
/// written once, with what belongs there (each contribution exactly once, or the element of the
/// right rank and place), every send meets its receive, nothing is left over, no cycle.
/// Cost: O(total transfers * slices).
Simulation simulate(std::span<const Plan> plans, std::uint32_t element_bytes,
                    std::uint32_t accumulator_bytes, const CostModel& cost = {});

}  // namespace pccl
