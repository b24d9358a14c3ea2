// native/src/control/relay.cpp — the relay thread.
// Ownership: see relay.hpp.
// Threads:   see relay.hpp.
// Errors:    see relay.hpp.
#include "control/relay.hpp"

#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <system_error>
#include <utility>

#include "pccl/clock.hpp"
#include "pccl/quiet_thread.hpp"
#include "pccl/sockets.hpp"

namespace pccl {
namespace {

constexpr std::size_t events_max = 64;
constexpr int wait_ms_max = 1000;
constexpr int breather_ms = 50;  // after a turn that ran out of memory
constexpr std::uint64_t mailbox_token = 0;

constexpr std::uint64_t token_of(std::uint64_t serial, std::size_t side) noexcept {
  return serial << 1 | side;
}

bool soft(int error) noexcept { return error == EAGAIN || error == EINTR; }

}  // namespace

bool Relay::has_room(PeerId from) const {
  const std::lock_guard lock(mutex_);
  const auto user = users_.find(from);
  return count_ < tunnels_max && (user == users_.end() || user->second < tunnels_per_peer_max);
}

std::size_t Relay::tunnels() const {
  const std::lock_guard lock(mutex_);
  return count_;
}

void Relay::open(std::unique_ptr<Conduit> client, PeerId from, const PeerEndpoint& target,
                 std::uint64_t call) {
  take({std::move(client), from, target, call, false});
}

void Relay::answer(std::unique_ptr<Conduit> client, PeerId from, PeerId caller,
                   std::uint64_t call) {
  PeerEndpoint target;
  target.peer = caller;
  take({std::move(client), from, std::move(target), call, true});
}

void Relay::take(Order order) {
  const PeerId from = order.from;
  {
    const std::lock_guard lock(mutex_);
    if (stopping_) return;
    if (!thread_.joinable()) {
      wake_ = Fd(::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC));
      if (!wake_ || poller_.add(wake_.get(), ready::read, mailbox_token) != Status::ok) {
        throw std::system_error(errno, std::system_category(), "no event for the relay");
      }
      thread_ = quiet_thread([this]() noexcept { run(); });
    }
    orders_.push_back(std::move(order));
    ++users_[from];
    ++count_;
  }
  wake();
}

void Relay::wake() noexcept {
  const std::uint64_t one = 1;
  static_cast<void>(!::write(wake_.get(), &one, sizeof one));
}

void Relay::stop() noexcept {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
    if (!thread_.joinable()) return;
  }
  wake();
  thread_.join();
}

void Relay::run() noexcept {
  ::pthread_setname_np(::pthread_self(), "pccl-relay");
  for (;;) {
    {
      const std::lock_guard lock(mutex_);
      if (stopping_) break;
    }
    try {
      turn(monotonic_s());
    } catch (...) {
      ::poll(nullptr, 0, breather_ms);  // out of memory: a tunnel stands still meanwhile
    }
  }
  tunnels_.clear();
}

void Relay::turn(double now_s) {
  double due_s = now_s + wait_ms_max * 1e-3;
  for (const auto& [serial, tunnel] : tunnels_) {
    if (!tunnel.open) due_s = std::min(due_s, tunnel.deadline_s);
  }
  std::array<Poller::Event, events_max> events;
  const double wait_s = std::max(due_s - now_s, 0.0);
  const std::size_t count = poller_.wait(events, static_cast<int>(std::ceil(wait_s * 1e3)));
  now_s = monotonic_s();
  for (std::size_t i = 0; i < count; ++i) {
    if (events[i].token == mailbox_token) {
      take_orders(now_s);
    } else {
      on_ready(events[i].token, events[i].bits);
    }
  }
  std::vector<std::uint64_t> late;
  for (const auto& [serial, tunnel] : tunnels_) {
    if (!tunnel.open && tunnel.deadline_s <= now_s) late.push_back(serial);
  }
  for (const std::uint64_t serial : late) {
    const Tunnel& tunnel = tunnels_.at(serial);
    refuse(*tunnel.client, frames::Refusal::unreachable,
           tunnel.awaits ? "that peer has not come to the relay, and cannot be dialled"
                         : "the relay gets no answer from that peer");
    end(serial);
  }
}

