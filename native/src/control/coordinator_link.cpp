// native/src/control/coordinator_link.cpp — dialling, heartbeats and answers to the coordinator.
// Ownership: see coordinator_link.hpp.
// Threads:   the control thread only.
// Errors:    see coordinator_link.hpp.
#include "control/coordinator_link.hpp"

#include <algorithm>
#include <utility>

#include "pccl/sockets.hpp"

namespace pccl {
namespace {

constexpr double backoff_first_s = 0.1;
constexpr std::size_t round_trips_max = 8;  // two seconds of a LAN's heartbeats
constexpr double backoff_s_max = 2.0;
// Some resets in a row must not make a living peer miss its lease, which is several heartbeats.
constexpr double backoff_heartbeats_max = 2.0;
// Beyond it the oldest goes: the newest names the epoch that still matters.
constexpr std::size_t suspicions_max = 64;
constexpr std::size_t beats_unanswered_max = 1024;

std::uint32_t lag_ms(double due_s, double now_s) noexcept {
  return static_cast<std::uint32_t>(std::clamp((now_s - due_s) * 1e3, 0.0, 4e9));
}

}  // namespace

void CoordinatorLink::admit(const CoordinatorEndpoint& endpoint, double now_s) {
  endpoint_ = endpoint;
  greeted_ = context_.identity->generation;
  close(Stage::waiting);
  backoff_s_ = backoff_first_s;
  dial(now_s);
}

void CoordinatorLink::dial(double now_s) {
  serial_ = ++context_.serial;
  Fd fd;
  if (connect_tcp(endpoint_.host, endpoint_.port, fd) != Status::ok ||
      context_.poller.add(fd.get(), ready::write, token_of(Part::coordinator, serial_)) !=
          Status::ok) {
    lose(now_s);
    return;
  }
  set_liveness_options(fd.get());
  auto conduit =
      context_.dial(std::move(fd), {.peer = {}, .coordinator_of = context_.identity->run_id});
  if (!conduit) {
    lose(now_s);
    return;
  }
  socket_ = FramedSocket(std::move(conduit), frames::first_body_bytes_max);
  stage_ = Stage::connecting;
  due_s_ = now_s + context_.config.handshake_timeout_s;
}

/// Closes and tells the host if it had been told that the connection is up.
void CoordinatorLink::close(Stage next) {
  socket_ = FramedSocket();
  due_s_ = no_deadline;
  const bool was_up = std::exchange(stage_, next) == Stage::up;
  if (was_up) context_.host.coordinator_connected(false, greeted_);
}

void CoordinatorLink::shut() noexcept {
  socket_ = FramedSocket();
  stage_ = Stage::off;
  due_s_ = no_deadline;
}

void CoordinatorLink::lose(double now_s) {
  close(Stage::waiting);
  due_s_ = now_s + backoff_s_;
  const double most_s = std::clamp(backoff_heartbeats_max * endpoint_.heartbeat_s, backoff_first_s,
                                   backoff_s_max);
  backoff_s_ = std::min(2 * backoff_s_, most_s);
}

Status CoordinatorLink::send(const frames::Frame& frame) {
  return context_.send(socket_, token_of(Part::coordinator, serial_), frame);
}

void CoordinatorLink::on_ready(std::uint64_t serial, std::uint32_t bits, double now_s) {
  if (serial != serial_ || !socket_) return;
  const bool begins = stage_ == Stage::connecting || stage_ == Stage::securing;
  const Status status = begins ? secure(now_s) : read(bits, now_s);
  // An eviction has closed the socket on the way; that was no loss.
  if (status != Status::ok && stage_ != Stage::off) lose(now_s);
}

Status CoordinatorLink::secure(double now_s) {
  if (std::exchange(stage_, Stage::securing) == Stage::connecting) {
    if (const Status status = connect_result(socket_.fd()); status != Status::ok) return status;
  }
  const Status status = context_.establish(socket_, token_of(Part::coordinator, serial_));
  if (status == Status::would_block) return Status::ok;
  if (status == Status::ok) return greet(now_s);
  if (const std::string_view text = socket_.conduit().refusal(); !text.empty()) {
    ++context_.counters.unproven;
    context_.host.refused(static_cast<std::uint8_t>(frames::Refusal::security), std::string(text));
  }
  return status;
}

Status CoordinatorLink::greet(double now_s) {
  const Identity& identity = *context_.identity;  // set before the first dial
  stage_ = Stage::greeting;
  due_s_ = now_s + context_.config.handshake_timeout_s;
  return send(frames::Hello{
      .purpose = Purpose::coordinator,
      .run_id = identity.run_id,
      .peer = context_.config.peer_id,
      .incarnation = identity.incarnation,
      .secret = identity.secret,
      .series = 0,
      .generation = newest_followed(),
      .epoch = context_.host.status().epoch,
  });
}

Status CoordinatorLink::read(std::uint32_t bits, double now_s) {
  if ((bits & ready::write) != 0) {
    const Status status = context_.flush(socket_, token_of(Part::coordinator, serial_));
    if (status != Status::ok) return status;
  }
  // Of what the conduit holds no poller tells.
  for (int i = 0; i < frames_per_turn_max || socket_.conduit().holds_received(); ++i) {
    std::span<const std::byte> body;
    Status status = socket_.read_frame(body);
    if (status == Status::would_block) {
      return (bits & ready::error) != 0 ? Status::closed : Status::ok;
    }
    frames::Frame frame;
    if (status == Status::ok) status = frames::decode(body, frame);
    if (status == Status::ok) status = handle(frame, now_s);
    if (status != Status::ok) return status;
  }
  return Status::ok;
}

Status CoordinatorLink::handle(const frames::Frame& frame, double now_s) {
  if (const auto* evicted = std::get_if<frames::Evicted>(&frame)) {
    if (evicted->generation < newest_known()) return Status::closed;
    end_incarnation(evicted->text);
    return Status::closed;
  }
  if (const auto* refused = std::get_if<frames::Refused>(&frame)) {
    const bool final = refused->code == static_cast<std::uint8_t>(frames::Refusal::incarnation);
    context_.host.refused(refused->code, refused->text);
    if (final) end_incarnation(refused->text);
    return Status::closed;
  }
  if (stage_ == Stage::greeting) {
    const auto* welcome = std::get_if<frames::Welcome>(&frame);
    if (welcome == nullptr) return Status::protocol;
    if (welcome->generation < newest_known()) return Status::closed;
    greeted_ = welcome->generation;
    return come_up(now_s);
  }
  if (const auto* flush = std::get_if<frames::Flush>(&frame)) return answer(*flush);
  if (const auto* table = std::get_if<frames::Routes>(&frame)) {
    context_.host.routes(table->generation, table->routes);
    return Status::ok;
  }
  const auto* pong = std::get_if<frames::Pong>(&frame);
  if (pong == nullptr) return Status::protocol;
  follow(pong->generation);
  // It shows that the coordinator lives; a dead path shows by TCP_USER_TIMEOUT.
  if (beats_sent_s_.empty()) return Status::ok;
  const double sample_us = std::clamp((now_s - beats_sent_s_.front()) * 1e6, 1.0, 4e9);
  beats_sent_s_.pop_front();
  round_trips_us_.push_back(static_cast<std::uint32_t>(sample_us));
  if (round_trips_us_.size() > round_trips_max) round_trips_us_.pop_front();
  return Status::ok;
}

Status CoordinatorLink::come_up(double now_s) {
  stage_ = Stage::up;
  beats_sent_s_.clear();
  backoff_s_ = backoff_first_s;
  due_s_ = now_s;
  socket_.set_body_bytes_max(frames::read_body_bytes_max);
  context_.host.coordinator_connected(true, greeted_);
  if (const Status status = send_heartbeat(now_s); status != Status::ok) return status;
  // What an earlier coordinator was told it may have taken into its grave; it may hear this twice.
  // A step that was begun before a planned view may still be open in it: nobody else can end it.
  const auto now = context_.host.status();
  for (auto it = told_.rbegin(); it != told_.rend(); ++it) {
    const bool matters = it->epoch >= now.epoch || it->step >= now.watermark;
    if (matters) suspicions_.push_front(std::move(*it));
  }
  told_.clear();
  return send_suspicions();
}

/// The newest whose word was taken, by either connection.
Generation CoordinatorLink::newest_followed() {
  return std::max(followed_, context_.host.status().generation);
}

/// The agent may have found a newer one, which is not followed yet.
Generation CoordinatorLink::newest_known() { return std::max(greeted_, newest_followed()); }

void CoordinatorLink::follow(Generation generation) {
  if (generation <= followed_) return;
  followed_ = generation;
  context_.host.coordinator_followed(generation);
}

Status CoordinatorLink::answer(const frames::Flush& flush) {
  ++context_.counters.flushes;
  follow(flush.generation);
  return send(context_.host.fence(flush.generation, flush.target));
}

Status CoordinatorLink::send_heartbeat(double now_s) {
  const auto shortest = std::min_element(round_trips_us_.begin(), round_trips_us_.end());
  const std::uint32_t rtt_us = shortest == round_trips_us_.end() ? 0 : *shortest;
  const frames::Heartbeat beat{context_.host.status(), lag_ms(due_s_, now_s), rtt_us};
  // A coordinator that answers none is cut off long before this fills up.
  if (beats_sent_s_.size() >= beats_unanswered_max) beats_sent_s_.clear();
  beats_sent_s_.push_back(now_s);
  due_s_ = now_s + std::max(endpoint_.heartbeat_s, interval_s_min);
  ++context_.counters.heartbeats;
  return send(beat);
}

void CoordinatorLink::beat(double now_s) {
  if (stage_ == Stage::up && send_heartbeat(now_s) != Status::ok) lose(now_s);
}

void CoordinatorLink::suspect(Suspect suspicion, double now_s) {
  if (suspicion.code == SuspectCode::none) return;  // names no reason: nothing to act on
  if (suspicions_.size() >= suspicions_max) suspicions_.pop_front();
  suspicions_.push_back(std::move(suspicion));
  if (stage_ == Stage::up && send_suspicions() != Status::ok) lose(now_s);
}

Status CoordinatorLink::send_suspicions() {
  while (!suspicions_.empty()) {
    if (const Status status = send(suspicions_.front()); status != Status::ok) return status;
    if (told_.size() >= suspicions_max) told_.pop_front();
    told_.push_back(std::move(suspicions_.front()));
    suspicions_.pop_front();
  }
  return Status::ok;
}

void CoordinatorLink::end_incarnation(const std::string& text) {
  close(Stage::off);
  context_.host.evicted(text);
}

void CoordinatorLink::on_time(double now_s) {
  if (now_s < due_s_) return;
  switch (stage_) {
    case Stage::off: break;
    case Stage::waiting: dial(now_s); break;
    case Stage::connecting:
    case Stage::securing:
    case Stage::greeting: lose(now_s); break;
    case Stage::up: beat(now_s); break;
  }
}

}  // namespace pccl
