// native/src/engine/engine.cpp — the engine's public members and the control thread's callbacks.
// Ownership: see engine.hpp.
// Threads:   any; callbacks on the control thread.
// Errors:    EngineFailure.
#include "pccl/engine.hpp"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#include <algorithm>
#include <cmath>
#include <system_error>

#include "pccl/arithmetic.hpp"
#include "pccl/clock.hpp"
#include "pccl/quiet_thread.hpp"
#include "pccl/sockets.hpp"
#include "pccl/xxh3.hpp"

namespace pccl {
namespace {

std::atomic<std::uint64_t> forks{0};

void note_forks() {
  static const int registered = ::pthread_atfork(nullptr, nullptr, [] { ++forks; });
  (void)registered;
}

// One lane moves what one core can; a second only adds system calls between hosts this close.
constexpr std::uint16_t lanes_default = 1;
// More unsent bytes than this in one socket only make its frames late for other lanes.
constexpr int notsent_lowat_bytes = 512 * 1024;

// That long a heartbeat waits for the turn: a visit of one lane takes less.
constexpr double status_wait_s = 0.02;

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

Fd make_eventfd() {
  Fd fd(::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC));
  if (!fd) throw std::system_error(errno, std::generic_category(), "eventfd");
  return fd;
}

}  // namespace

Engine::Engine(const EngineConfig& config)
    : config_(config),
      forks_((note_forks(), forks.load())),
      event_fd_(make_eventfd()),
      kick_fd_(make_eventfd()),
      executor_(config.peer_id, config.lanes != 0 ? config.lanes : lanes_default, config.host_key,
                *this) {
  (void)poller_.add(kick_fd_.get(), ready::read, 0);
  ControlConfig control;
  control.peer_id = config.peer_id;
  control.listen_host = config.listen_host;
  control.listen_port = config.listen_port;
  ControlHost& host = *this;  // a private base: make_unique could not convert
  control_ = std::make_unique<Control>(control, host);
  reactor_ = quiet_thread([this] { run_reactor(); });
}

Engine::~Engine() {
  if (forks.load() != forks_) {
    // In a forked child the threads are not here to be joined, and the mutexes may be held.
    (void)control_.release();
    reactor_.detach();
    return;
  }
  close();
}

void Engine::close() noexcept {
  if (forks.load() != forks_) return;
  {
    const Lock turn = take_turn();
    if (failed_code_.empty()) {
      failed_code_ = "closed";
      failed_text_ = "the communicator is closed";
    }
    executor_.abandon();
    stop_ = true;
    changed_.notify_all();
    standby_.notify_all();
  }
  kick();
  control_->stop();
  if (reactor_.joinable()) reactor_.join();
}

void Engine::check_usable() const {
  if (forks.load() != forks_) {
    throw EngineFailure("forked", "this process was forked after connect(): connect in the child");
  }
}

std::vector<EngineEvent> Engine::drain_events() {
  check_usable();
  std::uint64_t count = 0;
  (void)!::read(event_fd_.get(), &count, sizeof count);
  const std::lock_guard lock(events_mutex_);
  std::vector<EngineEvent> events(std::make_move_iterator(events_.begin()),
                                  std::make_move_iterator(events_.end()));
  events_.clear();
  return events;
}

void Engine::emit(EngineEvent event) noexcept {
  {
    const std::lock_guard lock(events_mutex_);
    events_.push_back(std::move(event));
  }
  const std::uint64_t one = 1;
  (void)!::write(event_fd_.get(), &one, sizeof one);
}

void Engine::admit(const Identity& identity, const CoordinatorEndpoint& coordinator) {
  check_usable();
  {
    const Lock turn = take_turn();
    executor_.admit(identity.incarnation);
  }
  control_->admit(identity, coordinator);
}

void Engine::prepare_view(Generation, Epoch epoch, const std::vector<MemberEntry>& members) {
  check_usable();
  const Lock turn = take_turn();
  executor_.prepare(epoch, members, monotonic_s());
}

StepId Engine::hold(Generation generation, Epoch epoch) {
  check_usable();
  const Lock turn = take_turn();
  return executor_.hold(generation, epoch);
}

void Engine::activate(const View& view, const std::vector<MemberEntry>& members, StepId step,
                      const std::string& name) {
  check_usable();
  const Lock turn = take_turn();
  count_local_peers(members);
  std::optional<std::uint64_t> hash;
  if (!name.empty()) hash = name_hash(name);
  executor_.activate(view, members, step, hash, monotonic_s());
  after_change();
}