void Relay::take_orders(double now_s) {
  std::uint64_t posts = 0;
  static_cast<void>(!::read(wake_.get(), &posts, sizeof posts));
  std::vector<Order> orders;
  {
    const std::lock_guard lock(mutex_);
    orders.swap(orders_);
  }
  for (Order& order : orders) begin(std::move(order), now_s);
}

void Relay::begin(Order order, double now_s) {
  if (order.answers) {
    match(std::move(order));
    return;
  }
  if (!order.target.dialable()) {
    order.call != 0 ? await(std::move(order), now_s) : meet(std::move(order), now_s);
    return;
  }
  Fd target;
  if (connect_tcp(order.target.host, order.target.port, target) != Status::ok) {
    refuse(*order.client, frames::Refusal::unreachable, "the relay cannot dial that peer");
    forget(order.from);
    return;
  }
  const std::uint64_t serial = ++serial_;
  Tunnel& tunnel = tunnels_[serial];
  tunnel.client = std::move(order.client);
  tunnel.sides[1] = std::move(target);
  tunnel.from = order.from;
  tunnel.deadline_s = now_s + connect_timeout_s_;
  tunnel.interest = {0, ready::write};
  for (std::size_t side = 0; side < 2; ++side) {
    const int fd = side == 0 ? tunnel.client->fd() : tunnel.sides[1].get();
    set_liveness_options(fd);
    if (poller_.add(fd, tunnel.interest[side], token_of(serial, side)) !=
        Status::ok) {
      end(serial);
      return;
    }
  }
}

void Relay::meet(Order order, double now_s) {
  std::optional<std::uint64_t> older;
  for (auto& [serial, tunnel] : tunnels_) {
    if (tunnel.call != 0) continue;
    if (tunnel.awaits == order.from && tunnel.from == order.target.peer) {
      const bool joined = join(serial, tunnel, std::move(order.client));
      forget(order.from);
      if (!joined) end(serial);
      return;
    }
    if (tunnel.awaits == order.target.peer && tunnel.from == order.from) older = serial;
  }
  if (older) end(*older);  // it has given that one up, or would not come again
  await(std::move(order), now_s);
}

/// One that was called, with the one who waits for it.
void Relay::match(Order order) {
  for (auto& [serial, tunnel] : tunnels_) {
    if (tunnel.call != order.call || tunnel.awaits != order.from ||
        tunnel.from != order.target.peer) {
      continue;
    }
    const bool joined = join(serial, tunnel, std::move(order.client));
    forget(order.from);
    if (!joined) end(serial);
    return;
  }
  refuse(*order.client, frames::Refusal::unreachable, "who has called does not wait any more");
  forget(order.from);
}

void Relay::await(Order order, double now_s) {
  const std::uint64_t serial = ++serial_;
  Tunnel& tunnel = tunnels_[serial];
  tunnel.client = std::move(order.client);
  tunnel.from = order.from;
  tunnel.awaits = order.target.peer;
  tunnel.call = order.call;
  tunnel.deadline_s = now_s + connect_timeout_s_;
  set_liveness_options(tunnel.client->fd());
  // Nothing may be read before both are here; of its end the poller tells unasked.
  if (poller_.add(tunnel.client->fd(), 0, token_of(serial, 0)) != Status::ok) end(serial);
}

/// Tells both that the other one is here: first the one that waits for the other's handshake, whose
/// beginning must not run into its WELCOME.
bool Relay::join(std::uint64_t serial, Tunnel& tunnel, std::unique_ptr<Conduit> other) {
  const bool first_shakes = tunnel.call != 0 || tunnel.from < *tunnel.awaits;
  tunnel.awaits.reset();
  set_liveness_options(other->fd());
  if (poller_.add(other->fd(), 0, token_of(serial, 1)) != Status::ok) return false;
  std::array<std::unique_ptr<Conduit>*, 2> ends{&tunnel.client, &other};
  const std::size_t waiting = first_shakes ? 1 : 0;
  for (const std::size_t side : {waiting, 1 - waiting}) {
    if (!greet(*ends[side], tunnel.sides[side])) return false;
  }
  tunnel.open = true;
  return watch(serial, tunnel);
}

