// native/src/control/dialler.cpp — the dialler's half of the handshake, with retries.
// Ownership: see dialler.hpp.
// Threads:   the control thread only.
// Errors:    see dialler.hpp.
#include "control/dialler.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "pccl/sockets.hpp"

namespace pccl {
namespace {

constexpr double retry_s_min = 0.05;
constexpr double retry_s_max = 1.0;
// A view waits for lanes and not for peer control connections, and a TLS handshake costs each end
// about a millisecond: so those of lanes come first, if they are not held up.
constexpr double control_after_s = 0.25;

/// Scatters neighbouring numbers over all of 64 bits: the finalizer of SplitMix64 (Steele, Lea and
/// Flood, "Fast Splittable Pseudorandom Number Generators", 2014).
std::uint64_t scattered(std::uint64_t x) noexcept {
  x += 0x9e3779b97f4a7c15;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

}  // namespace

double retry_pause_s(int refusals, double left_s, std::uint64_t dice) noexcept {
  constexpr int doublings_max = 5;
  const double grown_s = std::ldexp(retry_s_min, std::min(refusals, doublings_max));
  // The last tries before the end come closer again, so that there is one shortly before it.
  const double most_s = std::max(std::min(retry_s_max, left_s / 2), retry_s_min);
  const double share = 0.5 + std::ldexp(static_cast<double>(scattered(dice) >> 12), -53);
  return std::min(grown_s, most_s) * share;
}

void Dialler::connect(const DialRequest& request, double now_s) {
  const PeerEndpoint& peer = request.peer;
  if (request.lanes > 0) drop_lanes(request);
  const bool wants_control = !request.via && !peers_.has(peer.peer, peer.incarnation) &&
                             !dialling(peer.peer, peer.incarnation);
  if (request.lanes == 0 && !wants_control) return;
  const std::uint64_t job = ++context_.serial;
  jobs_.emplace(job, Job{request, now_s + request.timeout_s, request.lanes});
  const Purpose purpose = request.via ? Purpose::relayed_lane : Purpose::data_lane;
  for (std::uint16_t i = 0; i < request.lanes; ++i) add(job, purpose, now_s);
  const bool after_lanes = context_.tls && request.lanes > 0;
  if (wants_control) add(job, Purpose::peer_control, now_s, after_lanes ? control_after_s : 0);
}

void Dialler::answer(const PeerEndpoint& caller, const PeerEndpoint& relay, std::uint64_t call,
                     double now_s) {
  const auto answers = std::count_if(jobs_.begin(), jobs_.end(), [](const auto& entry) {
    return entry.second.request.call != 0;
  });
  if (answers >= answers_max) return;
  DialRequest request;
  request.peer = caller;
  request.via = relay;
  request.awaits = true;
  request.call = call;
  const std::uint64_t job = ++context_.serial;
  jobs_.emplace(job, Job{request, now_s + context_.config.handshake_timeout_s, request.lanes});
  add(job, Purpose::relayed_lane, now_s);
}

/// Of an earlier job; its peer control connection, if that is still dialled, goes on.
void Dialler::drop_lanes(const DialRequest& request) noexcept {
  const auto same = [&](const Job& job) {
    return job.request.call == 0 && job.is_for(request.peer.peer, request.peer.incarnation) &&
           job.request.via.has_value() == request.via.has_value();
  };
  for (auto& [id, job] : jobs_) {
    if (same(job)) job.lanes_missing = 0;
  }
  std::erase_if(dials_, [&](const auto& entry) {
    return entry.second.purpose != Purpose::peer_control && same(jobs_.at(entry.second.job));
  });
  std::erase_if(jobs_, [&](const auto& job) { return !has_dials(job.first); });
}

bool Dialler::has_dials(std::uint64_t job) const noexcept {
  return std::any_of(dials_.begin(), dials_.end(),
                     [&](const auto& entry) { return entry.second.job == job; });
}

bool Dialler::dialling(PeerId peer, Incarnation incarnation) const noexcept {
  return std::any_of(dials_.begin(), dials_.end(), [&](const auto& entry) {
    if (entry.second.purpose != Purpose::peer_control) return false;
    const auto job = jobs_.find(entry.second.job);
    return job != jobs_.end() && job->second.is_for(peer, incarnation);
  });
}

void Dialler::add(std::uint64_t job, Purpose purpose, double now_s, double after_s) {
  const std::uint64_t serial = ++context_.serial;
  Dial& dial = dials_[serial];
  dial.job = job;
  dial.purpose = purpose;
  dial.due_s = now_s + after_s;
  if (after_s == 0) start(serial, dial, now_s);
}

void Dialler::forget(PeerId peer, Incarnation incarnation) noexcept {
  std::erase_if(jobs_, [&](const auto& entry) {
    return entry.second.is_for(peer, incarnation);
  });
  std::erase_if(dials_, [&](const auto& entry) { return !jobs_.contains(entry.second.job); });
}

void Dialler::close() noexcept {
  dials_.clear();
  jobs_.clear();
}

void Dialler::start(std::uint64_t serial, Dial& dial, double now_s) {
  const DialRequest& request = jobs_.at(dial.job).request;
  const PeerEndpoint& first = request.via ? *request.via : request.peer;
  Fd fd;
  if (!context_.identity || connect_tcp(first.host, first.port, fd) != Status::ok ||
      context_.poller.add(fd.get(), ready::write, token_of(Part::dialler, serial)) != Status::ok) {
    retry(serial, dial, now_s);
    return;
  }
  auto conduit = context_.dial(std::move(fd), {.peer = first.peer, .coordinator_of = {}});
  if (!conduit) {
    retry(serial, dial, now_s);
    return;
  }
  dial.socket = FramedSocket(std::move(conduit), frames::first_body_bytes_max);
  dial.stage = Stage::connecting;
  dial.in_tunnel = false;
  // The listener gives up on a handshake, too; a new try may find it in a better state.
  dial.due_s = now_s + std::min(++dial.tries * request.try_s, context_.config.handshake_timeout_s);
}

void Dialler::retry(std::uint64_t serial, Dial& dial, double now_s) noexcept {
  dial.socket = FramedSocket();
  dial.stage = Stage::idle;
  Job& job = jobs_.at(dial.job);
  if (job.request.call != 0) {  // who has called tries again, or not
    dial.due_s = no_deadline;
    job.deadline_s = now_s;
    return;
  }
  std::uint64_t dice = 0;  // another for every peer, dial and try
  std::memcpy(&dice, context_.config.peer_id.bytes.data(), sizeof dice);
  dice += scattered(serial) ^ static_cast<std::uint64_t>(dial.refusals);
  dial.due_s = now_s + retry_pause_s(dial.refusals, job.deadline_s - now_s, dice);
  ++dial.refusals;
}

void Dialler::on_ready(std::uint64_t serial, std::uint32_t bits, double now_s) {
  const auto found = dials_.find(serial);
  if (found == dials_.end() || found->second.stage == Stage::idle) return;
  switch (advance(serial, found->second, bits)) {
    case Progress::pending: break;
    case Progress::failed: retry(serial, found->second, now_s); break;
    case Progress::done: finish(serial, now_s); break;
    case Progress::met: await_other(serial, now_s); break;
  }
}

Dialler::Progress Dialler::advance(std::uint64_t serial, Dial& dial, std::uint32_t bits) {
  if (dial.stage == Stage::connecting) return connected(serial, dial);
  if (dial.stage == Stage::securing) return secure(serial, dial);
  if ((bits & ready::write) != 0 &&
      context_.flush(dial.socket, token_of(Part::dialler, serial)) != Status::ok) {
    return Progress::failed;
  }
  std::span<const std::byte> body;
  const Status status = dial.socket.read_frame(body);
  if (status == Status::would_block) {
    return (bits & ready::error) != 0 ? Progress::failed : Progress::pending;
  }
  frames::Frame frame;
  const bool welcome = status == Status::ok && frames::decode(body, frame) == Status::ok &&
                       std::holds_alternative<frames::Welcome>(frame);
  if (!welcome) return Progress::failed;
  if (dial.stage != Stage::asking_relay) return Progress::done;
  return jobs_.at(dial.job).request.awaits ? Progress::met : enter_tunnel(serial, dial);
}

Dialler::Progress Dialler::connected(std::uint64_t serial, Dial& dial) {
  if (connect_result(dial.socket.fd()) != Status::ok || !context_.identity) {
    return Progress::failed;
  }
  dial.stage = Stage::securing;
  return secure(serial, dial);
}

Dialler::Progress Dialler::secure(std::uint64_t serial, Dial& dial) {
  const Status status = context_.establish(dial.socket, token_of(Part::dialler, serial));
  if (status == Status::would_block) return Progress::pending;
  if (status != Status::ok) {
    if (!dial.socket.conduit().refusal().empty()) ++context_.counters.unproven;
    return Progress::failed;
  }
  const bool through = jobs_.at(dial.job).request.via && !dial.in_tunnel;
  return through ? ask_relay(serial, dial) : greet(serial, dial);
}

/// From here on the relay only carries bytes: what protected the talk with it ends, and the peer
/// at the far end has to prove its own name.
Dialler::Progress Dialler::enter_tunnel(std::uint64_t serial, Dial& dial) {
  dial.in_tunnel = true;
  if (!context_.tls) return greet(serial, dial);
  Fd fd = dial.socket.conduit().strip();
  if (!fd) return Progress::failed;
  const PeerId peer = jobs_.at(dial.job).request.peer.peer;
  auto conduit = context_.dial(std::move(fd), {.peer = peer, .coordinator_of = {}});
  if (!conduit) return Progress::failed;
  dial.socket = FramedSocket(std::move(conduit), frames::first_body_bytes_max);
  dial.stage = Stage::securing;
  return secure(serial, dial);
}

frames::Hello Dialler::hello(Purpose purpose, const Job& job, const Secret& secret) const {
  return {
      .purpose = purpose,
      .run_id = context_.identity->run_id,
      .peer = context_.config.peer_id,
      .incarnation = context_.identity->incarnation,
      .secret = secret,
      .series = job.request.series,
      .generation = 0,
      .epoch = 0,
  };
}

Dialler::Progress Dialler::ask_relay(std::uint64_t serial, Dial& dial) {
  const Job& job = jobs_.at(dial.job);
  const std::uint64_t token = token_of(Part::dialler, serial);
  const std::uint64_t call = job.request.call;
  const frames::Relay order{job.request.peer.peer, job.request.peer.incarnation, call, call != 0};
  dial.stage = Stage::asking_relay;
  if (context_.send(dial.socket, token,
                    hello(Purpose::relay, job, job.request.via->secret)) != Status::ok ||
      context_.send(dial.socket, token, order) != Status::ok) {
    return Progress::failed;
  }
  return Progress::pending;
}

Dialler::Progress Dialler::greet(std::uint64_t serial, Dial& dial) {
  const Job& job = jobs_.at(dial.job);
  dial.stage = Stage::greeting;
  const Status sent = context_.send(dial.socket, token_of(Part::dialler, serial),
                                    hello(dial.purpose, job, job.request.peer.secret));
  return sent == Status::ok ? Progress::pending : Progress::failed;
}

void Dialler::finish(std::uint64_t serial, double now_s) {
  Dial dial = std::move(dials_.at(serial));
  dials_.erase(serial);
  Job& job = jobs_.at(dial.job);
  const PeerId peer = job.request.peer.peer;
  const Incarnation incarnation = job.request.peer.incarnation;
  const std::uint32_t series = job.request.series;
  if (dial.purpose != Purpose::peer_control && --job.lanes_missing == 0) hurry(dial.job, now_s);
  if (!has_dials(dial.job)) jobs_.erase(dial.job);
  if (dial.purpose == Purpose::peer_control) {
    peers_.adopt(std::move(dial.socket), peer, incarnation, true, now_s);
    return;
  }
  context_.poller.remove(dial.socket.fd());
  const bool relayed = dial.purpose == Purpose::relayed_lane;
  if (dial.socket.conduit().seal_in_bulk() != Status::ok) return;  // no memory: asked for again
  context_.host.adopt_lane({peer, incarnation, series, true, relayed}, dial.socket.release());
}

/// The relay has brought both ends together; from here on this is a connection like any that comes.
void Dialler::await_other(std::uint64_t serial, double now_s) {
  Dial dial = std::move(dials_.at(serial));
  dials_.erase(serial);
  --jobs_.at(dial.job).lanes_missing;
  if (!has_dials(dial.job)) jobs_.erase(dial.job);
  context_.poller.remove(dial.socket.fd());
  // Null if the other end's first bytes came with the relay's last: it dials again, as this does.
  Fd bare = dial.socket.conduit().strip();
  if (bare) static_cast<void>(strangers_.add(std::move(bare), now_s));
}

/// The lanes of a job are up: what has waited for that begins now.
void Dialler::hurry(std::uint64_t job, double now_s) noexcept {
  for (auto& [serial, dial] : dials_) {
    if (dial.job == job && dial.stage == Stage::idle && dial.tries == 0) dial.due_s = now_s;
  }
}

double Dialler::due_s() const noexcept {
  double due_s = no_deadline;
  for (const auto& [id, job] : jobs_) due_s = std::min(due_s, job.deadline_s);
  for (const auto& [serial, dial] : dials_) due_s = std::min(due_s, dial.due_s);
  return due_s;
}

void Dialler::on_time(double now_s) {
  struct Failed {
    PeerId peer;
    Incarnation incarnation;
    bool relayed;
  };
  std::vector<Failed> failed;
  std::erase_if(jobs_, [&](const auto& entry) {
    const Job& job = entry.second;
    if (now_s < job.deadline_s) return false;
    const DialRequest& request = job.request;
    if (job.lanes_missing > 0 && request.call == 0) {
      failed.push_back({request.peer.peer, request.peer.incarnation, request.via.has_value()});
    }
    return true;
  });
  std::erase_if(dials_, [&](const auto& entry) { return !jobs_.contains(entry.second.job); });
  for (auto& [serial, dial] : dials_) {
    if (now_s < dial.due_s) continue;
    if (dial.stage == Stage::idle) {
      start(serial, dial, now_s);
    } else {
      retry(serial, dial, now_s);
    }
  }
  for (const Failed& peer : failed) {
    context_.host.connect_failed(peer.peer, peer.incarnation, peer.relayed);
  }
}

}  // namespace pccl