void Engine::cancel_plan(Generation generation, Epoch epoch) {
  check_usable();
  const Lock turn = take_turn();
  executor_.cancel_plan(generation, epoch);
  after_change();
}

void Engine::install(const View& view, const std::vector<MemberEntry>& members,
                     StepId committed_below, const std::vector<Decision>& decisions) {
  check_usable();
  Status status = Status::ok;
  {
    const Lock turn = take_turn();
    count_local_peers(members);
    status = executor_.install(view, members, committed_below, decisions, monotonic_s());
    after_change();
  }
  if (status == Status::protocol) {
    evicted("the coordinator's outcome contradicts what this peer holds");
    return;
  }
  control_->beat_now();
  emit({EngineEvent::Kind::installed, view.epoch, 0, {}, {}});
}

void Engine::exclude(Generation generation, Epoch epoch, const std::string& text) {
  check_usable();
  {
    const Lock turn = take_turn();
    excluded_text_ = text;
    executor_.exclude(generation, epoch, text);
    after_change();
  }
  control_->beat_now();
  emit({EngineEvent::Kind::excluded, epoch, 0, {}, {}});
}

void Engine::count_local_peers(const std::vector<MemberEntry>& members) {
  const auto local = std::count_if(members.begin(), members.end(), [&](const MemberEntry& entry) {
    return entry.host_key == config_.host_key;
  });
  // Spinning pays only while every peer of this machine has a processor to spin on.
  const auto processors = static_cast<std::ptrdiff_t>(std::thread::hardware_concurrency());
  const int automatic = local <= processors ? 100 : 0;
  spin_s_ = 1e-6 * (config_.spin_us >= 0 ? config_.spin_us : automatic);
}

void Engine::fail(const std::string& code, const std::string& text) {
  check_usable();
  const Lock turn = take_turn();
  if (!failed_code_.empty()) return;
  failed_code_ = code;
  failed_text_ = text;
  executor_.abandon();
  emit({EngineEvent::Kind::decided, 0, ~StepId{0}, code, {}});  // all of them
  after_change();
}

View Engine::view(int& rank, std::uint32_t& group) {
  check_usable();
  const Lock turn = take_turn();
  rank = -1;
  group = 0;
  if (executor_.machine() == nullptr) return {};
  rank = executor_.machine()->rank();
  group = executor_.machine()->group();
  return executor_.machine()->view();
}

void Engine::post(const Posted& posted, bool last) {
  check_usable();
  if (!std::isfinite(posted.weight) || posted.weight < 0) {
    throw EngineFailure("usage", "a weight must be finite and not negative");
  }
  const DefaultArithmetic arithmetic;  // early frames are applied here and now
  const Lock turn = take_turn();
  if (!failed_code_.empty()) throw EngineFailure(failed_code_, failed_text_);
  if (executor_.post(posted) != Status::ok || (last && executor_.seal(posted.step) != Status::ok)) {
    throw EngineFailure("usage", "the step is over or sealed, or has an operation with this tag");
  }
  const bool more = executor_.pump(monotonic_s());
  // Whoever posts the last operation mostly waits next, and then moves the frames itself.
  const std::uint64_t bytes = posted.descriptor.count * size_of(posted.descriptor.dtype);
  const bool large = bytes > small_operation_bytes;
  if (more || (large && !last)) attend();
  tell_decided();
}

void Engine::seal(StepId step) {
  check_usable();
  const DefaultArithmetic arithmetic;
  const Lock turn = take_turn();
  if (!failed_code_.empty()) throw EngineFailure(failed_code_, failed_text_);
  if (executor_.seal(step) != Status::ok) {
    throw EngineFailure("usage", "the step is over or sealed");
  }
  if (executor_.pump(monotonic_s())) attend();
  tell_decided();
}

StepResult Engine::result(StepId step) {
  check_usable();
  const Lock turn = take_turn();
  const StepRecord* record = executor_.record(step);
  if (record == nullptr) throw EngineFailure("usage", "no such step");
  return {record->state,      record->epoch, record->retries, record->contributors,
          record->wire_bytes, record->code,  record->text};
}

void Engine::release(StepId step) {
  if (forks.load() != forks_) return;
  const Lock turn = take_turn();
  executor_.release(step);
}

