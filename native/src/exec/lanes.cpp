// native/src/exec/lanes.cpp — lanes: dialling them, ready sockets, those that die or fall silent.
// Ownership: see executor.hpp.
// Threads:   under the engine's turn.
// Errors:    a lane that fails is taken out; its link asks again for what was lost.
#include <algorithm>
#include <optional>
#include <utility>

#include "pccl/executor.hpp"

namespace pccl {
namespace {

constexpr double tick_s = 0.1;
constexpr double strangers_s = 1.0;  // between looks for links that nobody needs
constexpr double company_s = 1.0;   // how often peer control connections are looked after
// Without an acknowledgement that long, and 20 round trips, a lane is given up.
constexpr double lane_patience_s = 1.5;
constexpr double direct_again_s = 30.0;  // while a tunnel works
constexpr double relay_patience_s = 10.0;  // a dial through one ends before, this way or that
// No dial fails before twice that (DialRequest::timeout_s), and one that another has replaced is
// heard of no more after a moment.
constexpr double relay_abandoned_s = 2.5;
constexpr std::size_t links_max = 1024;
constexpr std::size_t lanes_per_link_max = 64;
// Per visit of a lane: enough to pay for the visit, little enough that slices stay in cache and
// nobody else waits long for the turn.
constexpr std::size_t receive_budget = 512 * 1024;
constexpr std::size_t send_budget = 1024 * 1024;
// Over all lanes, then others may have the turn.
constexpr std::size_t pump_budget = 2 * send_budget;

}  // namespace

/// One side dials, so that lanes are not made twice: the one that can, and where both can the one
/// whose name sorts first.
bool Executor::dials(const Link& link) const noexcept {
  return link.endpoint.dialable() && (!dialable_ || self_ < link.peer);
}

void Executor::dial(Link& link, double now_s) {
  if (!link.up()) dial_relay(link, now_s);
  if (!dials(link)) return;
  const std::size_t direct = link.direct_lanes();
  if (link.dialling > 0 || direct >= lanes_wanted_) return;
  if (link.relayed() && now_s < link.direct_again_s) return;
  link.dialling = static_cast<std::uint16_t>(lanes_wanted_ - direct);
  DialRequest request;
  request.peer = link.endpoint;
  request.lanes = link.dialling;
  // A series of its own: what was before it, a tunnel for instance, ends when it comes.
  request.series = direct > 0 ? link.series : ++series_;
  host_.dial(std::move(request), link.lost_lane);
}

void Executor::dial_relay(Link& link, double now_s) {
  if (link.endpoint.host.empty() || !machine_) return;
  const bool meets = !dialable_ && !link.endpoint.dialable();
  if (!meets && !dials(link)) return;
  const Link* via = nullptr;
  if (const auto route = routes_.find(link.peer); route != routes_.end()) {
    for (const Member& member : machine_->view().members) {
      const auto found = links_.find({member.peer, member.incarnation});
      if (member.peer == route->second && found != links_.end()) via = found->second.get();
    }
  } else if (meets) {
    via = meeting_place(link);
  }
  if (via == nullptr || !via->endpoint.dialable()) return;
  // To wait at one that has died, or that nobody is sent to any more, would be to miss the other
  // end where it goes now, for longer than it and the coordinator have patience.
  if (now_s < link.relay_dialling_s && link.relay_dialled == via->peer) return;
  link.relay_dialling_s = now_s + relay_patience_s;
  link.relay_dialled = via->peer;
  DialRequest request;
  request.peer = link.endpoint;
  request.via = via->endpoint;
  request.series = ++series_;
  request.awaits = meets && !(self_ < link.peer);
  host_.dial(std::move(request), true);
}

/// Which third peer two go to that cannot be dialled: one that both find by the same rule, before
/// anybody has seen that their link is down.  Where that one does not help, one of them goes on to
/// the next each time, the other after as many times as there are: so they meet at each of them.
const Link* Executor::meeting_place(const Link& link) const {
  std::vector<std::pair<std::uint64_t, const Link*>> places;
  const auto consider = [&](const Link& third) {
    if (&third == &link || !third.endpoint.dialable()) return;
    std::uint64_t key = 0;  // spreads the pairs over the places
    for (std::size_t i = 0; i < sizeof key; ++i) {
      key = key << 8 | static_cast<std::uint64_t>(self_.bytes[i] ^ link.peer.bytes[i] ^
                                                  third.peer.bytes[i]);
    }
    const std::pair place{key, &third};
    if (std::find(places.begin(), places.end(), place) == places.end()) places.push_back(place);
  };
  for (const Link* third : prepared_) consider(*third);
  for (const Member& member : machine_->view().members) {
    const auto found = links_.find({member.peer, member.incarnation});
    if (found != links_.end()) consider(*found->second);
  }
  if (places.empty()) return nullptr;
  std::sort(places.begin(), places.end());
  const std::size_t count = places.size();
  const std::size_t turn = self_ < link.peer ? link.meeting_turn / count : link.meeting_turn;
  return places[turn % count].second;
}

void Executor::set_routes(Generation generation, const std::vector<Route>& table, double now_s) {
  if (!machine_ || generation < machine_->generation()) return;
  routes_.clear();
  for (const Route& route : table) routes_[route.peer] = route.via;
  for (const Member& member : machine_->view().members) {
    const auto it = links_.find({member.peer, member.incarnation});
    if (it != links_.end()) dial(*it->second, now_s);
  }
}

const PeerEndpoint* Executor::endpoint_of(PeerId peer, Incarnation incarnation) const noexcept {
  const auto it = links_.find({peer, incarnation});
  const bool known = it != links_.end() && !it->second->endpoint.host.empty();
  return known ? &it->second->endpoint : nullptr;
}

/// The control thread knows whether beats go both ways; without them nothing is to be judged.
void Executor::keep_company(Link& link, double now_s) {
  if (!dials(link) || link.direct_lanes() == 0 || now_s < link.company_s) return;
  link.company_s = now_s + company_s;
  DialRequest request;
  request.peer = link.endpoint;
  request.lanes = 0;
  host_.dial(std::move(request), true);
}

template <class Wanted>
void Executor::lose_silent(Link& link, double now_s, const Wanted& wanted) {
  for (std::size_t i = link.lanes.size(); i-- > 0;) {
    Lane& lane = *link.lanes[i];
    if (!wanted(lane)) continue;
    ++counters_.lanes_silent;
    lose(link, lane, Status::closed, now_s);
  }
}

void Executor::look_after(Link& link, double now_s, bool expecting) {
  lose_silent(link, now_s, [&](Lane& lane) {
    lane.look(now_s, expecting);
    return lane.unwatched || lane.cut(now_s, lane_patience_s);
  });
}

/// Through whom the lanes of a link go that has no direct ones; none: that is not known here.
std::optional<PeerId> Executor::carrier(const Link& link) const {
  if (!link.relayed()) return std::nullopt;
  if (link.relay_dialled != PeerId{}) return link.relay_dialled;
  const auto route = routes_.find(link.peer);
  return route == routes_.end() ? std::nullopt : std::optional(route->second);
}

/// A process that was stopped goes on to acknowledge what it was to carry, and one that was put out
/// may carry it: neither shows at the ends.
void Executor::lose_tunnels(double now_s) {
  const std::vector<Member>& members = machine_->view().members;
  for (auto& [name, link] : links_) {
    if (!link->relayed()) continue;
    const std::optional<PeerId> via = carrier(*link);
    if (!via) continue;  // the end that has dialled knows it, and sees to it
    const bool here = std::any_of(members.begin(), members.end(),
                                  [&](const Member& member) { return member.peer == via; });
    const bool planned = std::any_of(prepared_.begin(), prepared_.end(),
                                     [&](const Link* other) { return other->peer == via; });
    if (!here && !planned) lose_silent(*link, now_s, [](const Lane& lane) { return lane.relayed; });
  }
}

void Executor::silent(PeerId peer, Incarnation incarnation, double now_s) {
  for (auto& [name, owned] : links_) {
    Link& link = *owned;
    const bool direct = link.peer == peer && link.incarnation == incarnation;
    const bool through = !direct && carrier(link) == peer;
    if (!link.up() || !(direct || through)) continue;
    // A peer's beats come by the direct way: they say nothing of a tunnel to it.
    lose_silent(link, now_s, [&](const Lane& lane) { return lane.relayed == through; });
    if (!link.up()) link.down_since_s = now_s - down_after_s;  // it has been down for longer
  }
}

void Executor::adopt(const LaneHello& hello, std::unique_ptr<Conduit> conduit,
                     double now_s) {
  if (!links_.contains({hello.peer, hello.incarnation})) {
    if (machine_) make_room_for(hello.peer, now_s);
    if (links_.size() >= links_max) return;
  }
  Link& link = link_to(hello.peer, hello.incarnation, now_s);
  if (link.lanes.size() >= lanes_per_link_max) return;
  link.undialled = false;
  if (hello.relayed) link.relay_dialling_s = 0;
  if (hello.dialled && !hello.relayed && link.dialling > 0) --link.dialling;
  // The dialler counts up: what it opened before this series it has given up, seen here or not.
  if (hello.series < link.series) return;
  if (hello.series > link.series) {
    link.lost_lane = link.lost_lane || link.up();
    while (link.up()) take_out(link, *link.lanes.back());
  }
  link.series = hello.series;
  const std::uint32_t id = next_lane_++;
  Lane& lane = *link.lanes.emplace_back(
      std::make_unique<Lane>(std::move(conduit), id, now_s, hello.relayed, shared_memory_));
  lane_links_[id] = &link;
  host_.watch(lane);
  if (hello.relayed) link.direct_again_s = now_s + direct_again_s;
  if (link.lost_lane) resynchronise(link, true);
  link.dirty = true;
  check_links_up();
  if (lane.holds_received()) ready(link, lane, true, false, now_s);
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

std::size_t Executor::pump_link(Link& link, double now_s) {
  std::size_t moved = 0;
  link.dirty = false;
  if (std::exchange(link.damaged, false)) {
    while (link.up()) lose(link, *link.lanes.back(), Status::protocol, now_s);
  }
  for (std::size_t i = 0; i < link.lanes.size(); ++i) {
    Lane& lane = *link.lanes[i];
    if (lane.socket_full()) continue;
    const std::uint64_t before = lane.bytes_sent;
    const std::uint64_t before_by_memory = lane.ring_bytes_sent;
    const Status status = lane.pump(link, send_budget);
    const std::uint64_t by_memory = lane.ring_bytes_sent - before_by_memory;
    counters_.bytes_by_memory += by_memory;
    moved += lane.bytes_sent - before + by_memory;
    if (status != Status::ok) {
      lose(link, lane, status, now_s);
      --i;
      continue;
    }
    if (lane.socket_full()) {
      host_.want_write(lane, true);
    } else if (lane.has_unsent() || (!lane.blocked() && link.has_output())) {
      link.dirty = true;
    }
  }
  // All lanes full: the poller says when one takes bytes again, the other side when its ring does.
  const bool open = std::any_of(link.lanes.begin(), link.lanes.end(), [](const auto& lane) {
    return !lane->socket_full() && (lane->has_unsent() || !lane->blocked());
  });
  link.dirty = link.dirty && open;
  return moved;
}

bool Executor::pump(double now_s) {
  bool more = false;
  std::size_t moved = 0;
  auto next = links_.upper_bound(pumped_last_);
  for (std::size_t left = links_.size(); left > 0 && moved < pump_budget; --left, ++next) {
    if (next == links_.end()) next = links_.begin();
    if (!next->second->dirty) continue;
    pumped_last_ = next->first;
    moved += pump_link(*next->second, now_s);
  }
  settle_sent();  // may queue DONEs: then there is more
  for (const auto& [name, link] : links_) {
    const bool open = std::any_of(link->lanes.begin(), link->lanes.end(),
                                  [](const auto& lane) { return !lane->socket_full(); });
    more = more || (link->dirty && open);
  }
  return more;
}

void Executor::take_out(Link& link, Lane& lane) {
  ++counters_.lanes_lost;
  host_.unwatch(lane);
  lane_links_.erase(lane.id());
  lane.drain([](const OutgoingFrame& frame) { frame.operation->sent(frame); });
  link.early_bytes -= lane.in_progress(Placement::Kind::early);
  link.mail->staging -= lane.in_progress(Placement::Kind::staged);
  std::erase_if(link.lanes, [&](const auto& held) { return held.get() == &lane; });
}

void Executor::lose(Link& link, Lane& lane, Status why, double now_s) {
  if (why == Status::protocol) ++counters_.lanes_refused;
  take_out(link, lane);
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
  letters_.expire(now_s);
  feed_starved();
  mark_needed(now_s);
  bool expecting = false;
  for (auto& [id, step] : steps_) {
    if (step.state != StepState::open || !step.started) continue;
    expecting = true;
    for (Link* link : step.everyone) dial(*link, now_s);  // also of a peer that is leaving
  }
  for (const auto& [name, link] : links_) look_after(*link, now_s, expecting);
  dial_planned(now_s);
  for (const Member& member : machine_->view().members) {
    const auto it = links_.find({member.peer, member.incarnation});
    if (it == links_.end() || member.peer == self_) continue;
    Link& link = *it->second;
    link.needed_s = now_s;
    keep_company(link, now_s);
    dial(link, now_s);
  }
  // To itself a member has no link.
  if (links_.size() >= machine_->view().members.size() + prepared_.size() &&
      now_s >= next_strangers_s_) {
    next_strangers_s_ = now_s + strangers_s;
    drop_strangers(now_s);
  }
}

void Executor::dial_failed(PeerId peer, Incarnation incarnation, bool relayed, double now_s) {
  const auto it = links_.find({peer, incarnation});
  if (it == links_.end()) return;
  if (relayed) {
    // The one under way is not given up so soon: this is of one before it, which it has replaced.
    const double begun_s = it->second->relay_dialling_s - relay_patience_s;
    if (now_s < begun_s + relay_abandoned_s) return;
    it->second->relay_dialling_s = 0;
    ++it->second->meeting_turn;
  } else {
    it->second->dialling = 0;
    it->second->undialled = true;
    it->second->direct_again_s = now_s + direct_again_s;
  }
}

}  // namespace pccl
