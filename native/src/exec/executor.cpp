// native/src/exec/executor.cpp — steps: begin, post, seal, effects of the outcome machine.
// Ownership: see executor.hpp.
// Threads:   under the engine's turn.
// Errors:    Status.
#include "pccl/executor.hpp"

#include <algorithm>
#include <cstring>

#include "exec/admissible.hpp"
#include "pccl/xxh3.hpp"

namespace pccl {
namespace {

/// Digest of (tag, digest) pairs in tag order: what a step posted, or what came out of it.
template <class Value>
Digest digest_of(std::vector<std::pair<Tag, Value>> entries) {
  std::sort(entries.begin(), entries.end(),
            [](const auto& a, const auto& b) { return a.first < b.first; });
  std::vector<std::uint64_t> words;
  for (const auto& [tag, value] : entries) {
    words.push_back(tag);
    if constexpr (std::is_same_v<Value, Digest>) {
      words.push_back(value.low);
      words.push_back(value.high);
    } else {
      words.push_back(value);
    }
  }
  return xxh3_128(std::as_bytes(std::span(words)));
}

}  // namespace

Executor::Executor(PeerId self, std::uint16_t lanes, bool shared_memory, std::uint64_t host_key,
                   ExecutorHost& host)
    : self_(self),
      lanes_wanted_(lanes),
      shared_memory_(shared_memory),
      host_key_(host_key),
      host_(host),
      letters_(self, *this) {}

void Executor::admit(Incarnation incarnation) {
  if (!machine_) machine_.emplace(self_, incarnation);
}

std::optional<StepId> Executor::begin(std::uint64_t name_hash) {
  if (!machine_) return std::nullopt;
  Effects effects;
  const auto id = machine_->begin(name_hash, effects);
  if (id) {
    StepRecord& record = steps_[*id];
    // Excluded and let in again, a peer may come to a number that it has used in vain before.
    if (record.state != StepState::open) record = StepRecord{};
    record.id = *id;
    record.name_hash = name_hash;
  }
  perform(std::move(effects));
  return id;
}

Status Executor::post(Posted posted) {
  StepRecord* step = record(posted.step);
  if (step == nullptr || step->state == StepState::committed || step->sealed ||
      step->by_tag.contains(posted.tag)) {
    return Status::usage;
  }
  if (step->state == StepState::failed) return Status::ok;  // its end tells why
  if (!name_root(posted, *step) || !fits(posted, *step, self_)) return Status::usage;
  if (bound(posted.descriptor.collective)) machine_->bind(posted.step);
  auto& operation = *step->operations.emplace_back(
      std::make_unique<Operation>(posted, environment_));
  step->by_tag[posted.tag] = &operation;
  if (step->started) start_operation(*step, operation);
  return Status::ok;
}

Status Executor::seal(StepId id) {
  StepRecord* step = record(id);
  if (step == nullptr || step->sealed) return Status::usage;
  step->sealed = true;
  std::vector<std::pair<Tag, std::uint64_t>> entries;
  for (const auto& operation : step->operations) {
    entries.emplace_back(operation->posted().tag, operation->posted().descriptor.digest());
  }
  step->manifest = digest_of(std::move(entries));
  if (step->state != StepState::open) return Status::ok;
  Effects effects;
  machine_->seal(id, step->manifest, effects);
  perform(std::move(effects));
  if (step->started) {
    // Other groups learn by it that nothing is late but the data.
    for (Link* link : step->everyone) step->control_bytes += post_seal(*link, *step);
    check_seals(*step);
    complete_step(*step);
  }
  return Status::ok;
}

StepRecord* Executor::record(StepId step) noexcept {
  const auto it = steps_.find(step);
  return it == steps_.end() ? nullptr : &it->second;
}

void Executor::release(StepId step) {
  const auto it = steps_.find(step);
  if (it != steps_.end() && it->second.state != StepState::open) steps_.erase(it);
}

std::size_t Executor::open_steps() const noexcept {
  return static_cast<std::size_t>(std::count_if(steps_.begin(), steps_.end(), [](const auto& e) {
    return e.second.state == StepState::open;
  }));
}

void Executor::perform(Effects effects) {
  // Performing an effect may cause others: they come after those already here.
  for (std::size_t i = 0; i < effects.size(); ++i) {
    const Effect effect = effects[i];
    if (const auto* done = std::get_if<SendDone>(&effect)) {
      StepRecord* step = record(done->step);
      for (Link* link : step->everyone) {
        link->told.emplace_back(done->epoch, done->step);
        if (link->told.size() > OutcomeMachine::open_steps_max) link->told.pop_front();
        step->control_bytes += post_done(*link, *done);
      }
    } else if (const auto* committed = std::get_if<Committed>(&effect)) {
      StepRecord* step = record(committed->step);
      step->state = StepState::committed;
      on_end(*step);
    } else if (const auto* failed = std::get_if<Failed>(&effect)) {
      StepRecord* step = record(failed->step);
      step->state = StepState::failed;
      step->code = failed->code;
      step->text = failed->text;
      on_end(*step);
    } else if (const auto* undo = std::get_if<Undo>(&effect)) {
      on_undo(undo->step);
    } else if (const auto* start = std::get_if<Start>(&effect)) {
      on_start(*start);
    } else if (const auto* switched = std::get_if<Switched>(&effect)) {
      planned_ = preparing_ = 0;
      tell_letters();
      host_.switched(switched->epoch, switched->step);
    } else if (const auto* left = std::get_if<Left>(&effect)) {
      planned_ = preparing_ = 0;
      letters_.end_all(LetterEnd::left);
      host_.left(left->epoch, left->step);
    } else if (const auto* accuse = std::get_if<Accuse>(&effect)) {
      host_.suspect(accuse->suspicion);
    }
  }
}

void Executor::on_start(const Start& effect) {
  // begin() makes the record after the machine's effect; a retry finds it.
  StepRecord& step = steps_[effect.step];
  step.id = effect.step;
  step.epoch = effect.epoch;
  step.started = true;
  step.accused = false;
  step.completed = 0;
  step.peers.clear();
  step.everyone.clear();
  step.contributors.clear();
  step.groups.clear();
  step.present.clear();
  for (const Member& member : machine_->participants(effect.step)) {
    step.groups.push_back(member.group);
    const bool self = member.peer == self_;
    Link* link = self ? nullptr : &link_to(member.peer, member.incarnation, 0);
    if (!self) step.everyone.push_back(link);
    if (member.group != machine_->group()) continue;
    if (self) step.rank = static_cast<std::uint16_t>(step.peers.size());
    step.peers.push_back(link);
    step.contributors.push_back(member.peer);
    step.present.emplace_back(member.peer, member.incarnation);
  }
  if (step.begun_with.empty()) step.begun_with = step.present;
  for (const auto& operation : step.operations) start_operation(step, *operation);
  if (!step.sealed) return;
  step.sealed = false;  // seal() again, towards the new participants
  (void)seal(effect.step);
}

void Executor::start_operation(StepRecord& step, Operation& operation) {
  const Posted& posted = operation.posted();
  if (std::string obstacle = obstacle_to(step, posted); !obstacle.empty()) {
    return refuse(step, std::move(obstacle));
  }
  operation.group = machine_->group();
  const Status status = operation.start(step.epoch, plan_for(step, posted), step.peers);
  if (status != Status::ok) {
    host_.suspect({step.epoch, step.id, SuspectCode::local, {self_},
                   "a peer has no memory for the undo copy of an operation"});
    return;
  }
  for (Link* link : step.peers) {
    if (link == nullptr) continue;
    step.control_bytes += post_open(*link, operation);
    // Early frames may have been lost with a lane before this operation was known here.
    if (link->lost_lane) send_haves(*link, operation);
  }
  replay(step, operation);
  completed(step, operation);
}

void Executor::replay(StepRecord& step, Operation& operation) {
  const auto it = early_.find({step.epoch, step.id, operation.posted().tag});
  if (it == early_.end()) return;
  EarlyOperation early = std::move(it->second);
  early_.erase(it);
  for (const auto& [link, theirs] : early.opens) check_open(step, operation, *link, theirs);
  for (EarlyFrame& frame : early.frames) {
    frame.link->early_bytes -= frame.header.length;
    const int from = operation.rank_of(*frame.link);
    Placement placement;
    if (from < 0 || operation.place(frame.header, static_cast<std::uint16_t>(from), placement) !=
                        Status::ok) {
      continue;
    }
    if (placement.kind == Placement::Kind::discard) continue;
    // It is whole already: applied from where it lies.
    placement.kind = Placement::Kind::early;
    placement.buffer = std::move(frame.buffer);
    placement.target = placement.buffer.data();
    const auto rank = static_cast<std::uint16_t>(from);
    if (operation.deliver(frame.header, rank, placement) == Status::ok) continue;
    // Damaged on the way, which shows only now.  The slice must come again, so the lane it came
    // through has to go, and nobody remembers which one that was.
    frame.link->damaged = true;
    frame.link->dirty = true;
  }
}

void Executor::completed(StepRecord& step, Operation& operation) {
  if (!operation.complete() || operation.counted) return;
  operation.counted = true;
  ++step.completed;
  complete_step(step);
}

void Executor::complete_step(StepRecord& step) {
  if (!step.started || !step.sealed || step.completed != step.operations.size()) return;
  std::vector<std::pair<Tag, Digest>> entries;
  for (const auto& operation : step.operations) {
    entries.emplace_back(operation->posted().tag, operation->digest());
  }
  Effects effects;
  machine_->complete(step.id, step.epoch, digest_of(std::move(entries)), effects);
  perform(std::move(effects));
}

/// Slices that found no memory to be folded in; who is refused again tells the coordinator, since
/// nobody would ever send them a second time.
void Executor::feed_starved() {
  if (!environment_.starved) return;
  environment_.starved = false;
  for (auto& [id, step] : steps_) {
    if (!step.started) continue;
    for (const auto& operation : step.operations) {
      const Status fed = operation->feed();
      completed(step, *operation);
      if (!step.started) break;  // that was its last
      if (fed == Status::ok || step.accused) continue;
      step.accused = true;
      host_.suspect({step.epoch, step.id, SuspectCode::local, {self_},
                     "a peer has no memory to fold contributions in"});
    }
  }
}

void Executor::settle_sent() {
  while (!environment_.finished_by_send.empty()) {
    const auto [id, tag] = environment_.finished_by_send.back();
    environment_.finished_by_send.pop_back();
    StepRecord* step = record(id);
    if (step == nullptr || !step->started) continue;
    if (const auto it = step->by_tag.find(tag); it != step->by_tag.end()) {
      completed(*step, *it->second);
    }
  }
}

void Executor::stop(Operation& operation) noexcept {
  operation.stop();
  for (const auto& [name, link] : links_) {
    for (const auto& lane : link->lanes) lane->let_go(operation, buffers_);
  }
}

void Executor::on_undo(StepId id) {
  StepRecord* step = record(id);
  for (const auto& operation : step->operations) {
    stop(*operation);
    operation->undo();
  }
  step->started = false;
  ++step->retries;
}

void Executor::on_end(StepRecord& step) {
  step.started = false;
  step.wire_bytes = step.control_bytes;
  for (const auto& operation : step.operations) {
    stop(*operation);
    step.wire_bytes += operation->wire_bytes;
  }
  step.operations.clear();
  step.by_tag.clear();
  seals_.erase({step.epoch, step.id});
  host_.step_decided(step);
}

}  // namespace pccl
