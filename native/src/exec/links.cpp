// native/src/exec/links.cpp — which links there are: views, plans, fences, strangers.
// Ownership: see executor.hpp.
// Threads:   under the engine's turn.
// Errors:    Status.
#include <algorithm>

#include "pccl/executor.hpp"

namespace pccl {
namespace {

// A newcomer's lanes may arrive before the view that names it; one that no view names goes.
constexpr double stranger_age_s = 15.0;
// A peer that comes back has a new incarnation, and its lanes may be quicker than the plan.
constexpr std::size_t strange_incarnations_max = 2;

}  // namespace

Link& Executor::link_to(PeerId peer, Incarnation incarnation, double now_s) {
  const std::pair name{peer, incarnation};
  if (const auto known = links_.find(name); known != links_.end()) return *known->second;
  auto link = std::make_unique<Link>(peer, incarnation, now_s);
  link->mail = &letters_.meet(peer, incarnation, link->eager, link.get());
  return *links_.emplace(name, std::move(link)).first->second;
}

Link* Executor::link_of_lane(std::uint32_t id) noexcept {
  const auto it = lane_links_.find(id);
  return it == lane_links_.end() ? nullptr : it->second;
}

void Executor::learn(const std::vector<MemberEntry>& members, double now_s) {
  for (const MemberEntry& entry : members) {
    if (entry.member.peer == self_) {
      dialable_ = entry.endpoint.dialable();
      continue;
    }
    Link& link = link_to(entry.member.peer, entry.member.incarnation, now_s);
    if (link.endpoint != entry.endpoint) {
      link.endpoint = entry.endpoint;
      link.dialling = 0;  // a new dial takes the place of those to the old address
      link.direct_again_s = 0;
    }
    link.same_host = entry.host_key == host_key_;
  }
}

/// Once all are known: two of them may have to meet at a third.
void Executor::dial_all(const std::vector<MemberEntry>& members, double now_s) {
  for (const MemberEntry& entry : members) {
    if (entry.member.peer == self_) continue;
    dial(link_to(entry.member.peer, entry.member.incarnation, now_s), now_s);
  }
}

void Executor::prepare(Epoch epoch, const std::vector<MemberEntry>& members, double now_s) {
  learn(members, now_s);
  planned_ = preparing_ = epoch;
  prepared_.clear();
  for (const MemberEntry& entry : members) {
    if (entry.member.peer == self_) continue;
    Link& link = link_to(entry.member.peer, entry.member.incarnation, now_s);
    link.undialled = false;
    prepared_.push_back(&link);
  }
  dial_all(members, now_s);
  check_links_up();
}

/// A link may be lost while the other end does not know of the plan yet, and waits to be dialled
/// once it does: a process that was stopped, for instance.
void Executor::dial_planned(double now_s) {
  if (planned_ == 0) return;
  for (Link* link : prepared_) {
    if (!link->up() && !link->undialled) dial(*link, now_s);
  }
}

void Executor::check_links_up() {
  if (preparing_ == 0) return;
  const bool all = std::all_of(prepared_.begin(), prepared_.end(),
                               [](const Link* link) { return link->up(); });
  if (!all) return;
  host_.links_up(preparing_);
  preparing_ = 0;
}

StepId Executor::hold(Generation generation, Epoch epoch) {
  return machine_ ? machine_->hold(generation, epoch) : 0;
}

void Executor::activate(const View& view, const std::vector<MemberEntry>& members, StepId step,
                        std::optional<std::uint64_t> name_hash, double now_s) {
  if (!machine_ || abandoned_) return;
  hear_out(view, now_s);
  learn(members, now_s);
  dial_all(members, now_s);
  Effects effects;
  machine_->activate(view, step, name_hash, effects);
  perform(std::move(effects));
}

void Executor::cancel_plan(Generation generation, Epoch epoch) {
  if (!machine_ || abandoned_) return;
  if (preparing_ == epoch) preparing_ = 0;
  if (planned_ <= epoch) planned_ = 0;
  Effects effects;
  machine_->cancel_plan(generation, epoch, effects);
  perform(std::move(effects));
}

Report Executor::fence(Generation generation, Epoch target) {
  if (!machine_) return {generation, target, 0, false, 0, 0, 0, {}, {}, {}};
  const Report report = machine_->fence(generation, target);
  if (!machine_->frozen()) return report;  // a flush that is over, or of an older coordinator
  for (auto& [id, step] : steps_) {
    if (!step.started) continue;
    for (const auto& operation : step.operations) stop(*operation);
    step.started = false;  // what is posted or sealed from now on waits for the verdict
  }
  return report;
}

Status Executor::install(const View& view, const std::vector<MemberEntry>& members,
                         StepId committed_below, const std::vector<Decision>& decisions,
                         double now_s) {
  if (!machine_) return Status::usage;
  if (abandoned_) return Status::ok;
  if (planned_ <= view.epoch) planned_ = 0;
  hear_out(view, now_s);
  learn(members, now_s);
  dial_all(members, now_s);
  Effects effects;
  const Status status = machine_->install(view, committed_below, decisions, effects);
  perform(std::move(effects));
  tell_letters();
  purge_early();
  drop_strangers(now_s);
  lose_tunnels(now_s);
  return status;
}

void Executor::exclude(Generation generation, Epoch epoch, const std::string& text,
                       SuspectCode code) {
  if (!machine_ || abandoned_) return;
  Effects effects;
  machine_->exclude(generation, epoch, text, code, effects);
  perform(std::move(effects));
  if (machine_->rank() < 0) letters_.end_all(LetterEnd::excluded);
  purge_early();
}

void Executor::purge_early() {
  FrameHeader header;
  for (auto it = early_.begin(); it != early_.end();) {
    std::tie(header.epoch, header.step, header.tag) = it->first;
    if (!over(header)) {
      ++it;
      continue;
    }
    for (const EarlyFrame& frame : it->second.frames) {
      frame.link->early_bytes -= frame.header.length;
    }
    it = early_.erase(it);
  }
  std::erase_if(seals_, [&](const auto& entry) {
    std::tie(header.epoch, header.step) = entry.first;
    return over(header);
  });
}

/// A peer that left as planned takes part in the steps before that, and is owed our DONEs of them.
void Executor::mark_needed(double now_s) {
  for (auto& [id, step] : steps_) {
    if (step.state != StepState::open || !step.started) continue;
    for (Link* link : step.everyone) link->needed_s = now_s;
  }
}

bool Executor::is_strange(const Link& link) const {
  const auto& members = machine_->view().members;
  const bool member = std::any_of(members.begin(), members.end(), [&](const Member& m) {
    return m.peer == link.peer && m.incarnation == link.incarnation;
  });
  // Until the next plan: a newcomer is in no view yet while its activation is pending.
  return !member && std::find(prepared_.begin(), prepared_.end(), &link) == prepared_.end();
}

void Executor::drop_strangers(double now_s) {
  mark_needed(now_s);
  for (auto it = links_.begin(); it != links_.end();) {
    Link& link = *it->second;
    if (!is_strange(link)) link.needed_s = now_s;
    it = now_s - link.needed_s < stranger_age_s ? std::next(it) : drop(it);
  }
}

void Executor::make_room_for(PeerId peer, double now_s) {
  mark_needed(now_s);
  auto eldest = links_.end();
  std::size_t strange = 0;
  for (auto it = links_.lower_bound({peer, 0}); it != links_.end() && it->first.first == peer;
       ++it) {
    if (!is_strange(*it->second) || it->second->needed_s >= now_s) continue;
    ++strange;
    if (eldest == links_.end() || it->second->needed_s < eldest->second->needed_s) eldest = it;
  }
  if (strange >= strange_incarnations_max) drop(eldest);
}

Executor::Links::iterator Executor::drop(Links::iterator it) {
  Link& link = *it->second;
  for (const auto& lane : link.lanes) {
    host_.unwatch(*lane);
    lane_links_.erase(lane->id());
  }
  for (auto& [key, early] : early_) {
    std::erase_if(early.frames, [&](const EarlyFrame& frame) { return frame.link == &link; });
    std::erase_if(early.opens, [&](const auto& open) { return open.first == &link; });
  }
  for (auto& [key, seals] : seals_) {
    std::erase_if(seals, [&](const EarlySeal& seal) { return seal.link == &link; });
  }
  for (auto& [id, step] : steps_) {
    std::replace(step.peers.begin(), step.peers.end(), &link, static_cast<Link*>(nullptr));
    std::erase(step.everyone, &link);
  }
  std::erase(prepared_, &link);
  letters_.forget(*link.mail);
  host_.forget(link.peer, link.incarnation);
  return links_.erase(it);
}

Epoch Executor::lacks(PeerId peer, Incarnation incarnation) noexcept {
  const bool lacking = std::any_of(prepared_.begin(), prepared_.end(), [&](const Link* link) {
    return link->peer == peer && link->incarnation == incarnation && !link->up();
  });
  if (!lacking) return 0;
  preparing_ = planned_;  // what was said of it is true no more; that it is up, is said again
  return planned_;
}

void Executor::cut() noexcept {
  abandon();
  for (const auto& [name, link] : links_) {
    for (const auto& lane : link->lanes) host_.unwatch(*lane);
    link->lanes.clear();
  }
  lane_links_.clear();
}

void Executor::abandon() noexcept {
  abandoned_ = true;
  letters_.end_all(LetterEnd::closed);
  for (auto& [id, step] : steps_) {
    if (step.state != StepState::open) continue;
    for (const auto& operation : step.operations) {
      stop(*operation);
      operation->undo();
    }
    step.started = false;
  }
}

bool Executor::has_output() const noexcept {
  return std::any_of(links_.begin(), links_.end(), [](const auto& entry) {
    const Link& link = *entry.second;
    return link.has_output() || std::any_of(link.lanes.begin(), link.lanes.end(),
                                            [](const auto& lane) { return !lane->idle(); });
  });
}

bool Executor::owes_words() const noexcept {
  if (!machine_) return false;
  return std::any_of(links_.begin(), links_.end(), [&](const auto& entry) {
    const Link& link = *entry.second;
    return (machine_->has_left() || link.owes_answers) && link.up() && (link.has_output() ||
                         std::any_of(link.lanes.begin(), link.lanes.end(),
                                     [](const auto& lane) { return !lane->delivered(); }));
  });
}

std::size_t Executor::lane_count() const noexcept {
  std::size_t count = 0;
  for (const auto& [name, link] : links_) count += link->lanes.size();
  return count;
}

}  // namespace pccl
