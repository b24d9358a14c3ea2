// native/src/exec/links.cpp — links and lanes: views, dialling, ready sockets, lost lanes.
// Ownership: see executor.hpp.
// Threads:   under the engine's turn.
// Errors:    a lane that fails is taken out; its link asks again for what was lost.
#include <algorithm>

#include "pccl/executor.hpp"

namespace pccl {
namespace {

// A newcomer's lanes may arrive before the view that names it; one that no view names goes.
constexpr double stranger_age_s = 15.0;
constexpr double tick_s = 0.1;
constexpr double company_s = 1.0;   // how often peer control connections are looked after
// Without an acknowledgement that long, and 20 round trips, a lane is given up.
constexpr double lane_patience_s = 1.5;
constexpr std::size_t links_max = 1024;
constexpr std::size_t lanes_per_link_max = 64;
// Per visit of a lane: enough to pay for the visit, little enough that slices stay in cache and
// nobody else waits long for the turn.
constexpr std::size_t receive_budget = 512 * 1024;
constexpr std::size_t send_budget = 1024 * 1024;

}  // namespace

Link& Executor::link_to(PeerId peer, Incarnation incarnation, double now_s) {
  auto& slot = links_[{peer, incarnation}];
  if (!slot) slot = std::make_unique<Link>(peer, incarnation, now_s);
  return *slot;
}

Link* Executor::link_of_lane(std::uint32_t id) noexcept {
  const auto it = lane_links_.find(id);
  return it == lane_links_.end() ? nullptr : it->second;
}

void Executor::learn(const std::vector<MemberEntry>& members, double now_s) {
  for (const MemberEntry& entry : members) {
    if (entry.member.peer == self_) continue;
    Link& link = link_to(entry.member.peer, entry.member.incarnation, now_s);
    link.endpoint = entry.endpoint;
    link.same_host = entry.host_key == host_key_;
    dial(link);
  }
}

void Executor::dial(Link& link) {
  // One side dials, so that lanes are not made twice: the one whose name sorts first.
  if (!(self_ < link.peer) || link.endpoint.host.empty() || link.dialling > 0) return;
  if (link.lanes.size() >= lanes_wanted_) return;
  link.dialling = static_cast<std::uint16_t>(lanes_wanted_ - link.lanes.size());
  host_.dial(link.endpoint, link.dialling, link.lost_lane);
}

/// The control thread knows whether beats go both ways; without them nothing is to be judged.
void Executor::keep_company(Link& link, double now_s) {
  if (!(self_ < link.peer) || !link.up() || now_s < link.company_s) return;
  link.company_s = now_s + company_s;
  host_.dial(link.endpoint, 0, true);
}

void Executor::look_after(Link& link, double now_s) {
  for (std::size_t i = link.lanes.size(); i-- > 0;) {
    Lane& lane = *link.lanes[i];
    lane.look(now_s);
    if (!lane.cut(now_s, lane_patience_s)) continue;
    ++counters_.lanes_silent;
    lose(link, lane, Status::closed, now_s);
  }
}

void Executor::silent(PeerId peer, Incarnation incarnation, double now_s) {
  const auto it = links_.find({peer, incarnation});
  if (it == links_.end()) return;
  Link& link = *it->second;
  if (!link.up()) return;
  while (link.up()) {
    ++counters_.lanes_silent;
    lose(link, *link.lanes.back(), Status::closed, now_s);
  }
  link.down_since_s = now_s - down_after_s;  // it has been down for longer than that
}

void Executor::prepare(Epoch epoch, const std::vector<MemberEntry>& members, double now_s) {
  learn(members, now_s);
  preparing_ = epoch;
  prepared_.clear();
  for (const MemberEntry& entry : members) {
    if (entry.member.peer == self_) continue;
    prepared_.push_back(&link_to(entry.member.peer, entry.member.incarnation, now_s));
  }
  check_links_up();
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
  learn(members, now_s);
  Effects effects;
  machine_->activate(view, step, name_hash, effects);
  perform(std::move(effects));
}

void Executor::cancel_plan(Generation generation, Epoch epoch) {
  if (!machine_ || abandoned_) return;
  if (preparing_ == epoch) preparing_ = 0;
  Effects effects;
  machine_->cancel_plan(generation, epoch, effects);
  perform(std::move(effects));
}

Report Executor::fence(Generation generation, Epoch target) {
  if (!machine_) return {generation, target, 0, false, 0, 0, 0, {}, {}};
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
  learn(members, now_s);
  Effects effects;
  const Status status = machine_->install(view, committed_below, decisions, effects);
  perform(std::move(effects));
  purge_early();
  drop_strangers(now_s);
  return status;
}

void Executor::exclude(Generation generation, Epoch epoch, const std::string& text) {
  if (!machine_ || abandoned_) return;
  Effects effects;
  machine_->exclude(generation, epoch, text, effects);
  perform(std::move(effects));
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

void Executor::drop_strangers(double now_s) {
  const auto& members = machine_->view().members;
  mark_needed(now_s);
  for (auto it = links_.begin(); it != links_.end();) {
    Link& link = *it->second;
    const bool member = std::any_of(members.begin(), members.end(), [&](const Member& m) {
      return m.peer == link.peer && m.incarnation == link.incarnation;
    });
    // Until the next plan: a newcomer is in no view yet while its activation is pending.
    const bool planned = std::find(prepared_.begin(), prepared_.end(), &link) != prepared_.end();
    if (member || planned) link.needed_s = now_s;
    if (now_s - link.needed_s < stranger_age_s) {
      ++it;
      continue;
    }
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
    host_.forget(link.peer, link.incarnation);
    it = links_.erase(it);
  }
}

void Executor::adopt(const LaneHello& hello, Fd socket, bool loopback, double now_s) {
  if (links_.size() >= links_max && !links_.contains({hello.peer, hello.incarnation})) return;
  Link& link = link_to(hello.peer, hello.incarnation, now_s);
  if (link.lanes.size() >= lanes_per_link_max) return;
  const std::uint32_t id = next_lane_++;
  Lane& lane = *link.lanes.emplace_back(std::make_unique<Lane>(std::move(socket), id, now_s));
  lane_links_[id] = &link;
  link.loopback = loopback;
  host_.watch(lane);
  if (hello.dialled && link.dialling > 0) --link.dialling;
  if (link.lost_lane) resynchronise(link, true);
  link.dirty = true;
  check_links_up();
}

void Executor::ready(Link& link, Lane& lane, bool readable, bool writable, double now_s) {
  Status status = Status::ok;
  if (writable) {
    lane.unblock();
    host_.want_write(lane, false);
    link.dirty = true;
  }
  if (readable) {
    bool more = false;  // the poller tells again
    status = lane.receive(link, *this, receive_budget, more);
  }
  if (status != Status::ok) lose(link, lane, status, now_s);
}

bool Executor::pump(double now_s) {
  bool more = false;
  for (auto& [name, owned] : links_) {
    Link& link = *owned;
    if (!link.dirty) continue;
    link.dirty = false;
    for (std::size_t i = 0; i < link.lanes.size(); ++i) {
      Lane& lane = *link.lanes[i];
      if (lane.blocked()) continue;
      const Status status = lane.pump(link, send_budget);
      if (status != Status::ok) {
        lose(link, lane, status, now_s);
        --i;
        continue;
      }
      if (lane.blocked()) {
        host_.want_write(lane, true);
      } else if (!lane.idle() || link.has_output()) {
        link.dirty = true;
      }
    }
    // All lanes full: the poller says when one takes bytes again.
    const bool open = std::any_of(link.lanes.begin(), link.lanes.end(),
                                  [](const auto& lane) { return !lane->blocked(); });
    link.dirty = link.dirty && open;
  }
  settle_sent();  // may queue DONEs: then there is more
  for (const auto& [name, link] : links_) {
    const bool open = std::any_of(link->lanes.begin(), link->lanes.end(),
                                  [](const auto& lane) { return !lane->blocked(); });
    more = more || (link->dirty && open);
  }
  return more;
}

void Executor::lose(Link& link, Lane& lane, Status why, double now_s) {
  ++counters_.lanes_lost;
  if (why == Status::protocol) ++counters_.lanes_refused;
  host_.unwatch(lane);
  lane_links_.erase(lane.id());
  lane.drain([](const OutgoingFrame& frame) { frame.operation->sent(frame); });
  link.early_bytes -= lane.early_in_progress();
  std::erase_if(link.lanes, [&](const auto& held) { return held.get() == &lane; });
  link.lost_lane = true;
  if (link.lanes.empty()) {
    link.down_since_s = now_s;
  } else {
    resynchronise(link, true);
  }
}

void Executor::tick(double now_s) {
  if (now_s < next_tick_s_) return;
  next_tick_s_ = now_s + tick_s;
  if (!machine_) return;
  mark_needed(now_s);
  for (const auto& [name, link] : links_) look_after(*link, now_s);
  for (const Member& member : machine_->view().members) {
    const auto it = links_.find({member.peer, member.incarnation});
    if (it == links_.end() || member.peer == self_) continue;
    Link& link = *it->second;
    link.needed_s = now_s;
    keep_company(link, now_s);
    dial(link);
  }
}

void Executor::dial_failed(PeerId peer, Incarnation incarnation) {
  const auto it = links_.find({peer, incarnation});
  if (it != links_.end()) it->second->dialling = 0;
}

bool Executor::prepares(PeerId peer, Incarnation incarnation) const noexcept {
  return std::any_of(prepared_.begin(), prepared_.end(), [&](const Link* link) {
    return link->peer == peer && link->incarnation == incarnation;
  });
}

void Executor::abandon() {
  abandoned_ = true;
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

std::size_t Executor::lane_count() const noexcept {
  std::size_t count = 0;
  for (const auto& [name, link] : links_) count += link->lanes.size();
  return count;
}

}  // namespace pccl
