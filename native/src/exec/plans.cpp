// native/src/exec/plans.cpp — the plan of an operation in an attempt, or why it can have none.
// Ownership: see executor.hpp.
// Threads:   under the engine's turn.
// Errors:    admissible.hpp.
#include <algorithm>
#include <cstring>

#include "exec/admissible.hpp"
#include "pccl/text.hpp"

namespace pccl {
namespace {

constexpr std::size_t plans_max = 256;
constexpr std::uint64_t space_bytes_max = std::uint64_t{1} << 62;  // sums of such are exact

using Members = std::vector<std::pair<PeerId, Incarnation>>;
using Counts = std::vector<std::uint64_t>;

/// As many as there are members: it is none of them.
std::size_t place_of(const Members& members, const PeerId& peer) noexcept {
  const auto found = std::find_if(members.begin(), members.end(),
                                  [&](const auto& member) { return member.first == peer; });
  return static_cast<std::size_t>(found - members.begin());
}

bool is_among(const Members& members, const PeerId& peer) noexcept {
  return place_of(members, peer) < members.size();
}

bool addressable(const Counts& counts, std::size_t item_bytes) noexcept {
  std::uint64_t left = space_bytes_max / item_bytes;
  return std::all_of(counts.begin(), counts.end(), [&](std::uint64_t count) {
    const bool room = count <= left;
    left -= room ? count : 0;
    return room;
  });
}

}  // namespace

bool name_root(Posted& posted, const StepRecord& step) noexcept {
  Descriptor& what = posted.descriptor;
  const int rank = posted.root_rank;
  if (!rooted(what.collective)) return rank < 0 && what.root == PeerId{};
  if (rank >= 0) {
    if (static_cast<std::size_t>(rank) >= step.begun_with.size()) return false;
    what.root = step.begun_with[static_cast<std::size_t>(rank)].first;
  }
  return is_among(step.begun_with, what.root);
}

bool fits(const Posted& posted, const StepRecord& step, const PeerId& self) noexcept {
  const Descriptor& what = posted.descriptor;
  const Counts& sends = posted.send_counts;
  const Counts& receives = posted.receive_counts;
  const std::size_t size = step.begun_with.size();
  const std::size_t own = place_of(step.begun_with, self);
  const std::size_t item = size_of(what.dtype);
  if (own == size) return false;
  if (!what.uneven) {
    return sends.empty() && receives.empty() && what.count <= space_bytes_max / item / size;
  }
  if (!addressable(sends, item) || !addressable(receives, item)) return false;
  const bool is_root = what.root == self;
  switch (what.collective) {
    case Collective::reduce_scatter: return sends.size() == size && receives.empty();
    case Collective::all_gather: return receives.size() == size && sends.empty();
    case Collective::gather:
      if (sends.size() != 1 || receives.size() != (is_root ? size : 0)) return false;
      return !is_root || receives[own] == sends[0];
    case Collective::scatter:
      if (receives.size() != 1 || sends.size() != (is_root ? size : 0)) return false;
      return !is_root || sends[own] == receives[0];
    case Collective::all_to_all:
      return sends.size() == size && receives.size() == size && sends[own] == receives[own];
    default: return false;
  }
}

std::string obstacle_to(const StepRecord& step, const Posted& posted) {
  const Descriptor& what = posted.descriptor;
  const auto words = [&](const PeerId& gone) {
    return "tag " + std::to_string(posted.tag) + ": " + describe(what) + " was posted for the " +
           std::to_string(step.begun_with.size()) + " members of an earlier view, and peer " +
           short_name(gone) + " is gone";
  };
  if (bound(what.collective) && step.present != step.begun_with) {
    for (const auto& [peer, incarnation] : step.begun_with) {
      if (!is_among(step.present, peer)) return words(peer);
    }
    return "tag " + std::to_string(posted.tag) + ": " + describe(what) +
           " was posted for other members than those of the view now";
  }
  const bool lost = rooted(what.collective) && !is_among(step.present, what.root);
  return lost ? words(what.root) : std::string{};
}

/// The step can only fail, for all: nobody completes this attempt.
void Executor::refuse(StepRecord& step, std::string text) {
  if (step.accused) return;
  step.accused = true;
  host_.suspect({step.epoch, step.id, SuspectCode::view_changed, {}, std::move(text)});
}

std::shared_ptr<const CompiledPlan> Executor::plan_for(const StepRecord& step,
                                                       const Posted& posted) {
  const Descriptor& what = posted.descriptor;
  PlanRequest request;
  request.collective = what.collective;
  request.algorithm = what.algorithm;
  request.rank = step.rank;
  request.size = static_cast<std::uint16_t>(step.peers.size());
  request.count = what.count;
  request.element_bytes = static_cast<std::uint32_t>(size_of(what.dtype));
  request.accumulator_bytes =
      reduces(what.collective)
          ? static_cast<std::uint32_t>(size_of(accumulator_of(what.dtype, what.op)))
          : request.element_bytes;
  request.ordered = what.deterministic;
  request.codec = what.codec;
  request.one_host = std::all_of(step.peers.begin(), step.peers.end(), [](const Link* link) {
    return link == nullptr || link->same_host;
  });
  if (rooted(what.collective)) {
    request.root = static_cast<std::uint16_t>(place_of(step.present, what.root));
  }
  if (what.uneven) {  // hardly ever twice the same
    request.uneven = true;
    request.send_counts = posted.send_counts;
    request.receive_counts = posted.receive_counts;
    return std::make_shared<CompiledPlan>(make_plan(request));
  }
  const std::uint64_t words[4] = {
      request.count, std::uint64_t{request.rank} << 32 | request.size,
      std::uint64_t{request.element_bytes} << 32 | request.accumulator_bytes,
      std::uint64_t{request.root} << 48 |
          std::uint64_t{static_cast<std::uint8_t>(request.collective)} << 40 |
          (request.one_host ? std::uint64_t{1} << 32 : 0u) |
          std::uint64_t{static_cast<std::uint8_t>(request.codec.kind)} << 16 |
          std::uint64_t{request.codec.block_log2} << 8 |
          std::uint64_t{static_cast<std::uint8_t>(request.algorithm)} << 1 |
          (request.ordered ? 1u : 0u)};
  std::string key(reinterpret_cast<const char*>(words), sizeof words);
  auto it = plans_.find(key);
  if (it == plans_.end()) {
    if (plans_.size() >= plans_max) plans_.clear();
    it = plans_.emplace(std::move(key), std::make_shared<CompiledPlan>(make_plan(request))).first;
  }
  return it->second;
}

}  // namespace pccl
