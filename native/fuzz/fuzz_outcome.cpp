// native/fuzz/fuzz_outcome.cpp — whatever program, peers and coordinator say, a step ends once.
//
// The input is a story: who says what, in which order.  Epochs and generations never go down,
// nothing completes, commits or starts under a fence, only what runs is undone, only what waits or
// is new starts, and no peer hears of a commit that it had no part in.  A contradiction ends the
// peer, and the story with it; it changes nothing.
//
// Ownership: everything is made anew for each input.
// Threads:   one.
// Errors:    abort.
#include <map>
#include <optional>
#include <set>

#include "fuzz/pieces.hpp"
#include "pccl/outcome.hpp"

using namespace pccl;

namespace {

constexpr unsigned peers = 4;  // the machine's own is 0
constexpr unsigned epochs = 12;
constexpr unsigned steps = 10;

PeerId id(unsigned number) {
  PeerId value;
  value.bytes.fill(static_cast<std::uint8_t>(number));
  return value;
}

class Story {
 public:
  Story(const std::uint8_t* data, std::size_t size) : input_(data, size) {}

  void run() {
    bool goes_on = true;
    while (goes_on && !input_.empty()) {
      const Generation generation = machine_.generation();
      epoch_ = machine_.view().epoch;
      effects_.clear();
      fenced_ = machine_.frozen();
      decides_ = false;
      goes_on = happen();
      for (const Effect& effect : effects_) {
        std::visit([this](const auto& one) { check(one); }, effect);
      }
      fuzz::require(machine_.view().epoch >= epoch_ && machine_.generation() >= generation);
      check_report(machine_.fence(0, 0));  // of no generation: a question that promises nothing
    }
  }

 private:
  enum class Stage : std::uint8_t { runs, complete, waits };
  enum class End : std::uint8_t { committed, failed };

  unsigned below(unsigned limit) { return input_.number<std::uint8_t>() % limit; }

  /// One event; false when it ended the peer.
  bool happen() {
    const StepId step = machine_.watermark() + below(6);
    const Digest digest{below(2), 0};
    switch (below(12)) {
      case 0:
      case 1: begin(); return true;
      case 2: machine_.seal(step, Digest{1, 0}, effects_); return true;
      case 3: machine_.complete(step, machine_.view().epoch, digest, effects_); return true;
      case 4: machine_.complete(step, below(epochs), digest, effects_); return true;
      case 5:
      case 6: {
        const Epoch epoch = below(3) != 0 ? machine_.view().epoch : below(epochs);
        machine_.done(id(below(peers)), step, epoch, Digest{1, 0}, digest, effects_);
        return true;
      }
      case 7: {
        const Epoch target = below(epochs);
        const bool heard = below(4) != 0 || machine_.generation() == 0;
        machine_.fence(machine_.generation() - (heard ? 0 : 1), target);
        fuzz::require(!heard || machine_.frozen() || machine_.view().epoch >= target);
        return true;
      }
      case 8: hold(); return true;
      case 9: plan(); return true;
      case 10: machine_.cancel_plan(below(4), below(epochs), effects_); return true;
      default: return decide();
    }
  }

  void begin() {
    const StepId next = machine_.next_step();
    const auto begun = machine_.begin(below(2), effects_);
    fuzz::require(!begun || *begun == next);
    fuzz::require(machine_.next_step() == next + (begun ? 1 : 0));
  }

  void hold() {
    const Epoch epoch = below(epochs);
    const Generation generation = below(4);
    const StepId from = machine_.hold(generation, epoch);
    fuzz::require(generation < machine_.generation() || machine_.hold(generation, epoch) == from);
  }

  void plan() {
    const bool any_name = below(2) != 0;
    const std::uint64_t name = below(2);
    const StepId step = below(steps);
    machine_.activate(view(), step, any_name ? std::nullopt : std::optional(name), effects_);
  }

  View view() {
    View made;
    made.generation = below(4);
    made.epoch = below(epochs);
    for (unsigned number = 0; number < peers; ++number) {
      const auto bits = input_.number<std::uint8_t>();
      if (bits % 4 == 0) continue;
      const Incarnation incarnation = (bits & 0xf0) == 0xf0 ? 2 : 1;
      const StepId first_step = (bits & 4) != 0 ? below(8) : 0;
      made.members.push_back({id(number), incarnation, first_step, (bits >> 3) & 1u});
    }
    made.pause = static_cast<Pause>(below(6) == 0 ? 1 + below(2) : 0);
    return made;
  }