void Relay::on_ready(std::uint64_t token, std::uint32_t bits) {
  const std::uint64_t serial = token >> 1;
  const auto found = tunnels_.find(serial);
  if (found == tunnels_.end()) return;  // it ended by an event before this one
  Tunnel& tunnel = found->second;
  const std::size_t side = token & 1;
  bool alive = true;
  if (!tunnel.open) {
    alive = side == 1 && welcome(tunnel);
  } else {
    if ((bits & ready::write) != 0) alive = drain(tunnel, 1 - side);
    if (alive && (bits & (ready::read | ready::error)) != 0) alive = move(tunnel, side);
  }
  if (!alive || !watch(serial, tunnel)) end(serial);
}

bool Relay::welcome(Tunnel& tunnel) {
  if (connect_result(tunnel.sides[1].get()) != Status::ok) {
    refuse(*tunnel.client, frames::Refusal::unreachable,
           "the peer cannot be reached from the relay either");
    return false;
  }
  tunnel.open = greet(tunnel.client, tunnel.sides[0]);
  return tunnel.open;
}

/// In a secured run client and target do their own TLS through the tunnel: what protected the talk
/// with this peer ends here, and it carries what it cannot read.
bool Relay::greet(std::unique_ptr<Conduit>& client, Fd& bare) {
  std::vector<std::byte> bytes;
  static_cast<void>(frames::encode(frames::Welcome{}, bytes));
  // The first thing this socket sends: it goes out whole or the socket is broken.
  const iovec part{bytes.data(), bytes.size()};
  std::size_t sent = 0;
  if (client->send({&part, 1}, sent) != Status::ok || sent != bytes.size()) return false;
  bare = client->strip();
  client.reset();
  return static_cast<bool>(bare);
}

/// Reads what `side` has, as far as there is room, and passes it on.
bool Relay::move(Tunnel& tunnel, std::size_t side) {
  Way& way = tunnel.ways[side];
  if (way.bytes.empty()) way.bytes.resize(buffer_bytes);
  if (way.end == buffer_bytes) return true;
  const ssize_t got = ::recv(tunnel.sides[side].get(), way.bytes.data() + way.end,
                             buffer_bytes - way.end, MSG_DONTWAIT);
  if (got == 0) return false;
  if (got < 0) return soft(errno);
  way.end += static_cast<std::size_t>(got);
  return drain(tunnel, side);
}

/// Sends on what came from `side`.
bool Relay::drain(Tunnel& tunnel, std::size_t side) {
  Way& way = tunnel.ways[side];
  while (way.begin < way.end) {
    const ssize_t sent = ::send(tunnel.sides[1 - side].get(), way.bytes.data() + way.begin,
                                way.end - way.begin, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent < 0) return soft(errno);
    way.begin += static_cast<std::size_t>(sent);
    bytes_ += static_cast<std::uint64_t>(sent);
  }
  way.begin = way.end = 0;
  return true;
}

bool Relay::watch(std::uint64_t serial, Tunnel& tunnel) {
  for (std::size_t side = 0; side < 2; ++side) {
    std::uint32_t interest = 0;
    if (tunnel.ways[side].end < buffer_bytes) interest |= ready::read;
    if (tunnel.ways[1 - side].begin < tunnel.ways[1 - side].end) interest |= ready::write;
    if (interest == tunnel.interest[side]) continue;
    tunnel.interest[side] = interest;
    if (poller_.modify(tunnel.sides[side].get(), interest, token_of(serial, side)) != Status::ok) {
      return false;
    }
  }
  return true;
}

void Relay::refuse(Conduit& client, frames::Refusal code, const char* text) noexcept {
  try {
    std::vector<std::byte> bytes;
    static_cast<void>(
        frames::encode(frames::Refused{static_cast<std::uint8_t>(code), text}, bytes));
    const iovec part{bytes.data(), bytes.size()};
    std::size_t sent = 0;
    static_cast<void>(client.send({&part, 1}, sent));
  } catch (...) {
    return;  // it sees the end of the connection, without the reason
  }
}

void Relay::end(std::uint64_t serial) {
  const auto found = tunnels_.find(serial);
  if (found == tunnels_.end()) return;
  const PeerId from = found->second.from;
  tunnels_.erase(found);
  forget(from);
}

void Relay::forget(PeerId from) {
  const std::lock_guard lock(mutex_);
  --count_;
  const auto user = users_.find(from);
  if (user != users_.end() && --user->second == 0) users_.erase(user);
}

}  // namespace pccl
