// native/src/plan/layout.cpp — the spaces of a rank, and where its shards lie in them.
//
// Theory: shares are doubles; their running sum is formed in rank order and only divided,
// multiplied and rounded, which IEEE 754 makes the same on every machine.  A rank lists the
// shards that it touches, and all that has its place in its spaces is in one of them.
//
// Ownership: the plan belongs to the caller.
// Threads:   pure functions.
// Errors:    none for valid arguments (asserted).  Shares that are negative, not finite, all zero
//            or of the wrong number count as equal, on all ranks alike.
#include <algorithm>
#include <cassert>
#include <cmath>

#include "build.hpp"

namespace pccl::plan {
namespace {

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

struct Piece {
  std::uint64_t offset = 0;  // elements
  std::uint64_t count = 0;
};

/// Cuts into `size` shards at multiples of a line, or of a codec's block; their lines differ from
/// the shares by rounding.
std::vector<Piece> split(const PlanRequest& request, std::span<const double> shares) {
  const std::uint64_t unit = unit_elements(request);
  const std::uint64_t units = ceil_div(request.count, unit);
  const double total = usable_total(shares, request.size);
  std::vector<Piece> pieces(request.size);
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
    pieces[rank] = {begin, end - begin};
    begin = end;
  }
  return pieces;
}

/// Pieces of these sizes, one after the other.
std::vector<Piece> pieces_of(std::span<const std::uint64_t> counts) {
  std::vector<Piece> pieces;
  std::uint64_t offset = 0;
  for (const std::uint64_t count : counts) {
    pieces.push_back({offset, count});
    offset += count;
  }
  return pieces;
}

using Counts = std::vector<std::uint64_t>;

/// The sizes of a space in parts, or in one.
Counts space(const PlanRequest& request, bool has_it, bool in_parts,
             std::span<const std::uint64_t> uneven) {
  if (!has_it) return {};
  const std::size_t parts = in_parts ? request.size : 1;
  if (!request.uneven) return Counts(parts, request.count);
  assert(uneven.size() == parts);
  return {uneven.begin(), uneven.end()};
}

void lay_out_spaces(Plan& plan, const PlanRequest& request) {
  const Collective kind = plan.collective;
  const bool is_root = plan.rank == plan.root;
  auto sends = request.send_counts;
  auto receives = request.receive_counts;
  // These two are divided alike everywhere: a rank's own part of one space is all of the other.
  if (request.uneven && kind == Collective::all_gather) {
    sends = receives.subspan(plan.rank, 1);
  } else if (request.uneven && kind == Collective::reduce_scatter) {
    receives = sends.subspan(plan.rank, 1);
  }
  plan.input = space(request, has_input(kind, is_root), input_in_parts(kind), sends);
  plan.output = space(request, has_output(kind, is_root), output_in_parts(kind), receives);
}

void add(Plan& plan, std::uint64_t input, std::uint64_t output, std::uint64_t count,
         std::uint16_t name, bool finishes) {
  plan.shards.push_back({.input = input, .output = output, .count = count, .slices = 0,
                         .name = name});
  plan.finishes.push_back(finishes ? 1 : 0);
}

/// One shard per part, all of them of every rank: shard j belongs to rank j.
void lay_out_parts(Plan& plan, std::span<const Piece> parts) {
  for (std::uint16_t rank = 0; rank < plan.size; ++rank) {
    const bool own = rank == plan.rank;
    const Piece part = parts[rank];
    if (plan.collective == Collective::reduce_scatter) {
      add(plan, part.offset, own ? 0 : no_place, part.count, rank, own);
    } else {
      add(plan, own ? 0 : no_place, part.offset, part.count, rank, own);
    }
  }
}

/// Rank r's shard is r's alone and the root's: it has a place in the other space only at the root.
void lay_out_rooted(Plan& plan) {
  const bool gathers = plan.collective == Collective::gather;
  if (plan.rank != plan.root) {
    const std::uint64_t count = gathers ? plan.input[0] : plan.output[0];
    return add(plan, gathers ? 0 : no_place, gathers ? no_place : 0, count, plan.rank, false);
  }
  const std::vector<Piece> parts = pieces_of(gathers ? plan.output : plan.input);
  for (std::uint16_t rank = 0; rank < plan.size; ++rank) {
    const bool own = rank == plan.rank;
    const std::uint64_t alone = own ? 0 : no_place;
    add(plan, gathers ? alone : parts[rank].offset, gathers ? parts[rank].offset : alone,
        parts[rank].count, rank, own);
  }
}

/// What goes to rank q is shard q, what comes from rank p is shard size + p; named by the sender.
void lay_out_all_to_all(Plan& plan) {
  const std::vector<Piece> sends = pieces_of(plan.input);
  const std::vector<Piece> receives = pieces_of(plan.output);
  assert(sends[plan.rank].count == receives[plan.rank].count);
  for (std::uint16_t rank = 0; rank < plan.size; ++rank) {
    const bool own = rank == plan.rank;
    add(plan, sends[rank].offset, own ? receives[rank].offset : no_place, sends[rank].count,
        plan.rank, own);
  }
  for (std::uint16_t rank = 0; rank < plan.size; ++rank) {
    const bool own = rank == plan.rank;
    add(plan, no_place, own ? no_place : receives[rank].offset, own ? 0 : receives[rank].count,
        rank, false);
  }
}

}  // namespace

void lay_out(Plan& plan, const PlanRequest& request) {
  lay_out_spaces(plan, request);
  const bool is_root = plan.rank == plan.root;
  const bool input = !plan.input.empty();
  const bool output = !plan.output.empty();
  if (plan.size == 1) {
    if (input) add(plan, 0, 0, plan.input[0], 0, true);
    return;
  }
  switch (plan.collective) {
    case Collective::barrier: return;
    case Collective::reduce_scatter: return lay_out_parts(plan, pieces_of(plan.input));
    case Collective::all_gather: return lay_out_parts(plan, pieces_of(plan.output));
    case Collective::gather:
    case Collective::scatter: return lay_out_rooted(plan);
    case Collective::all_to_all: return lay_out_all_to_all(plan);
    case Collective::all_reduce:
    case Collective::broadcast:
    case Collective::reduce: break;
  }
  const bool whole = plan.algorithm == Algorithm::exchange || plan.algorithm == Algorithm::flat ||
                     plan.algorithm == Algorithm::tree;
  const bool follows_shares = plan.algorithm == Algorithm::direct;
  const std::vector<Piece> pieces =
      whole ? std::vector<Piece>{{0, request.count}}
            : split(request, follows_shares ? request.shares : std::span<const double>{});
  for (std::uint16_t index = 0; index < pieces.size(); ++index) {
    const Piece piece = pieces[index];
    const bool own = whole ? plan.collective == Collective::all_reduce || is_root
                           : plan.collective == Collective::broadcast ? is_root
                                                                      : index == plan.rank;
    add(plan, input ? piece.offset : no_place, output ? piece.offset : no_place, piece.count,
        index, own);
  }
}

}  // namespace pccl::plan
