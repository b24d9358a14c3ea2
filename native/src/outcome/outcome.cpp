// native/src/outcome/outcome.cpp — gate, DONE counting, fence and install of the outcome machine.
// Ownership: values only.
// Threads:   one caller at a time.
// Errors:    install returns Status::protocol when the outcome contradicts what this peer holds.
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
  start(id, step, effects);
  return id;
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
                watermark_, next_step_, {}, {}};
  report.committed.assign(committed_.begin(), committed_.end());
  for (const auto& [id, step] : open_) {
    report.open.push_back({id, step.epoch, step.sealed, step.complete, step.waiting, step.manifest,
                           step.digest, step.name_hash});
  }
  return report;
}

StepId OutcomeMachine::hold(Generation generation, Epoch epoch) {
  // What is over (or activated) holds nobody: nothing would ever end such a promise.
  const bool over = epoch <= view_.epoch || (pending_ && pending_->view.epoch >= epoch);
  if (generation < generation_ || over) return hold_epoch_ == epoch ? held_from_ : next_step_;
  generation_ = generation;
  StepId from = next_step_;
  for (const auto& [id, step] : open_) {
    if (step.waiting) from = std::min(from, id);
  }
  // Joiners come in at or above it, so it is above all that is decided: they would run that again.
  if (!committed_.empty()) from = std::max(from, *committed_.rbegin() + 1);
  if (!failed_ahead_.empty()) from = std::max(from, failed_ahead_.rbegin()->first + 1);
  // A repeated question gets the same answer: the promise stands.
  if (hold_from_ && hold_epoch_ == epoch) return *hold_from_;
  hold_from_ = held_from_ = from;
  hold_epoch_ = epoch;
  return from;
}

void OutcomeMachine::activate(const View& view, StepId step, std::optional<std::uint64_t> name_hash,
                              Effects& effects) {
  if (view.generation < generation_ || view.epoch <= view_.epoch || frozen()) return;
  generation_ = view.generation;
  if (me(view_) == nullptr) return;  // a newcomer is told by INSTALL
  pending_ = Pending{view, step, name_hash};
  hold_from_.reset();
  start_waiting(effects);
}

void OutcomeMachine::cancel_plan(Generation generation, Epoch epoch, Effects& effects) {
  if (generation < generation_ || epoch <= view_.epoch) return;
  generation_ = generation;
  if (pending_ && pending_->view.epoch == epoch) pending_.reset();
  // Also a promise to an older plan, of which a restarted coordinator knows only that it is over.
  if (hold_epoch_ <= epoch) hold_from_.reset();
  start_waiting(effects);
}

Status OutcomeMachine::install(const View& view, StepId committed_below,
                               const std::vector<Decision>& decisions, Effects& effects) {
  if (view.generation < generation_) return Status::ok;  // an older coordinator
  generation_ = view.generation;
  const Member* member = me(view);
  if (member == nullptr || view.epoch < view_.epoch) return Status::ok;
  // Overtaken by the FLUSH that ended it: what was reported then must still be here when that
  // flush is decided, and its INSTALL repeats what this one would say.
  if (view.epoch < frozen_target_ && frozen()) return Status::ok;
  if (view.epoch == view_.epoch) {
    if (view.members.size() == view_.members.size()) view_.members = view.members;
    return Status::ok;
  }
  // A flush may have taken back the plan by which this peer had left.
  const bool newcomer = me(view_) == nullptr && !(left_ && frozen());
  if (!newcomer && frozen_target_ <= view_.epoch) {
    // Not a flush: the planned view, resolved by a peer that switched before us.
    if (pending_ && pending_->view.epoch == view.epoch) return Status::ok;
    StepId step = 0;
    for (const Member& other : view.members) step = std::max(step, other.first_step);
    pending_ = Pending{view, step, std::nullopt};
    hold_from_.reset();
    start_waiting(effects);
    return Status::ok;
  }
  if (newcomer) {
    next_step_ = watermark_ = member->first_step;
    committed_.clear();
    failed_ahead_.clear();
    tell_excluded_ = false;
  }
  left_ = false;
  for (auto it = open_.begin(); it != open_.end();) {
    const StepId id = (it++)->first;  // apply may erase it
    Decision decision{id, Verdict::retry, SuspectCode::none, {}};
    if (id < committed_below) decision.verdict = Verdict::commit;
    for (const Decision& given : decisions) {
      if (given.step == id) decision = given;
    }
    if (decision.verdict == Verdict::commit && !open_[id].complete) return Status::protocol;
    apply(decision, effects);
  }
  for (const Decision& decision : decisions) {
    const bool ahead = decision.verdict == Verdict::fail && decision.step >= next_step_;
    if (ahead && failed_ahead_.size() < failed_ahead_max) {
      failed_ahead_.emplace(decision.step, decision);
    }
  }
  adopt(view);
  switched_ = false;
  start_waiting(effects);
  return Status::ok;
}

void OutcomeMachine::exclude(Generation generation, Epoch epoch, const std::string& text,
                             Effects& effects) {
  // Said again, or overtaken by a view that has let this peer in since.
  if (generation < generation_ || epoch <= view_.epoch) return;
  generation_ = generation;
  if (me(view_) != nullptr) tell_excluded_ = open_.empty();
  while (!open_.empty()) {
    const auto& [id, step] = *open_.begin();
    if (!step.waiting) effects.emplace_back(Undo{id});
    effects.emplace_back(Failed{id, SuspectCode::excluded, text});
    open_.erase(open_.begin());
  }
  adopt({generation, epoch, {}, Pause::none});
  dones_.clear();
  sent_.clear();
  failed_ahead_.clear();
  // Like a newcomer it knows no step: the next view may be the first of a run that begins anew.
  next_step_ = watermark_ = 0;
  committed_.clear();
  switched_ = false;
}

void OutcomeMachine::mark_decided(StepId id) {
  committed_.insert(id);
  while (!committed_.empty() && *committed_.begin() == watermark_) {
    committed_.erase(committed_.begin());
    ++watermark_;
  }
}

/// A failed step is over everywhere: it counts as decided, so that the watermark can pass it.
void OutcomeMachine::end_failed(const Decision& decision, Effects& effects) {
  open_.erase(decision.step);
  mark_decided(decision.step);
  effects.emplace_back(Failed{decision.step, decision.code, decision.text});
}

void OutcomeMachine::apply(const Decision& decision, Effects& effects) {
  const auto it = open_.find(decision.step);
  switch (decision.verdict) {
    case Verdict::commit: commit(decision.step, effects); return;
    case Verdict::retry:
      if (!it->second.waiting) effects.emplace_back(Undo{decision.step});
      it->second.waiting = true;
      it->second.complete = false;
      return;
    case Verdict::fail: {
      if (!it->second.waiting) effects.emplace_back(Undo{decision.step});
      end_failed(decision, effects);
      return;
    }
  }
}

}  // namespace pccl
