// native/src/outcome/install.cpp — what a coordinator says of views: plans, installs, exclusions.
// Ownership: values only.
// Threads:   one caller at a time.
// Errors:    install returns Status::protocol when the outcome contradicts what this peer holds,
//            and has touched no step then.
#include <algorithm>

#include "pccl/outcome.hpp"

namespace pccl {

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

Decision OutcomeMachine::decision_on(StepId id, StepId committed_below,
                                     const std::vector<Decision>& decisions) {
  Decision decision{id, Verdict::retry, SuspectCode::none, {}};
  if (id < committed_below) decision.verdict = Verdict::commit;
  for (const Decision& given : decisions) {
    if (given.step == id) decision = given;
  }
  return decision;
}

/// Asked before anything is changed, so that a peer that must leave has half an outcome of nothing.
bool OutcomeMachine::contradicts(bool newcomer, StepId first_step, StepId committed_below,
                                 const std::vector<Decision>& decisions) const {
  // A peer that has left comes in anew when its steps are over, or else by a flush it took part in;
  // and after them: what it has decided it would run again.
  const bool decided = first_step < watermark_ ||
                       (!committed_.empty() && first_step <= *committed_.rbegin());
  if (newcomer && (!open_.empty() || decided)) return true;
  return std::any_of(open_.begin(), open_.end(), [&](const auto& entry) {
    const auto& [id, step] = entry;
    return !step.complete &&
           decision_on(id, committed_below, decisions).verdict == Verdict::commit;
  });
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
  if (contradicts(newcomer, member->first_step, committed_below, decisions)) {
    return Status::protocol;
  }
  if (newcomer) {
    next_step_ = watermark_ = member->first_step;
    committed_.clear();
    failed_.clear();
    failed_ahead_.clear();
    tell_excluded_ = false;
  }
  left_ = false;
  for (auto it = open_.begin(); it != open_.end();) {
    const StepId id = (it++)->first;  // apply may erase it
    apply(decision_on(id, committed_below, decisions), effects);
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
                             SuspectCode code, Effects& effects) {
  // Said again, or overtaken by a view that has let this peer in since.
  if (generation < generation_ || epoch <= view_.epoch) return;
  generation_ = generation;
  if (me(view_) != nullptr || left_) tell_excluded_ = open_.empty();
  while (!open_.empty()) {
    const auto& [id, step] = *open_.begin();
    if (!step.waiting) effects.emplace_back(Undo{id});
    effects.emplace_back(Failed{id, code, text});
    open_.erase(open_.begin());
  }
  adopt({generation, epoch, {}, Pause::none});
  dones_.clear();
  sent_.clear();
  failed_ahead_.clear();
  // Like a newcomer it knows no step: the next view may be the first of a run that begins anew.
  next_step_ = watermark_ = 0;
  names_.forget();
  committed_.clear();
  failed_.clear();
  switched_ = left_ = false;
}

/// A failed step is over everywhere: it counts as decided, so that the watermark can pass it.
void OutcomeMachine::end_failed(const Decision& decision, Effects& effects) {
  open_.erase(decision.step);
  mark_decided(decision.step);
  failed_[decision.step] = decision.code;
  if (failed_.size() > failed_max) failed_.erase(failed_.begin());
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