void Engine::propose_failure(StepId step, SuspectCode code, const std::string& text) {
  check_usable();
  Suspect suspicion{0, step, code, {}, text};
  {
    const Lock turn = take_turn();
    const StepRecord* record = executor_.record(step);
    if (record == nullptr || record->state != StepState::open) return;
    // A step that waits at the gate has no attempt: what it says concerns the view in force.
    suspicion.epoch = record->started ? record->epoch : executor_.machine()->view().epoch;
  }
  control_->suspect(std::move(suspicion));
}

void Engine::notify_when_decided(StepId step) {
  check_usable();
  const Lock turn = take_turn();
  StepRecord* record = executor_.record(step);
  if (record == nullptr || record->state != StepState::open || !failed_code_.empty()) {
    emit({EngineEvent::Kind::decided, 0, step, {}, {}});
    return;
  }
  record->notify = true;
  attend();
}

EngineStats Engine::stats() {
  check_usable();
  const ControlCounters control = control_->counters();
  const Lock turn = take_turn();
  return {executor_.counters(),  control,
          executor_.open_steps(), executor_.link_count(),
          executor_.lane_count(), executor_.progress(),
          executor_.environment().buffers.bytes_in_use()};
}

// --- the control thread's callbacks ---

Report Engine::fence(Generation generation, Epoch target) noexcept {
  const Lock turn = take_turn();
  return executor_.fence(generation, target);
}

/// A heartbeat leaves in time even if the data path is busy: then with what was so a moment ago.
HeartbeatStatus Engine::status() noexcept {
  turn_wanted_.fetch_add(1, std::memory_order_relaxed);
  Lock turn(turn_, std::try_to_lock);
  const double give_up_s = monotonic_s() + status_wait_s;
  while (!turn && monotonic_s() < give_up_s) {
    std::this_thread::yield();
    (void)turn.try_lock();
  }
  turn_wanted_.fetch_sub(1, std::memory_order_relaxed);
  if (!turn) return last_status_;
  last_status_ = {};
  executor_.tell_status(last_status_, monotonic_s());
  if (at_entry_ && last_status_.step == no_step) last_status_.waiting = Waiting::gate;
  return last_status_;
}

void Engine::adopt_lane(const LaneHello& hello, Fd socket) noexcept {
  const int one = 1;
  (void)::setsockopt(socket.get(), IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  (void)::setsockopt(socket.get(), IPPROTO_TCP, TCP_NOTSENT_LOWAT, &notsent_lowat_bytes,
                     sizeof notsent_lowat_bytes);
  set_liveness_options(socket.get());
  const bool loopback = is_loopback(socket.get());
  if (loopback) {
    // Pacing, which BBR brings along, only costs where nothing can be congested (measured 5-10 %).
    (void)::setsockopt(socket.get(), IPPROTO_TCP, TCP_CONGESTION, "cubic", 5);
  }
  const Lock turn = take_turn();
  executor_.adopt(hello, std::move(socket), loopback, monotonic_s());
  attend();
}

void Engine::connect_failed(PeerId peer, Incarnation incarnation, bool relayed) noexcept {
  Epoch epoch = 0;
  {
    const Lock turn = take_turn();
    executor_.dial_failed(peer, incarnation, relayed, monotonic_s());
    if (!relayed && executor_.prepares(peer, incarnation)) epoch = executor_.preparing();
  }
  if (epoch != 0) emit({EngineEvent::Kind::links_failed, epoch, 0, {}, {peer}});
}

void Engine::evicted(std::string text) noexcept {
  fail("evicted", text);
  emit({EngineEvent::Kind::evicted, 0, 0, std::move(text), {}});
}

void Engine::refused(std::uint8_t code, std::string text) noexcept {
  emit({EngineEvent::Kind::refused, code, 0, std::move(text), {}});
}

void Engine::coordinator_connected(bool connected) noexcept {
  emit({EngineEvent::Kind::coordinator, connected ? 1u : 0u, 0, {}, {}});
}

void Engine::peer_beat(PeerId, Epoch, StepId) noexcept {}

void Engine::routes(Generation generation, const std::vector<Route>& table) noexcept {
  const Lock turn = take_turn();
  executor_.set_routes(generation, table, monotonic_s());
}

bool Engine::endpoint_of(PeerId peer, Incarnation incarnation, PeerEndpoint& out) noexcept {
  const Lock turn = take_turn();
  const PeerEndpoint* known = executor_.endpoint_of(peer, incarnation);
  if (known != nullptr) out = *known;
  return known != nullptr;
}

void Engine::peer_silent(PeerId peer, Incarnation incarnation) noexcept {
  const Lock turn = take_turn();
  executor_.silent(peer, incarnation, monotonic_s());
  attend();
}

}  // namespace pccl
