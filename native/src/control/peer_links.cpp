// native/src/control/peer_links.cpp — beats to and from peers.
// Ownership: see peer_links.hpp.
// Threads:   the control thread only.
// Errors:    see peer_links.hpp.
#include "control/peer_links.hpp"

#include <algorithm>
#include <iterator>

#include "pccl/sockets.hpp"

namespace pccl {
namespace {

constexpr std::size_t links_max = 2 * frames::peers_max;  // a pair that dialled at once has two

}  // namespace

void PeerLinks::adopt(FramedSocket socket, PeerId peer, Incarnation incarnation, bool dialled,
                      double now_s) {
  if (!dialled) {
    std::erase_if(links_, [&](const auto& entry) {
      const Link& old = entry.second;
      return !old.dialled && old.peer == peer && old.incarnation == incarnation;
    });
  }
  const std::uint64_t serial = ++context_.serial;
  set_control_options(socket.fd());
  socket.set_body_bytes_max(frames::read_body_bytes_max);
  if (context_.poller.modify(socket.fd(), ready::read, token_of(Part::peers, serial)) !=
      Status::ok) {
    return;
  }
  if (links_.empty()) next_beat_s_ = now_s + context_.config.peer_beat_s;
  Link& link = links_[serial];
  link = Link{std::move(socket), peer, incarnation, dialled};
  if (!beat(serial, link, context_.host.status())) links_.erase(serial);
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

bool PeerLinks::hear(std::uint64_t serial, Link& link, std::uint32_t bits) {
  if ((bits & ready::write) != 0 &&
      context_.flush(link.socket, token_of(Part::peers, serial)) != Status::ok) {
    return false;
  }
  for (int i = 0; i < frames_per_turn_max; ++i) {
    std::span<const std::byte> body;
    const Status status = link.socket.read_frame(body);
    if (status == Status::would_block) return (bits & ready::error) == 0;
    frames::Frame frame;
    if (status != Status::ok || frames::decode(body, frame) != Status::ok) return false;
    const auto* beat = std::get_if<frames::PeerBeat>(&frame);
    if (beat == nullptr) return false;
    context_.host.peer_beat(link.peer, beat->epoch, beat->watermark);
  }
  return true;
}

void PeerLinks::on_ready(std::uint64_t serial, std::uint32_t bits) {
  const auto found = links_.find(serial);
  if (found != links_.end() && !hear(serial, found->second, bits)) links_.erase(found);
}

void PeerLinks::on_time(double now_s) {
  if (links_.empty() || now_s < next_beat_s_) return;
  next_beat_s_ = now_s + std::max(context_.config.peer_beat_s, interval_s_min);
  const HeartbeatStatus status = context_.host.status();
  for (auto link = links_.begin(); link != links_.end();) {
    link = beat(link->first, link->second, status) ? std::next(link) : links_.erase(link);
  }
}

}  // namespace pccl
