// native/include/pccl/outcome.hpp — what becomes of a step: the peer's half of the agreement.
//
// A pure state machine: no sockets, no clock, no threads, no tensor.  The executor feeds it and
// performs its effects in order; the simulation drives the same class.
//
// Theory.  A step is attempted at most once per epoch.  Sealed and complete, a peer sends DONE to
// every participant; with the DONEs of all and equal digests it COMMITs.  FLUSH freezes the machine
// (fence): from then on nothing of an older epoch completes or commits here, and the report says
// what had; the INSTALL that follows says for each open step commit, retry or fail.  Nothing is
// undone before that.  Steps start through a gate: not while the machine is frozen, the view
// paused, or the step at or past a `hold` promise; a pending activation switches the view at the
// first step >= its step with its name.
//
// Groups.  A step has participants of all groups and commits on the DONEs of all of them, for all
// groups or for none.  The members of a group reduce among themselves, so manifests and digests are
// compared group by group, the other ones too.
//
// Ways out.  An activation whose view is without this peer is a planned leave: it runs the steps
// before the switch and no later one.  EXCLUDED undoes and fails what is open and makes it a
// non-member that a later INSTALL may let in again as a newcomer.
//
// Invariants: epochs and generations never go down; a committed step is never retried; committed
// steps below the watermark are consecutive; a peer that has left starts nothing until an INSTALL
// takes it in again.
// Ownership: values only.
// Threads:   none of its own; one caller at a time.
// Errors:    Status::protocol where the coordinator's word contradicts what this peer knows: the
//            peer must then leave, since it can no longer agree with the others.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <variant>
#include <vector>

#include "pccl/entry_names.hpp"
#include "pccl/report.hpp"
#include "pccl/status.hpp"
#include "pccl/types.hpp"

namespace pccl {

struct Member {
  PeerId peer;
  Incarnation incarnation = 0;
  StepId first_step = 0;   // the first step it takes part in
  std::uint32_t group = 0; // whom it reduces with
};

/// Whether steps may start in a view: with fewer than min_world members none does.
enum class Pause : std::uint8_t {
  none = 0,
  waits = 1,   // the program waits at the gate
  raises = 2,  // the program is told
};

struct View {
  Generation generation = 0;
  Epoch epoch = 0;
  std::vector<Member> members;  // in rank order
  Pause pause = Pause::none;
};

/// Why the gate will not open for the next step however long the program waits.
enum class Refusal : std::uint8_t {
  none = 0,
  left = 1,       // planned out: the view in force is without this peer
  underflow = 2,  // paused, and the program wants to be told
  excluded = 3,   // put back among the learners; told once
};

enum class Verdict : std::uint8_t { commit = 1, retry = 2, fail = 3 };
struct Decision {
  StepId step = 0;
  Verdict verdict = Verdict::retry;
  SuspectCode code = SuspectCode::none;
  std::string text;
};

/// Send DONE(step, epoch, manifest, digest) to the attempt's other participants.
struct SendDone { StepId step; Epoch epoch; Digest manifest; Digest digest; };
/// The step ended: results may be read, inputs forgotten.
struct Committed { StepId step; Epoch epoch; };
struct Failed { StepId step; SuspectCode code; std::string text; };
/// Give the inputs back; the step will start again or fail.
struct Undo { StepId step; };
/// Attempt the step in `epoch` with its participants.
struct Start { StepId step; Epoch epoch; };
/// The view of `epoch`, from `step` on, is without this peer, as it was planned.
struct Left { Epoch epoch; StepId step; };
/// The view of `epoch` came into force here at `step`.
struct Switched { Epoch epoch; StepId step; };
/// Tell the coordinator: digests or manifests differ.
struct Accuse { Suspect suspicion; };
using Effect = std::variant<SendDone, Committed, Failed, Undo, Start, Switched, Left, Accuse>;
using Effects = std::vector<Effect>;

class OutcomeMachine {
 public:
  OutcomeMachine(PeerId self, Incarnation incarnation) : self_(self), incarnation_(incarnation) {}

  // --- the program ---
  /// The next step in program order, if the gate lets it start now; else nothing changed.
  std::optional<StepId> begin(std::uint64_t name_hash, Effects& effects);
  /// Why begin() will go on saying no.  Tells of an exclusion once.
  Refusal refusal() noexcept;
  /// An operation was posted that means nothing among other members: the report says so.
  void bind(StepId step) noexcept;
  /// The last operation was posted.
  void seal(StepId step, Digest manifest, Effects& effects);
  /// All results are here (and the step is sealed); ignored for an older attempt or while frozen.
  void complete(StepId step, Epoch epoch, Digest digest, Effects& effects);

  // --- other peers ---
  void done(PeerId from, StepId step, Epoch epoch, Digest manifest, Digest digest,
            Effects& effects);

  // --- the coordinator ---
  Report fence(Generation generation, Epoch target);
  StepId hold(Generation generation, Epoch epoch);
  /// Within so many steps the program is expected to begin one of that name; 0: not at all.
  [[nodiscard]] std::uint64_t entry_within(std::uint64_t name_hash) const {
    return names_.within(name_hash, next_step_);
  }
  /// Without a name hash any name will do.
  void activate(const View& view, StepId step, std::optional<std::uint64_t> name_hash,
                Effects& effects);
  void cancel_plan(Generation generation, Epoch epoch, Effects& effects);
  Status install(const View& view, StepId committed_below, const std::vector<Decision>& decisions,
                 Effects& effects);
  /// In no view from `epoch` on, but still admitted: everything open is undone and fails by `code`.
  void exclude(Generation generation, Epoch epoch, const std::string& text, SuspectCode code,
               Effects& effects);

