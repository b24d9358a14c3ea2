// native/src/exec/frames.cpp — where incoming frames go, and what control frames mean.
// Ownership: see executor.hpp.
// Threads:   under the engine's turn.
// Errors:    Status::protocol ends the lane a frame came on.
#include <algorithm>
#include <array>
#include <cstring>

#include "pccl/executor.hpp"
#include "pccl/text.hpp"

namespace pccl {
namespace {

constexpr std::size_t early_operations_max = 65536;
constexpr std::size_t early_seals_max = 1024;

std::string pair_sizes(const OpenBody& body) {
  return " with " + std::to_string(body.sends) + " elements for the other and " +
         std::to_string(body.receives) + " expected of it";
}

}  // namespace

Operation* Executor::find(const FrameHeader& header, StepRecord** found) noexcept {
  StepRecord* step = record(header.step);
  *found = step;
  if (step == nullptr || !step->started || step->epoch != header.epoch) return nullptr;
  const auto it = step->by_tag.find(header.tag);
  return it == step->by_tag.end() ? nullptr : it->second;
}

Status Executor::place(Link& link, const FrameHeader& header, Placement& placement) {
  ++counters_.frames_received;
  if (abandoned_) return Status::ok;
  if (header.type == FrameType::message) {
    const Status status = letters_.place(*link.mail, header, link.early_bytes, eager_link_bytes,
                                         buffers_, placement);
    if (placement.kind == Placement::Kind::discard) ++counters_.frames_discarded;
    return status;
  }
  if (header.type != FrameType::data) {
    placement.kind = Placement::Kind::control;
    // Its body may arrive in pieces while another lane's does: memory of its own.
    placement.buffer = buffers_.take(std::max<std::uint32_t>(header.length, 1));
    placement.target = placement.buffer.data();
    return placement.buffer ? Status::ok : Status::exhausted;
  }
  StepRecord* step = nullptr;
  if (Operation* operation = find(header, &step)) {
    const int from = operation->rank_of(link);
    if (from < 0) return Status::protocol;
    const Status status = operation->place(header, static_cast<std::uint16_t>(from), placement);
    if (status == Status::ok && placement.kind == Placement::Kind::discard) {
      ++counters_.frames_discarded;
    }
    return status;
  }
  return stage(link, header, placement);
}

Status Executor::stage(Link& link, const FrameHeader& header, Placement& placement) {
  const bool fenced = machine_ && machine_->frozen() && header.epoch <= machine_->view().epoch;
  if (fenced || over(header)) {
    ++counters_.frames_discarded;
    return Status::ok;
  }
  // A correct peer keeps to its eager budget, so these bounds are never met by one.
  if (link.early_bytes + header.length > eager_link_bytes) return Status::protocol;
  const Key key{header.epoch, header.step, header.tag};
  const auto it = early_.find(key);
  if (it == early_.end() && early_.size() >= early_operations_max) return Status::exhausted;
  if (it != early_.end()) {
    std::uint64_t bytes = header.length;
    for (const EarlyFrame& frame : it->second.frames) {
      if (frame.link == &link) bytes += frame.header.length;
    }
    if (bytes > eager_operation_bytes) return Status::protocol;
  }
  placement.buffer = buffers_.take(header.length);
  if (!placement.buffer) return Status::exhausted;
  placement.kind = Placement::Kind::early;
  placement.target = placement.buffer.data();
  link.early_bytes += header.length;
  ++counters_.frames_early;
  return Status::ok;
}

Status Executor::delivered(Link& link, const FrameHeader& header, Placement& placement) {
  if (abandoned_ || placement.kind == Placement::Kind::discard) return Status::ok;
  if (header.type == FrameType::message) return letters_.delivered(*link.mail, header, placement);
  switch (placement.kind) {
    case Placement::Kind::discard:
    case Placement::Kind::staged: return Status::ok;
    case Placement::Kind::control: return on_control(link, header, placement);
    case Placement::Kind::early: {
      StepRecord* step = nullptr;
      Operation* operation = find(header, &step);
      if (operation == nullptr) {
        if (over(header)) {
          link.early_bytes -= header.length;  // its step ended while it was on its way
          return Status::ok;
        }
        early_[{header.epoch, header.step, header.tag}].frames.push_back(
            {&link, header, std::move(placement.buffer)});
        return Status::ok;
      }
      // Posted while the payload was on its way.
      link.early_bytes -= header.length;
      const int from = operation->rank_of(link);
      Placement actual;
      if (from < 0) return Status::protocol;
      const auto rank = static_cast<std::uint16_t>(from);
      const Status status = operation->place(header, rank, actual);
      if (status != Status::ok || actual.kind == Placement::Kind::discard) return status;
      actual.kind = Placement::Kind::early;
      actual.buffer = std::move(placement.buffer);
      actual.target = actual.buffer.data();
      const Status applied = operation->deliver(header, rank, actual);
      completed(*step, *operation);
      return applied;
    }
    case Placement::Kind::tile:
    case Placement::Kind::direct: {
      StepRecord* step = nullptr;
      Operation* operation = find(header, &step);
      if (operation == nullptr || operation != placement.operation) return Status::ok;
      const auto from = static_cast<std::uint16_t>(operation->rank_of(link));
      const Status status = operation->deliver(header, from, placement);
      completed(*step, *operation);
      return status;
    }
  }
  return Status::ok;
}

Status Executor::on_control(Link& link, const FrameHeader& header, const Placement& placement) {
  const std::byte* body = placement.target;
  // Damaged on the way.  Believed, a DONE would accuse an honest peer; so it costs the lane, and
  // all of it is said again by another one.
  if (!intact(header, body)) return Status::protocol;
  switch (header.type) {
    case FrameType::open: {
      OpenBody theirs;
      const auto bytes = std::span<const std::byte, open_bytes>(body, open_bytes);
      if (const Status status = decode(bytes, theirs); status != Status::ok) return status;
      return on_open(link, header, theirs);
    }
    case FrameType::seal: {
      SealBody seal;
      decode(std::span<const std::byte, seal_bytes>(body, seal_bytes), seal);
      if (over(header)) return Status::ok;
      if (seals_.size() >= early_seals_max) return Status::ok;
      auto& seals = seals_[{header.epoch, header.step}];
      if (std::erase_if(seals, [&](const EarlySeal& known) { return known.link == &link; }) == 0) {
        ++counters_.controls_handled;
      }
      seals.push_back({&link, seal});
      StepRecord* step = record(header.step);
      if (step != nullptr && step->started && step->epoch == header.epoch) check_seals(*step);
      return Status::ok;
    }
    case FrameType::done: {
      DoneBody done;
      decode(std::span<const std::byte, done_bytes>(body, done_bytes), done);
      if (!machine_) return Status::ok;
      // Said again after a lane's death it is no news, and must not look like progress.
      if (!machine_->has_done(header.epoch, header.step, link.peer)) ++counters_.controls_handled;
      Effects effects;
      machine_->done(link.peer, header.step, header.epoch, done.manifest, done.digest, effects);
      perform(std::move(effects));
      return Status::ok;
    }
    case FrameType::have: {
      StepRecord* step = nullptr;
      if (Operation* operation = find(header, &step)) {
        const int from = operation->rank_of(link);
        if (from >= 0) operation->have(header, static_cast<std::uint16_t>(from), body);
      }
      return Status::ok;
    }
    case FrameType::ask:
      if (link.flooded()) return Status::protocol;
      resynchronise(link, false);
      return Status::ok;
    case FrameType::data:
    case FrameType::message: break;
    default: return hear_of_letter(link, header, body);
  }
  return Status::protocol;
}

Status Executor::on_open(Link& link, const FrameHeader& header, const OpenBody& theirs) {
  StepRecord* step = nullptr;
  if (Operation* operation = find(header, &step)) {
    check_open(*step, *operation, link, theirs);
    check_seals(*step);
    completed(*step, *operation);
    return Status::ok;
  }
  if (over(header)) return Status::ok;
  const Key key{header.epoch, header.step, header.tag};
  if (early_.size() >= early_operations_max && !early_.contains(key)) return Status::exhausted;
  auto& opens = early_[key].opens;
  if (std::erase_if(opens, [&](const auto& known) { return known.first == &link; }) == 0) {
    ++counters_.controls_handled;
  }
  opens.emplace_back(&link, theirs);
  if (step != nullptr && step->started && step->epoch == header.epoch) check_seals(*step);
  return Status::ok;
}

void Executor::check_open(StepRecord& step, Operation& operation, Link& link,
                          const OpenBody& theirs) {
  const int from = operation.rank_of(link);
  if (from < 0 || !operation.running()) return;
  const auto rank = static_cast<std::uint16_t>(from);
  const OpenBody ours = operation.open_body(rank);
  const bool sizes_differ = ours.sends != theirs.receives || ours.receives != theirs.sends;
  if (theirs.descriptor != ours.descriptor || sizes_differ) {
    const auto words = [&](const OpenBody& body) {
      return describe(body.descriptor) + (body.descriptor.uneven ? pair_sizes(body) : "");
    };
    accuse(step, link,
           "tag " + std::to_string(operation.posted().tag) + ": peer " + short_name(self_) +
               " posted " + words(ours) + ", peer " + short_name(link.peer) + " posted " +
               words(theirs));
    return;
  }
  if (operation.open(rank)) ++counters_.controls_handled;
  link.open(operation.queue(rank));
}

void Executor::check_seals(StepRecord& step) {
  const auto it = seals_.find({step.epoch, step.id});
  if (it == seals_.end() || !step.sealed || !step.started) return;
  for (const EarlySeal& seal : it->second) {
    const bool ours = std::find(step.peers.begin(), step.peers.end(), seal.link) !=
                      step.peers.end();
    if (!ours || seal.body.manifest == step.manifest) continue;
    // Which tag differs is known once all its OPENs are here; they may come by other lanes.
    std::size_t opened = 0;
    std::string text;
    for (const auto& operation : step.operations) {
      const int from = operation->rank_of(*seal.link);
      if (from < 0) return;
      if (operation->opened(static_cast<std::uint16_t>(from))) {
        ++opened;
      } else {
        text = "tag " + std::to_string(operation->posted().tag) + ": peer " + short_name(self_) +
               " posted " + describe(operation->posted().descriptor) + ", peer " +
               short_name(seal.link->peer) + " posted nothing" + (text.empty() ? "" : "; " + text);
      }
    }
    for (const auto& [key, early] : early_) {
      if (std::get<0>(key) != step.epoch || std::get<1>(key) != step.id) continue;
      for (const auto& [link, theirs] : early.opens) {
        if (link != seal.link) continue;
        ++opened;
        text = "tag " + std::to_string(std::get<2>(key)) + ": peer " + short_name(self_) +
               " posted nothing, peer " + short_name(link->peer) + " posted " +
               describe(theirs.descriptor) +
               (text.empty() ? "" : "; " + text);
      }
    }
    if (opened < seal.body.operations) continue;
    accuse(step, *seal.link, std::move(text));
  }
}

void Executor::accuse(StepRecord& step, Link& link, std::string text) {
  if (step.accused) return;
  step.accused = true;
  Suspect suspicion{step.epoch, step.id, SuspectCode::descriptor, {link.peer}, std::move(text)};
  suspicion.name_newcomers(self_, machine_->newcomers_to(step.id));
  host_.suspect(std::move(suspicion));
}

/// The frame is of an attempt that ended here: lanes are not in order among each other.
bool Executor::over(const FrameHeader& header) noexcept {
  if (!machine_) return false;
  const StepRecord* step = record(header.step);
  const bool ended = step == nullptr ? machine_->decided(header.step)
                                     : step->state != StepState::open;
  if (ended) return true;
  // A planned view leaves the attempts of the one before it running.
  const bool running = step != nullptr && step->started && step->epoch == header.epoch;
  return header.epoch < machine_->view().epoch && !running;
}

void Executor::send_haves(Link& link, const Operation& operation) {
  const int from = operation.rank_of(link);
  if (from < 0 || !operation.running()) return;
  operation.report_received(static_cast<std::uint16_t>(from),
                            [&](const FrameHeader& header, std::span<const std::byte> bitmap) {
                              link.post(header, bitmap, buffers_);
                            });
}

void Executor::send_haves(Link& link) {
  for (auto& [id, step] : steps_) {
    if (!step.started) continue;
    for (const auto& operation : step.operations) send_haves(link, *operation);
  }
}

std::size_t Executor::post_open(Link& link, const Operation& operation) {
  const int to = operation.rank_of(link);
  if (to < 0 || !operation.running()) return 0;
  std::array<std::byte, open_bytes> body;
  encode(operation.open_body(static_cast<std::uint16_t>(to)), body);
  link.post(operation.header(FrameType::open), body, buffers_);
  return header_bytes + body.size();
}

std::size_t Executor::post_seal(Link& link, const StepRecord& step) {
  FrameHeader header;
  header.type = FrameType::seal;
  header.epoch = step.epoch;
  header.step = step.id;
  header.group = machine_->group();
  std::array<std::byte, seal_bytes> body;
  encode(SealBody{step.manifest, step.operations.size()}, body);
  link.post(header, body, buffers_);
  return header_bytes + body.size();
}

std::size_t Executor::post_done(Link& link, const SendDone& done) {
  FrameHeader header;
  header.type = FrameType::done;
  header.epoch = done.epoch;
  header.step = done.step;
  header.group = machine_->group();
  std::array<std::byte, done_bytes> body;
  encode(DoneBody{done.manifest, done.digest}, body);
  link.post(header, body, buffers_);
  return header_bytes + body.size();
}

/// A DONE goes again to whom it went: what became of a step concerns nobody who was not in it, such
/// as a peer that was put out and still knows how to open a lane.
void Executor::say_done_again(Link& link) {
  for (const SendDone& done : machine_->sent()) {
    const std::pair attempt{done.epoch, done.step};
    if (std::find(link.told.begin(), link.told.end(), attempt) != link.told.end()) {
      (void)post_done(link, done);
    }
  }
}

void Executor::resynchronise(Link& link, bool ask) {
  // Everything a dead lane may have swallowed is said again: all of it may be heard twice.
  for (auto& [id, step] : steps_) {
    const auto among = [&](const std::vector<Link*>& links) {
      return std::find(links.begin(), links.end(), &link) != links.end();
    };
    if (!step.started || !among(step.everyone)) continue;
    if (among(step.peers)) {
      for (const auto& operation : step.operations) (void)post_open(link, *operation);
    }
    if (step.sealed) (void)post_seal(link, step);
  }
  if (machine_) say_done_again(link);
  send_haves(link);
  letters_.resynchronise(*link.mail);
  if (!ask) return;
  FrameHeader header;
  header.type = FrameType::ask;
  link.post(header, {}, buffers_);
}

}  // namespace pccl