  bool decide() {
    const View next = view();
    decides_ = true;
    if (below(6) == 0) {
      machine_.exclude(next.generation, next.epoch, "out", SuspectCode::excluded, effects_);
      if (machine_.next_step() == 0) ends_.clear();  // as a newcomer it knows no step
      return true;
    }
    std::vector<Decision> decisions;
    for (unsigned count = below(4); count > 0; --count) {
      const auto verdict = static_cast<Verdict>(1 + below(3));
      decisions.push_back({below(steps), verdict, SuspectCode::deadline, "late"});
    }
    const StepId committed_below = below(3) == 0 ? below(steps) : 0;
    const bool outside = machine_.rank() < 0;
    const bool agrees = machine_.install(next, committed_below, decisions, effects_) == Status::ok;
    fuzz::require(agrees || (effects_.empty() && machine_.view().epoch == epoch_));
    // A newcomer begins where it is told to, even where it has been before.
    if (outside && machine_.rank() >= 0 && open_.empty()) ends_.clear();
    return agrees;
  }

  void check(const Start& start) {
    // Some of what waits may start before a view comes into force, and some after.
    fuzz::require(!machine_.frozen());
    fuzz::require(epoch_ <= start.epoch && start.epoch <= machine_.view().epoch);
    fuzz::require(ends_.count(start.step) == 0);
    const auto [found, first] = open_.emplace(start.step, Stage::runs);
    fuzz::require(first || found->second == Stage::waits);
    found->second = Stage::runs;
    fuzz::require(attempts_.emplace(start.step, start.epoch).second);
  }
  void check(const SendDone& done) {
    fuzz::require(!fenced_ && open_.at(done.step) == Stage::runs);
    open_[done.step] = Stage::complete;
  }
  void check(const Undo& undo) {
    fuzz::require(decides_ && open_.at(undo.step) != Stage::waits);
    open_[undo.step] = Stage::waits;
  }
  void check(const Committed& committed) {
    fuzz::require((decides_ || !fenced_) && open_.at(committed.step) == Stage::complete);
    end(committed.step, End::committed);
  }
  void check(const Failed& failed) {
    const auto found = open_.find(failed.step);
    fuzz::require(found == open_.end() || found->second == Stage::waits);
    if (failed.code == SuspectCode::left || failed.code == SuspectCode::excluded) {
      open_.erase(failed.step);  // not decided: only over for this peer
    } else {
      end(failed.step, End::failed);
    }
  }
  void check(const Switched& switched) { fuzz::require(switched.epoch <= machine_.view().epoch); }
  void check(const Left& left) { fuzz::require(left.epoch <= machine_.view().epoch); }
  void check(const Accuse& accuse) {
    const Suspect& suspicion = accuse.suspicion;
    fuzz::require(!suspicion.peers.empty() && open_.at(suspicion.step) == Stage::complete);
  }
  void end(StepId step, End how) {
    fuzz::require(ends_.emplace(step, how).second);
    open_.erase(step);
  }

  /// What the machine would report is what its effects have told.
  void check_report(const Report& report) {
    fuzz::require(report.open.size() == open_.size() &&
                  report.open.size() <= OutcomeMachine::open_steps_max);
    for (const OpenStep& open : report.open) {
      fuzz::require(!machine_.decided(open.step) && open.step < report.next_step);
      const Stage stage = open_.at(open.step);
      fuzz::require(open.waiting == (stage == Stage::waits));
      fuzz::require(open.complete == (stage == Stage::complete));
    }
    for (const auto& [step, how] : ends_) fuzz::require(machine_.decided(step));
  }

  fuzz::Pieces input_;
  OutcomeMachine machine_{id(0), 1};
  Effects effects_;
  Epoch epoch_ = 0;       // in force when the event came
  bool fenced_ = false;   // then
  bool decides_ = false;  // it is a coordinator's decision
  std::map<StepId, Stage> open_;
  std::map<StepId, End> ends_;
  std::set<std::pair<StepId, Epoch>> attempts_;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  Story(data, size).run();
  return 0;
}
