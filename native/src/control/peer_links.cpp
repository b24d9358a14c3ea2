// native/src/control/peer_links.cpp — beats to and from peers.
// Ownership: see peer_links.hpp.
// Threads:   the control thread only.
// Errors:    see peer_links.hpp.
#include "control/peer_links.hpp"

#include <algorithm>
#include <iterator>
#include <utility>
#include <vector>

#include "pccl/sockets.hpp"

namespace pccl {
namespace {

constexpr double round_trips_min = 20;  // of any patience: a lost beat is repeated by TCP
constexpr std::size_t links_max = 2 * frames::peers_max;  // a pair that dialled at once has two
constexpr std::size_t strange_incarnations_max = 2;  // as of lanes: one may be about to come

}  // namespace

void PeerLinks::adopt(FramedSocket socket, PeerId peer, Incarnation incarnation, bool dialled,
                      double now_s) {
  if (!dialled) {
    std::erase_if(links_, [&](const auto& entry) {
      const Link& old = entry.second;
      return !old.dialled && old.peer == peer && old.incarnation == incarnation;
    });
  }
  // Whom this side dials it knows.
  const bool strange = !dialled && !known(peer, incarnation);
  if (strange) make_room_for(peer);
  const std::uint64_t serial = ++context_.serial;
  set_liveness_options(socket.fd());
  socket.set_body_bytes_max(frames::read_body_bytes_max);
  if (context_.poller.modify(socket.fd(), ready::read, token_of(Part::peers, serial)) !=
      Status::ok) {
    return;
  }
  if (links_.empty()) next_beat_s_ = now_s + context_.config.peer_beat_s;
  Link& link = links_[serial];
  link = Link{std::move(socket), peer, incarnation, dialled, now_s,
              strange ? now_s : no_deadline};
  if (!beat(serial, link, context_.host.status())) links_.erase(serial);
}

bool PeerLinks::known(PeerId peer, Incarnation incarnation) const {
  PeerEndpoint endpoint;
  return context_.host.endpoint_of(peer, incarnation, endpoint);
}

/// The eldest of those that nobody has heard of goes.
void PeerLinks::make_room_for(PeerId peer) {
  auto eldest = links_.end();
  std::size_t count = 0;
  for (auto link = links_.begin(); link != links_.end(); ++link) {
    Link& one = link->second;
    if (one.peer != peer || !one.strange()) continue;
    if (known(peer, one.incarnation)) {  // by now
      one.strange_since_s = no_deadline;
      continue;
    }
    ++count;
    if (eldest == links_.end() || one.strange_since_s < eldest->second.strange_since_s) {
      eldest = link;
    }
  }
  if (count >= strange_incarnations_max) links_.erase(eldest);
}

void PeerLinks::drop_strangers(double now_s) {
  for (auto& [serial, link] : links_) {
    if (link.strange() && known(link.peer, link.incarnation)) link.strange_since_s = no_deadline;
  }
  std::erase_if(links_, [&](const auto& entry) {
    return now_s - entry.second.strange_since_s >= context_.config.stranger_age_s;
  });
}

bool PeerLinks::has(PeerId peer, Incarnation incarnation) const noexcept {
  for (const auto& [serial, link] : links_) {
    if (link.peer == peer && link.incarnation == incarnation) return true;
  }
  return false;
}

bool PeerLinks::full() const noexcept { return links_.size() >= links_max; }

void PeerLinks::forget(PeerId peer, Incarnation incarnation) noexcept {
  std::erase_if(links_, [&](const auto& entry) {
    return entry.second.peer == peer && entry.second.incarnation == incarnation;
  });
}

bool PeerLinks::beat(std::uint64_t serial, Link& link, const HeartbeatStatus& status) {
  const frames::PeerBeat beat{status.epoch, status.watermark, status.progress};
  return context_.send(link.socket, token_of(Part::peers, serial), beat) == Status::ok;
}

/// By the one that was heard last: of two one may be a relic.
bool PeerLinks::call(PeerId peer, Incarnation incarnation, const frames::Call& call) {
  auto best = links_.end();
  for (auto link = links_.begin(); link != links_.end(); ++link) {
    const Link& one = link->second;
    if (one.peer != peer || one.incarnation != incarnation) continue;
    if (best == links_.end() || one.heard_s > best->second.heard_s) best = link;
  }
  return best != links_.end() && context_.send(best->second.socket,
                                               token_of(Part::peers, best->first),
                                               call) == Status::ok;
}

bool PeerLinks::hear(std::uint64_t serial, Link& link, std::uint32_t bits, double now_s) {
  if ((bits & ready::write) != 0 &&
      context_.flush(link.socket, token_of(Part::peers, serial)) != Status::ok) {
    return false;
  }
  // Of what the conduit holds no poller tells.
  for (int i = 0; i < frames_per_turn_max || link.socket.conduit().holds_received(); ++i) {
    std::span<const std::byte> body;
    const Status status = link.socket.read_frame(body);
    if (status == Status::would_block) return (bits & ready::error) == 0;
    frames::Frame frame;
    if (status != Status::ok || frames::decode(body, frame) != Status::ok) return false;
    link.heard_s = now_s;
    if (const auto* beat = std::get_if<frames::PeerBeat>(&frame)) {
      context_.host.peer_beat(link.peer, beat->epoch, beat->watermark);
    } else if (const auto* call = std::get_if<frames::Call>(&frame)) {
      calls_.push_back({link.peer, link.incarnation, *call});
    } else {
      return false;
    }
  }
  return true;
}

void PeerLinks::on_ready(std::uint64_t serial, std::uint32_t bits, double now_s) {
  const auto found = links_.find(serial);
  if (found != links_.end() && !hear(serial, found->second, bits, now_s)) links_.erase(found);
}

/// This thread was stopped, or starved: so long nobody could have been heard.
void PeerLinks::forgive_lag(double now_s) noexcept {
  const double away_s = now_s - std::exchange(ran_s_, now_s);
  if (away_s < 2 * context_.config.peer_beat_s) return;
  for (auto& [serial, link] : links_) link.heard_s = std::min(now_s, link.heard_s + away_s);
}

bool PeerLinks::silent(const Link& link, double now_s) const noexcept {
  const double quiet_s = now_s - link.heard_s;
  if (quiet_s < context_.config.peer_silence_s) return false;
  return quiet_s >= round_trips_min * path_state(link.socket.fd()).rtt_s;
}

void PeerLinks::judge(double now_s) {
  std::vector<std::pair<PeerId, Incarnation>> lost;
  for (const auto& candidate : links_) {
    const Link& link = candidate.second;
    // Of two connections one may be a relic.
    const bool heard = std::any_of(links_.begin(), links_.end(), [&](const auto& entry) {
      const Link& other = entry.second;
      return other.peer == link.peer && other.incarnation == link.incarnation &&
             !silent(other, now_s);
    });
    if (!heard) lost.emplace_back(link.peer, link.incarnation);
  }
  for (const auto& [peer, incarnation] : lost) {
    if (!has(peer, incarnation)) continue;  // named twice
    forget(peer, incarnation);
    context_.host.peer_silent(peer, incarnation);
  }
}

void PeerLinks::on_time(double now_s) {
  forgive_lag(now_s);
  if (links_.empty() || now_s < next_beat_s_) return;
  judge(now_s);
  drop_strangers(now_s);
  next_beat_s_ = now_s + std::max(context_.config.peer_beat_s, interval_s_min);
  const HeartbeatStatus status = context_.host.status();
  for (auto link = links_.begin(); link != links_.end();) {
    link = beat(link->first, link->second, status) ? std::next(link) : links_.erase(link);
  }
}

}  // namespace pccl
