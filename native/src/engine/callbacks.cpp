// native/src/engine/callbacks.cpp — what the control thread tells the engine, and asks of it.
// Ownership: see engine.hpp.
// Threads:   the control thread.
// Errors:    none leaves; what the engine cannot do ends it (see guarded and with_turn).
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <algorithm>
#include <thread>
#include <utility>

#include "pccl/arithmetic.hpp"
#include "pccl/clock.hpp"
#include "pccl/engine.hpp"
#include "pccl/sockets.hpp"

namespace pccl {
namespace {

// More unsent bytes than this in one socket only make its frames late for other lanes.
constexpr int notsent_lowat_bytes = 512 * 1024;

// That long a heartbeat waits for the turn: a visit of one lane takes less.
constexpr double status_wait_s = 0.02;

constexpr std::ptrdiff_t streams_waiting_max = 64;  // until the program's side takes them

bool is_loopback(int socket) noexcept {
  sockaddr_storage address{};
  socklen_t length = sizeof address;
  if (::getpeername(socket, reinterpret_cast<sockaddr*>(&address), &length) != 0) return false;
  if (address.ss_family == AF_INET) {
    const auto& v4 = reinterpret_cast<const sockaddr_in&>(address);
    return (ntohl(v4.sin_addr.s_addr) >> 24) == 127;
  }
  const auto& v6 = reinterpret_cast<const sockaddr_in6&>(address);
  return address.ss_family == AF_INET6 && IN6_IS_ADDR_LOOPBACK(&v6.sin6_addr) != 0;
}

}  // namespace

Report Engine::fence(Generation generation, Epoch target) {
  return with_turn([&](Lock&) {
    // What it holds is not to be trusted: others decide without its word.
    if (memory_ran_out_) throw EngineFailure(failed_code_, failed_text_);
    return executor_.fence(generation, target);
  });
}

/// A heartbeat leaves in time even if the data path is busy: then with what was so a moment ago.
HeartbeatStatus Engine::status() {
  turn_wanted_.fetch_add(1, std::memory_order_relaxed);
  Lock turn(turn_, std::try_to_lock);
  const double give_up_s = monotonic_s() + status_wait_s;
  while (!turn && monotonic_s() < give_up_s) {
    std::this_thread::yield();
    (void)turn.try_lock();
  }
  turn_wanted_.fetch_sub(1, std::memory_order_relaxed);
  if (!turn) return last_status_;
  if (giving_way_ > 0) given_.notify_all();
  last_status_ = {};
  executor_.tell_status(last_status_, monotonic_s());
  if (at_entry_ && last_status_.step == no_step) last_status_.waiting = Waiting::gate;
  // Once in each view: said with every beat while the coordinator is away, it would push what else
  // waits to be said out of the queue; and a view that has come since may not have heard it.
  if (overdue_.code != SuspectCode::none && monotonic_s() >= overdue_s_ &&
      std::exchange(overdue_.epoch, executor_.machine()->view().epoch) !=
          executor_.machine()->view().epoch) {
    propose(overdue_);
  }
  return last_status_;
}

void Engine::adopt_lane(const LaneHello& hello, std::unique_ptr<Conduit> conduit) {
  const int socket = conduit->fd();
  const int one = 1;
  (void)::setsockopt(socket, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  (void)::setsockopt(socket, IPPROTO_TCP, TCP_NOTSENT_LOWAT, &notsent_lowat_bytes,
                     sizeof notsent_lowat_bytes);
  set_liveness_options(socket);
  if (is_loopback(socket)) {
    // Pacing, which BBR brings along, only costs where nothing can be congested (measured 5-10 %).
    (void)::setsockopt(socket, IPPROTO_TCP, TCP_CONGESTION, "cubic", 5);
  }
  const DefaultArithmetic arithmetic;  // frames that have come behind the handshake are applied
  with_turn([&](Lock&) {
    if (memory_ran_out_) return;
    // Through a third peer only its sockets lead.
    if (ucx_ && !hello.relayed) conduit = ucx_->conduit(std::move(conduit));
    executor_.adopt(hello, std::move(conduit), monotonic_s());
    attend();
  });
}

/// The program may be busy; what waits for it is bounded, and whoever is dropped dials again.
void Engine::adopt_stream(PeerId peer, Fd socket) {
  {
    const std::lock_guard lock(events_mutex_);
    const auto waiting = std::count_if(events_.begin(), events_.end(), [](const auto& event) {
      return event.kind == EngineEvent::Kind::stream;
    });
    if (waiting >= streams_waiting_max) return;
  }
  const int one = 1;
  (void)::setsockopt(socket.get(), IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  set_liveness_options(socket.get());
  emit({EngineEvent::Kind::stream, 0, 0, {}, {peer}, std::move(socket)});
}

void Engine::connect_failed(PeerId peer, Incarnation incarnation, bool relayed) {
  with_turn([&](Lock&) {
    executor_.dial_failed(peer, incarnation, relayed, monotonic_s());
    const Epoch planned = relayed ? 0 : executor_.lacks(peer, incarnation);
    if (planned != 0) emit({EngineEvent::Kind::links_failed, planned, 0, {}, {peer}});
  });
}

void Engine::evicted(std::string text) {
  fail("evicted", text);
  guarded([&] { emit({EngineEvent::Kind::evicted, 0, 0, std::move(text), {}}); });
}

void Engine::refused(std::uint8_t code, std::string text) {
  guarded([&] { emit({EngineEvent::Kind::refused, code, 0, std::move(text), {}}); });
}

void Engine::coordinator_connected(bool connected, Generation generation) {
  guarded([&] { emit({EngineEvent::Kind::coordinator, connected ? 1u : 0u, generation, {}, {}}); });
}

void Engine::coordinator_followed(Generation generation) {
  guarded([&] { emit({EngineEvent::Kind::followed, 0, generation, {}, {}}); });
}

void Engine::peer_beat(PeerId, Epoch, StepId) {}

void Engine::routes(Generation generation, const std::vector<Route>& table) {
  with_turn([&](Lock&) { executor_.set_routes(generation, table, monotonic_s()); });
}

bool Engine::endpoint_of(PeerId peer, Incarnation incarnation, PeerEndpoint& out) {
  const Lock turn = take_turn();
  const PeerEndpoint* known = executor_.endpoint_of(peer, incarnation);
  if (known != nullptr) out = *known;
  return known != nullptr;
}

void Engine::peer_silent(PeerId peer, Incarnation incarnation) {
  with_turn([&](Lock&) {
    executor_.silent(peer, incarnation, monotonic_s());
    attend();
  });
}

}  // namespace pccl
