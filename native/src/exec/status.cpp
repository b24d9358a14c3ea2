// native/src/exec/status.cpp — what a heartbeat says: the oldest open step, its waits, the links.
// Ownership: see executor.hpp.
// Threads:   under the engine's turn, a few times a second: it looks, it changes nothing.
// Errors:    none.
#include <algorithm>

#include "pccl/executor.hpp"

namespace pccl {
namespace {

constexpr double credit_after_s = 1.0;  // bytes that nobody acknowledged for that long stand still
constexpr double unread_after_s = 1.0;  // of time in which this side ran

}  // namespace

void Executor::tell_status(HeartbeatStatus& status, double now_s) const {
  if (!machine_) return;
  status.generation = machine_->generation();
  status.epoch = machine_->view().epoch;
  status.watermark = machine_->watermark();
  status.next_step = machine_->next_step();
  status.progress = progress() + counters_.controls_handled;
  const auto oldest = std::find_if(steps_.begin(), steps_.end(), [](const auto& entry) {
    return entry.second.state == StepState::open;
  });
  if (oldest != steps_.end()) {
    const StepRecord& step = oldest->second;
    status.step = step.id;
    if (!step.started) {
      status.waiting = Waiting::gate;
    } else if (!step.sealed) {
      status.waiting = Waiting::program;
    } else {
      status.waiting = Waiting::peers;
      tell_waits(step, status.waits, now_s);
    }
  }
  for (const Member& member : machine_->view().members) {
    const auto it = links_.find({member.peer, member.incarnation});
    if (it == links_.end() || member.peer == self_) continue;
    const Link& link = *it->second;
    if (link.relayed()) status.relayed.push_back(member.peer);
    if (!link.up() && now_s - link.down_since_s > down_after_s) status.down.push_back(member.peer);
  }
}

void Executor::tell_waits(const StepRecord& step, std::vector<WaitOn>& waits,
                          double now_s) const {
  enum : std::uint8_t { unopened = 1, lacking = 2 };
  std::vector<std::uint8_t> owes(step.peers.size(), 0);
  bool complete = true;
  for (const auto& operation : step.operations) {
    if (operation->complete()) continue;
    complete = false;
    if (!operation->running()) continue;  // it can run no more, and waits for the coordinator
    for (std::uint16_t rank = 0; rank < owes.size(); ++rank) {
      if (step.peers[rank] != nullptr && !operation->opened(rank)) owes[rank] |= unopened;
    }
    operation->lacks([&](std::uint16_t rank) { owes[rank] |= lacking; });
  }
  for (const Link* link : step.everyone) {
    const auto found = std::find(step.peers.begin(), step.peers.end(), link);
    const auto rank = static_cast<std::size_t>(found - step.peers.begin());
    const std::uint8_t owed = found == step.peers.end() ? std::uint8_t{0} : owes[rank];
    const bool done = machine_->has_done(step.epoch, step.id, link->peer);
    if (!done && ((owed & unopened) != 0 || !has_sealed(step, *link))) {
      waits.push_back({link->peer, WaitKind::post});
    } else if ((owed & lacking) != 0 || (complete && !done)) {
      waits.push_back({link->peer, WaitKind::data});
    }
    if (link->stands_still(now_s, credit_after_s)) {
      waits.push_back({link->peer, WaitKind::credit});
    }
    if (link->unread(unread_after_s)) waits.push_back({link->peer, WaitKind::unread});
  }
}

bool Executor::has_sealed(const StepRecord& step, const Link& link) const noexcept {
  const auto found = seals_.find({step.epoch, step.id});
  return found != seals_.end() &&
         std::any_of(found->second.begin(), found->second.end(),
                     [&](const EarlySeal& seal) { return seal.link == &link; });
}

}  // namespace pccl
