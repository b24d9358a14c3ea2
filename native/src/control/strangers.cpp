// native/src/control/strangers.cpp — accepting, and the listener's half of the handshake.
// Ownership: see strangers.hpp.
// Threads:   the control thread only.
// Errors:    see strangers.hpp.
#include "control/strangers.hpp"

#include <sys/resource.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <system_error>

#include "control/answers.hpp"
#include "pccl/sockets.hpp"

namespace pccl {
namespace {

constexpr int backlog = 128;
constexpr std::string_view stream_mark = "PCCLSTR1";
constexpr char tls_handshake = 0x16;  // the type of a TLS connection's first record
constexpr const char* secured_text = "this peer is of a secured run: come with a ticket";
constexpr const char* unsecured_text = "this peer is not of a secured run";
constexpr double waits_handshakes = 2;  // for its turn, of handshake_timeout_s
constexpr int accepts_per_turn_max = 64;
constexpr double accept_pause_s = 0.1;  // without descriptors accept fails at once, for ever

/// From where members are: a thousand of them dial a newcomer with some lanes each.  But one of
/// them, or who shares its address, must not take the descriptors that the process needs.
PlacesMax expected_places() noexcept {
  rlimit descriptors{};
  if (::getrlimit(RLIMIT_NOFILE, &descriptors) != 0) descriptors.rlim_cur = 1024;
  const auto share = static_cast<std::size_t>(descriptors.rlim_cur / 4);
  return {std::min(Strangers::expected_half_open_max, share),
          Strangers::expected_half_open_per_origin_max};
}

}  // namespace

std::uint16_t Strangers::listen() {
  const ControlConfig& config = context_.config;
  switch (listen_tcp(config.listen_host, config.listen_port, backlog, listener_)) {
    case Status::ok: break;
    case Status::usage:
      throw std::system_error(EINVAL, std::system_category(),
                              "not a literal address to listen on: " + config.listen_host);
    default:
      throw std::system_error(errno, std::system_category(),
                              "cannot listen on " + config.listen_host + " port " +
                                  std::to_string(config.listen_port));
  }
  if (context_.poller.add(listener_.get(), ready::read, token_of(Part::listener, 0)) !=
      Status::ok) {
    throw std::system_error(errno, std::system_category(), "cannot watch the listening socket");
  }
  return local_port(listener_.get());
}

void Strangers::on_listener_ready(double now_s) {
  for (int i = 0; i < accepts_per_turn_max; ++i) {
    Fd fd;
    switch (accept_tcp(listener_.get(), fd)) {
      case Status::ok: static_cast<void>(add(std::move(fd), now_s)); break;
      case Status::closed: break;
      case Status::exhausted:
        accept_again_s_ = now_s + accept_pause_s;
        static_cast<void>(
            context_.poller.modify(listener_.get(), 0, token_of(Part::listener, 0)));
        return;
      default: return;
    }
  }
}

std::uint64_t Strangers::add(Fd fd, double now_s) {
  const Origin origin = origin_of(fd.get());
  const bool expected = known_.holds(origin);
  if (!make_room(origin, expected)) {
    ++context_.counters.dropped;
    return 0;
  }
  const std::uint64_t serial = ++context_.serial;
  if (context_.poller.add(fd.get(), ready::read, token_of(Part::strangers, serial)) != Status::ok) {
    return 0;
  }
  auto conduit = context_.accept(std::move(fd));
  if (!conduit) return 0;
  strangers_.emplace(serial, Stranger{FramedSocket(std::move(conduit),
                                                   frames::first_body_bytes_max),
                                      now_s + context_.config.handshake_timeout_s, origin,
                                      expected});
  return serial;
}

void Strangers::drop(std::uint64_t serial) noexcept {
  ++context_.counters.dropped;
  forget_turn(serial);
  strangers_.erase(serial);
}

/// Whoever ends while it waits for its turn must not keep it.
void Strangers::forget_turn(std::uint64_t serial) noexcept {
  expected_pace_.forget(serial);
  pace_.forget(serial);
}

/// For one more; false: there is none.
bool Strangers::make_room(const Origin& origin, bool expected) {
  std::vector<Place> held;
  for (const auto& [serial, stranger] : strangers_) {
    if (stranger.expected == expected) held.push_back({serial, stranger.origin, stranger.stage()});
  }
  const std::size_t most = context_.config.half_open_max;
  const auto victim = place_for(origin, held, expected ? expected_places() : PlacesMax{most, most});
  if (victim.value_or(0) != 0) drop(*victim);
  return victim.has_value();
}

void Strangers::on_ready(std::uint64_t serial, std::uint32_t bits, double now_s) {
  const auto found = strangers_.find(serial);
  if (found == strangers_.end()) return;
  const bool unwatched = found->second.door == Stranger::Door::waiting ||
                         found->second.look_again_s < no_deadline;
  if (unwatched && (bits & ready::error) != 0) {
    drop(serial);
    return;
  }
  if (!found->second.established && !establish(serial, found->second, now_s)) return;
  // Of what the conduit holds no poller tells.
  while (hear(serial, bits, now_s)) {
  }
}

/// In a secured run, before TLS.  Streams of the program do their own TLS and say so by their first
/// bytes; who is not of a secured run is told so in the clear.  All others wait for their turn.
void Strangers::look(std::uint64_t serial, Stranger& stranger, double now_s) {
  std::array<char, stream_mark.size()> first{};
  const int fd = stranger.socket.fd();
  const ssize_t got = ::recv(fd, first.data(), first.size(), MSG_PEEK | MSG_DONTWAIT);
  if (got == 0) strangers_.erase(serial);  // it only looked whether somebody listens
  if (got < 0 && errno != EAGAIN && errno != EINTR) drop(serial);
  if (got <= 0) return;
  const std::string_view begun(first.data(), static_cast<std::size_t>(got));
  const bool is_tls = begun.front() == tls_handshake;
  stranger.is_stream = begun == stream_mark;
  if (!is_tls && !stream_mark.starts_with(begun)) {
    std::vector<std::byte> bytes;
    if (frames::encode(refused(frames::Refusal::security, secured_text), bytes) == Status::ok) {
      static_cast<void>(!::send(fd, bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT));
    }
    drop(serial);
    return;
  }
  if (is_tls || stranger.is_stream) {
    stranger.door = Stranger::Door::waiting;
    stranger.look_again_s = no_deadline;
    stranger.deadline_s = now_s + waits_handshakes * context_.config.handshake_timeout_s;
    (stranger.expected ? expected_pace_ : pace_).ask(serial, stranger.origin);
    turns_due_s_ = 0;
  } else {
    stranger.look_again_s = now_s + stranger.look_pause_s;
    stranger.look_pause_s *= 2;
  }
  // What it said stays in the socket, and the poller would tell of it again and again.
  if (context_.poller.modify(fd, 0, token_of(Part::strangers, serial)) != Status::ok) drop(serial);
}

/// A stream, to the program.
void Strangers::hand_over(std::uint64_t serial, Stranger& stranger) {
  std::array<char, stream_mark.size()> mark{};
  const int fd = stranger.socket.fd();
  static_cast<void>(!::recv(fd, mark.data(), mark.size(), MSG_DONTWAIT));
  ++context_.counters.accepted;
  context_.poller.remove(fd);
  Fd socket = stranger.socket.conduit().strip();
  strangers_.erase(serial);
  if (socket) context_.host.adopt_stream({}, std::move(socket));
}

/// Lets those begin whose turn it is.
void Strangers::grant(HandshakePace& pace, double now_s) {
  while (handshakes_left_ > 0) {
    const std::optional<std::uint64_t> serial = pace.grant(now_s);
    if (!serial) break;
    const auto found = strangers_.find(*serial);
    if (found == strangers_.end()) continue;  // never: it would have been forgotten
    Stranger& stranger = found->second;
    stranger.door = Stranger::Door::open;
    stranger.deadline_s = now_s + context_.config.handshake_timeout_s;
    if (stranger.is_stream) {
      --handshakes_left_;
      hand_over(*serial, stranger);
    } else if (context_.poller.modify(stranger.socket.fd(), ready::read,
                                      token_of(Part::strangers, *serial)) != Status::ok) {
      drop(*serial);
    } else {
      on_ready(*serial, ready::read, now_s);
    }
  }
  if (const auto wait_s = pace.wait_s(now_s)) {
    turns_due_s_ = std::min(turns_due_s_, now_s + *wait_s);
  }
}

/// True once frames may come.
bool Strangers::establish(std::uint64_t serial, Stranger& stranger, double now_s) {
  if (context_.tls) {
    if (stranger.door == Stranger::Door::silent) {
      look(serial, stranger, now_s);
      return false;
    }
    if (stranger.door == Stranger::Door::waiting || handshakes_left_ == 0) return false;
    --handshakes_left_;
  }
  const Status status = context_.establish(stranger.socket, token_of(Part::strangers, serial));
  stranger.established = status == Status::ok;
  if (stranger.established || status == Status::would_block) return stranger.established;
  if (!stranger.socket.conduit().refusal().empty()) ++context_.counters.unproven;
  drop(serial);
  return false;
}

/// One frame; true: there may be another.
bool Strangers::hear(std::uint64_t serial, std::uint32_t bits, double now_s) {
  const auto found = strangers_.find(serial);
  if (found == strangers_.end()) return false;
  FramedSocket& socket = found->second.socket;
  std::span<const std::byte> body;
  const Status status = socket.read_frame(body);
  if (status == Status::ok) {
    const std::vector<std::byte> frame(body.begin(), body.end());  // outlives the move
    Stranger stranger = std::move(found->second);
    strangers_.erase(found);
    if (stranger.wants_relay) {
      carry(frame, *stranger.wants_relay, std::move(stranger.socket));
    } else {
      judge(serial, frame, std::move(stranger), now_s);
    }
    return true;
  }
  if (status == Status::protocol && socket.heard_tls()) {
    static_cast<void>(socket.send(refused(frames::Refusal::security, unsecured_text)));
  }
  if (status == Status::closed && !socket.amid_frame()) {
    strangers_.erase(found);  // it only looked whether somebody listens: nothing hostile
  } else if (status != Status::would_block || (bits & ready::error) != 0) {
    drop(serial);
  }
  return false;
}

void Strangers::judge(std::uint64_t serial, std::span<const std::byte> body, Stranger stranger,
                      double now_s) {
  FramedSocket& socket = stranger.socket;
  if (!context_.identity) {
    static_cast<void>(socket.send(refused(frames::Refusal::incarnation, "not admitted yet")));
    return;
  }
  frames::Frame frame;
  const bool known = frames::decode(body, frame) == Status::ok;
  const frames::Hello* hello = known ? std::get_if<frames::Hello>(&frame) : nullptr;
  const frames::Refused answer = hello != nullptr
                                     ? answer_to(*hello, socket.conduit(), *context_.identity,
                                                 peers_.full())
                                     : answer_to_unknown(body);
  if (hello != nullptr && answer.code == 0) known_.prove(stranger.origin);
  if (hello != nullptr && answer.code == 0 && hello->purpose == Purpose::relay) {
    stranger.wants_relay = {hello->peer, hello->incarnation};
    strangers_.emplace(serial, std::move(stranger));
    return;
  }
  if (hello != nullptr && answer.code == 0) {
    welcome(*hello, std::move(socket), now_s);
    return;
  }
  ++context_.counters.dropped;
  if (answer.code != 0) static_cast<void>(socket.send(answer));
}

/// Only for who is in the view, or about to be: whoever was put out may still know the secret.  And
/// for the own program, which meets here who cannot be dialled.
bool Strangers::carries_for(const Asker& asker) {
  PeerEndpoint known;
  const bool own = asker.peer == context_.config.peer_id &&
                   asker.incarnation == context_.identity->incarnation;
  return own || context_.host.endpoint_of(asker.peer, asker.incarnation, known);
}

void Strangers::carry(std::span<const std::byte> body, const Asker& asker, FramedSocket socket) {
  const auto& [from, incarnation] = asker;
  frames::Frame frame;
  const bool known = frames::decode(body, frame) == Status::ok;
  const auto* order = known ? std::get_if<frames::Relay>(&frame) : nullptr;
  PeerEndpoint target;
  frames::Refused answer;
  if (order == nullptr) {
    ++context_.counters.dropped;
    return;
  }
  if (!carries_for(asker)) {
    answer = refused(frames::Refusal::unreachable, "the relay does not know you");
  } else if (!order->answers &&
             !context_.host.endpoint_of(order->peer, order->incarnation, target)) {
    answer = refused(frames::Refusal::unreachable, "the relay does not know that peer");
  } else if (!relay_.has_room(from)) {
    answer = refused(frames::Refusal::limit, "the relay has too many tunnels");
  } else if (!order->answers && order->call != 0 && !target.dialable() &&
             !peers_.call(order->peer, order->incarnation, {from, incarnation, order->call})) {
    answer = refused(frames::Refusal::unreachable, "the relay has no word with that peer");
  }
  if (answer.code != 0) {
    static_cast<void>(socket.send(answer));
    return;
  }
  ++context_.counters.accepted;
  context_.poller.remove(socket.fd());
  if (order->answers) {
    relay_.answer(socket.release(), from, order->peer, order->call);
  } else {
    relay_.open(socket.release(), from, target, order->call);
  }
}

void Strangers::welcome(const frames::Hello& hello, FramedSocket socket, double now_s) {
  // The answer is the first thing this socket sends, so it goes out whole or the socket is broken.
  if (socket.send(frames::Welcome{}) != Status::ok || socket.wants_write()) return;
  ++context_.counters.accepted;
  if (hello.purpose == Purpose::peer_control) {
    peers_.adopt(std::move(socket), hello.peer, hello.incarnation, false, now_s);
    return;
  }
  context_.poller.remove(socket.fd());
  if (hello.purpose == Purpose::stream) {
    // Null in a secured run, whose streams come another way: nothing is handed on in the clear.
    if (Fd bare = socket.release()->release()) {
      context_.host.adopt_stream(hello.peer, std::move(bare));
    }
    return;
  }
  const bool relayed = hello.purpose == Purpose::relayed_lane;
  if (socket.conduit().seal_in_bulk() != Status::ok) return;
  context_.host.adopt_lane({hello.peer, hello.incarnation, hello.series, false, relayed},
                           socket.release());
}

void Strangers::close() noexcept {
  strangers_.clear();
  listener_.reset();
}

double Strangers::due_s() const noexcept {
  double due_s = std::min(accept_again_s_, turns_due_s_);
  for (const auto& [serial, stranger] : strangers_) {
    due_s = std::min({due_s, stranger.deadline_s, stranger.look_again_s});
  }
  return due_s;
}

/// At those who had said too little to tell who they are.
void Strangers::look_again(double now_s) {
  std::vector<std::uint64_t> due;
  for (const auto& [serial, stranger] : strangers_) {
    if (stranger.look_again_s <= now_s) due.push_back(serial);
  }
  for (const std::uint64_t serial : due) on_ready(serial, ready::read, now_s);
}

void Strangers::on_time(double now_s) {
  handshakes_left_ = handshakes_per_turn_max;
  if (now_s >= accept_again_s_) {
    accept_again_s_ = no_deadline;
    static_cast<void>(
        context_.poller.modify(listener_.get(), ready::read, token_of(Part::listener, 0)));
  }
  context_.counters.dropped += std::erase_if(strangers_, [&](const auto& entry) {
    const bool late = entry.second.deadline_s <= now_s;
    if (late) forget_turn(entry.first);
    return late;
  });
  look_again(now_s);
  turns_due_s_ = no_deadline;
  grant(expected_pace_, now_s);
  grant(pace_, now_s);
}

}  // namespace pccl