  // --- questions ---
  [[nodiscard]] const View& view() const noexcept { return view_; }
  [[nodiscard]] int rank() const noexcept;  // in the own group; -1: not a member
  [[nodiscard]] std::uint32_t group() const noexcept;
  [[nodiscard]] int group_size() const noexcept;  // members of the own group
  [[nodiscard]] bool frozen() const noexcept { return frozen_target_ > view_.epoch; }
  [[nodiscard]] bool has_left() const noexcept { return left_; }
  [[nodiscard]] bool waiting_at_gate() const noexcept;  // a retried step waits to start
  [[nodiscard]] StepId next_step() const noexcept { return next_step_; }
  [[nodiscard]] StepId watermark() const noexcept { return watermark_; }
  [[nodiscard]] Generation generation() const noexcept { return generation_; }
  /// Members of the current view that take part in `step`, in rank order.
  [[nodiscard]] std::vector<Member> participants(StepId step) const;
  /// Who cannot have taken part when this program last came to the entry of this open step: they
  /// are new to it.  Nobody, if it has not come to it before.
  [[nodiscard]] std::vector<PeerId> newcomers_to(StepId step) const;
  /// DONEs this peer sent lately, for a lane that died: newest last.
  [[nodiscard]] const std::deque<SendDone>& sent() const noexcept { return sent_; }

  static constexpr std::size_t open_steps_max = 64;  // also bounds how far ahead DONEs are kept
  /// That participant of the attempt has said that it holds its result.
  [[nodiscard]] bool has_done(Epoch epoch, StepId step, PeerId peer) const noexcept;
  /// The step ended here, or before this peer came: nothing about it matters any more.
  [[nodiscard]] bool decided(StepId step) const noexcept {
    return step < watermark_ || committed_.count(step) != 0;
  }

 private:
  // Far above what correct peers send: a member runs at most open_steps_max ahead in an epoch.
  static constexpr std::size_t dones_max = 4096;
  // More than a peer can be behind another one, which holds at most open_steps_max steps.
  static constexpr std::size_t failed_max = 2 * open_steps_max;
  static constexpr std::size_t failed_ahead_max = 4096;  // as many as one INSTALL can carry
  struct Done { Digest manifest; Digest digest; };
  struct Step {
    Epoch epoch = 0;  // of the attempt
    std::uint64_t name_hash = 0;
    bool waiting = false;   // retried, not started yet
    bool sealed = false;
    bool complete = false;
    bool bound = false;
    Digest manifest;
    Digest digest;
    std::uint32_t group = 0;
    std::vector<Member> participants;  // of all groups
    std::optional<StepId> before;  // when this program last came to an entry of that name
  };
  struct Pending {
    View view;
    StepId step = 0;
    std::optional<std::uint64_t> name_hash;  // none: any
  };

  [[nodiscard]] bool may_start(StepId step) const noexcept;
  void switch_if_due(StepId step, std::uint64_t name_hash, Effects& effects);
  void start(StepId id, Step& step, Effects& effects);
  void start_waiting(Effects& effects);
  void leave(View view, StepId step, Effects& effects);
  void judge(StepId id, Effects& effects);
  void commit(StepId id, Effects& effects);
  void mark_decided(StepId id);
  void end_failed(const Decision& decision, Effects& effects);
  [[nodiscard]] bool contradicts(bool newcomer, StepId first_step, StepId committed_below,
                                 const std::vector<Decision>& decisions) const;
  [[nodiscard]] static Decision decision_on(StepId id, StepId committed_below,
                                            const std::vector<Decision>& decisions);
  void adopt(const View& view);
  void apply(const Decision& decision, Effects& effects);
  [[nodiscard]] const Member* me(const View& view) const noexcept;

  PeerId self_;
  Incarnation incarnation_;
  View view_;
  Generation generation_ = 0;
  Epoch frozen_target_ = 0;
  std::optional<Pending> pending_;
  std::optional<StepId> hold_from_;
  Epoch hold_epoch_ = 0;
  StepId held_from_ = 0;  // what hold() said for hold_epoch_
  bool switched_ = false;
  StepId switch_step_ = 0;
  bool left_ = false;            // the view in force is without this peer, as planned
  bool tell_excluded_ = false;   // no step has told the program that it was excluded
  StepId next_step_ = 0;
  StepId watermark_ = 0;
  std::set<StepId> committed_;  // above the watermark
  std::map<StepId, SuspectCode> failed_;  // the last that were; the watermark passes them as well
  std::map<StepId, Step> open_;
  std::map<std::pair<Epoch, StepId>, std::map<PeerId, Done>> dones_;
  std::deque<SendDone> sent_;
  EntryNames names_;  // where this program has come to as a member
  std::map<StepId, Decision> failed_ahead_;  // of steps that this program has not begun
};

}  // namespace pccl
