// native/src/outcome/outcome.cpp — gate, DONE counting and fence of the outcome machine.
// Ownership: values only.
// Threads:   one caller at a time.
// Errors:    none.
#include "pccl/outcome.hpp"

#include <algorithm>

namespace pccl {
namespace {

constexpr const char* left_text = "this peer left the run before the step began";

}  // namespace

const Member* OutcomeMachine::me(const View& view) const noexcept {
  for (const Member& member : view.members) {
    if (member.peer == self_ && member.incarnation == incarnation_) return &member;
  }
  return nullptr;
}

bool OutcomeMachine::has_done(Epoch epoch, StepId step, PeerId peer) const noexcept {
  const auto found = dones_.find({epoch, step});
  return found != dones_.end() && found->second.count(peer) != 0;
}

int OutcomeMachine::rank() const noexcept {
  const Member* self = me(view_);
  if (self == nullptr) return -1;
  return static_cast<int>(
      std::count_if(view_.members.data(), self,
                    [&](const Member& member) { return member.group == self->group; }));
}

std::uint32_t OutcomeMachine::group() const noexcept {
  const Member* self = me(view_);
  return self == nullptr ? 0 : self->group;
}

int OutcomeMachine::group_size() const noexcept {
  return static_cast<int>(
      std::count_if(view_.members.begin(), view_.members.end(),
                    [&](const Member& member) { return member.group == group(); }));
}

bool OutcomeMachine::waiting_at_gate() const noexcept {
  return std::any_of(open_.begin(), open_.end(),
                     [](const auto& entry) { return entry.second.waiting; });
}

std::vector<Member> OutcomeMachine::participants(StepId step) const {
  std::vector<Member> result;
  for (const Member& member : view_.members) {
    if (member.first_step <= step) result.push_back(member);
  }
  return result;
}

bool OutcomeMachine::may_start(StepId step) const noexcept {
  // An activation ends the pause: its joiners may wait at the name of a later step than ours.
  return me(view_) != nullptr && !frozen() && (view_.pause == Pause::none || pending_) &&
         (!hold_from_ || step < *hold_from_);
}

Refusal OutcomeMachine::refusal() noexcept {
  if (left_) return Refusal::left;
  if (tell_excluded_) {
    tell_excluded_ = false;
    return Refusal::excluded;
  }
  const bool underflow = me(view_) != nullptr && view_.pause == Pause::raises && !pending_;
  return underflow ? Refusal::underflow : Refusal::none;
}

void OutcomeMachine::adopt(const View& view) {
  view_ = view;
  generation_ = std::max(generation_, view.generation);
  hold_from_.reset();
  pending_.reset();
  // What older epochs said about steps is void: an attempt belongs to one epoch.
  for (auto it = dones_.begin(); it != dones_.end();) {
    const bool live = it->first.first >= view_.epoch || open_.count(it->first.second) != 0;
    it = live ? std::next(it) : dones_.erase(it);
  }
}

void OutcomeMachine::switch_if_due(StepId step, std::uint64_t name_hash, Effects& effects) {
  if (!pending_ || frozen() || step < pending_->step) return;
  if (pending_->name_hash && *pending_->name_hash != name_hash) return;
  View view = std::move(pending_->view);
  if (me(view) == nullptr) return leave(std::move(view), step, effects);
  for (Member& member : view.members) {
    const auto same = [&](const Member& other) {
      return other.peer == member.peer && other.incarnation == member.incarnation;
    };
    const auto known = std::find_if(view_.members.begin(), view_.members.end(), same);
    member.first_step = known != view_.members.end() ? known->first_step : step;
  }
  adopt(view);
  switched_ = true;
  switch_step_ = step;
  effects.emplace_back(Switched{view_.epoch, step});
}

/// What runs goes on in the older view; what waits could only start in the one without this peer.
void OutcomeMachine::leave(View view, StepId step, Effects& effects) {
  adopt(view);
  left_ = switched_ = true;
  switch_step_ = step;
  effects.emplace_back(Left{view_.epoch, step});
  for (auto it = open_.begin(); it != open_.end();) {
    const auto& [id, open] = *it++;
    if (!open.waiting) continue;
    // Not decided: the others will run it.
    effects.emplace_back(Failed{id, SuspectCode::left, left_text});
    open_.erase(id);
  }
}

std::optional<StepId> OutcomeMachine::begin(std::uint64_t name_hash, Effects& effects) {
  if (open_.size() >= open_steps_max || waiting_at_gate()) return std::nullopt;
  if (me(view_) != nullptr) names_.come_to(name_hash, next_step_);
  if (const auto it = failed_ahead_.find(next_step_);
      it != failed_ahead_.end() && me(view_) != nullptr && !frozen()) {
    // The others were told so while this program was still on its way to the step.
    const Decision decision = std::move(it->second);
    failed_ahead_.erase(it);
    end_failed(decision, effects);
    return next_step_++;
  }
  switch_if_due(next_step_, name_hash, effects);
  if (!may_start(next_step_)) return std::nullopt;
  const StepId id = next_step_++;
  Step& step = open_[id];
  step.name_hash = name_hash;
  step.before = names_.before(name_hash);
  start(id, step, effects);
  return id;
}

std::vector<PeerId> OutcomeMachine::newcomers_to(StepId id) const {
  std::vector<PeerId> found;
  const auto it = open_.find(id);
  if (it == open_.end() || !it->second.before) return found;
  for (const Member& member : it->second.participants) {
    if (member.first_step > *it->second.before) found.push_back(member.peer);
  }
  return found;
}

void OutcomeMachine::start(StepId id, Step& step, Effects& effects) {
  step.waiting = false;
  step.complete = false;
  step.epoch = view_.epoch;
  step.participants = participants(id);
  step.group = group();
  effects.emplace_back(Start{id, step.epoch});
}

void OutcomeMachine::start_waiting(Effects& effects) {
  for (auto& [id, step] : open_) {
    if (!step.waiting) continue;
    switch_if_due(id, step.name_hash, effects);
    if (left_) return;           // they have ended
    if (!may_start(id)) return;  // later steps wait for earlier ones
    start(id, step, effects);
  }
}

void OutcomeMachine::bind(StepId id) noexcept {
  if (const auto it = open_.find(id); it != open_.end()) it->second.bound = true;
}

void OutcomeMachine::seal(StepId id, Digest manifest, Effects&) {
  const auto it = open_.find(id);
  if (it == open_.end()) return;
  it->second.sealed = true;
  it->second.manifest = manifest;
}

void OutcomeMachine::complete(StepId id, Epoch epoch, Digest digest, Effects& effects) {
  const auto it = open_.find(id);
  if (it == open_.end() || frozen()) return;
  Step& step = it->second;
  if (step.epoch != epoch || step.waiting || !step.sealed || step.complete) return;
  step.complete = true;
  step.digest = digest;
  const SendDone message{id, epoch, step.manifest, digest};
  sent_.push_back(message);
  if (sent_.size() > open_steps_max) sent_.pop_front();
  effects.emplace_back(message);
  dones_[{epoch, id}][self_] = {step.manifest, digest};
  judge(id, effects);
}

void OutcomeMachine::done(PeerId from, StepId id, Epoch epoch, Digest manifest, Digest digest,
                          Effects& effects) {
  if (epoch < frozen_target_ && frozen()) return;  // promised: nothing older commits here
  if (id < watermark_ || committed_.count(id) != 0) return;
  // No correct peer is so far ahead; a newcomer does not know yet where the others are.
  if (me(view_) != nullptr && id > next_step_ + open_steps_max) return;
  const auto it = open_.find(id);
  if (it != open_.end() && !it->second.waiting && epoch < it->second.epoch) return;
  if (it == open_.end() && epoch < view_.epoch) return;
  const std::pair key{epoch, id};
  if (dones_.size() >= dones_max && dones_.count(key) == 0) return;
  dones_[key][from] = {manifest, digest};
  judge(id, effects);
}

void OutcomeMachine::judge(StepId id, Effects& effects) {
  const auto it = open_.find(id);
  if (it == open_.end() || !it->second.complete || frozen()) return;
  const Step& step = it->second;
  const auto& dones = dones_[{step.epoch, id}];
  Suspect suspicion{step.epoch, id, SuspectCode::none, {}, {}};
  // A step is committed for all groups or for none: nobody commits while one differs within itself.
  std::map<std::uint32_t, Done> agreed{{step.group, {step.manifest, step.digest}}};
  bool all = true;
  for (const Member& member : step.participants) {
    const auto found = dones.find(member.peer);
    all = all && found != dones.end();
    if (found == dones.end()) continue;
    const Done& first = agreed.emplace(member.group, found->second).first->second;
    if (found->second.manifest != first.manifest) {
      suspicion.code = SuspectCode::descriptor;
      suspicion.peers.push_back(member.peer);
    } else if (found->second.digest != first.digest) {
      if (suspicion.code == SuspectCode::none) suspicion.code = SuspectCode::digest;
      suspicion.peers.push_back(member.peer);
    }
  }
  if (suspicion.code != SuspectCode::none) {
    suspicion.text = suspicion.code == SuspectCode::digest
                         ? "results of one step differ between peers"
                         : "peers posted different operations in one step";
    if (suspicion.code == SuspectCode::descriptor) {
      suspicion.name_newcomers(self_, newcomers_to(id));
    }
    effects.emplace_back(Accuse{std::move(suspicion)});
    return;
  }
  if (all) commit(id, effects);
}

void OutcomeMachine::commit(StepId id, Effects& effects) {
  const auto it = open_.find(id);
  const Epoch epoch = it->second.epoch;
  open_.erase(it);
  dones_.erase({epoch, id});
  mark_decided(id);
  effects.emplace_back(Committed{id, epoch});
}

Report OutcomeMachine::fence(Generation generation, Epoch target) {
  if (generation >= generation_) {
    generation_ = generation;
    frozen_target_ = std::max(frozen_target_, target);
  }
  // An older coordinator learns of the newer one, and is promised nothing.
  Report report{generation_, target, view_.epoch, switched_, switch_step_,
                watermark_, next_step_, {}, {}, {}};
  report.committed.assign(committed_.begin(), committed_.end());
  for (const auto& [id, step] : open_) {
    report.open.push_back({id, step.epoch, step.sealed, step.complete, step.waiting, step.manifest,
                           step.digest, step.name_hash, step.bound});
  }
  for (const auto& [id, code] : failed_) report.failed.push_back({id, code});
  return report;
}

void OutcomeMachine::mark_decided(StepId id) {
  committed_.insert(id);
  while (!committed_.empty() && *committed_.begin() == watermark_) {
    committed_.erase(committed_.begin());
    ++watermark_;
  }
}

}  // namespace pccl
