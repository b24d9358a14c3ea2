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

bool is_among(const std::vector<std::pair<PeerId, Incarnation>>& members, const PeerId& peer) {
  return std::any_of(members.begin(), members.end(),
                     [&](const auto& member) { return member.first == peer; });
}

}  // namespace

bool fits(const Posted& posted, std::size_t size) noexcept {
  const std::size_t sends = posted.send_counts.size();
  const std::size_t receives = posted.receive_counts.size();
  if (!posted.descriptor.uneven) return sends == 0 && receives == 0;
  switch (posted.descriptor.collective) {
    case Collective::reduce_scatter: return sends == size && receives == 0;
    case Collective::all_gather: return receives == size && sends == 0;
    case Collective::gather: return sends == 1 && (receives == size || receives == 0);
    case Collective::scatter: return receives == 1 && (sends == size || sends == 0);
    case Collective::all_to_all: return sends == size && receives == size;
    default: return false;
  }
}

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
  request.one_host = std::all_of(step.peers.begin(), step.peers.end(), [](const Link* link) {
    return link == nullptr || link->same_host;
  });
  if (rooted(what.collective)) {
    const auto root = std::find_if(step.present.begin(), step.present.end(),
                                   [&](const auto& member) { return member.first == what.root; });
    request.root = static_cast<std::uint16_t>(root - step.present.begin());
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
