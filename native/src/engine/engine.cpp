// native/src/engine/engine.cpp — the engine's public members.
// Ownership: see engine.hpp.
// Threads:   any.
// Errors:    EngineFailure.
#include "pccl/engine.hpp"

#include <pthread.h>
#include <sys/eventfd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <system_error>
#include <thread>

#include "pccl/arithmetic.hpp"
#include "pccl/clock.hpp"
#include "pccl/quiet_thread.hpp"

namespace pccl {
namespace {

std::atomic<std::uint64_t> forks{0};

void note_forks() {
  static const int registered = ::pthread_atfork(nullptr, nullptr, [] { ++forks; });
  (void)registered;
}

// One lane moves what one core can; a second only adds system calls between hosts this close.
constexpr std::uint16_t lanes_default = 1;
constexpr int spin_us_default = 100;  // a small operation among peers of a machine takes as long
constexpr double last_words_s = 1.0;
// No lane has that number: it only wakes who polls.
constexpr std::uint64_t ucx_token = std::uint64_t{1} << 32U;
constexpr const char* memory_text = "this process has no memory left; its inputs are given back";

void check_key(const TlsContext& tls, const PeerId& peer) {
  if (tls.peer() != peer) {
    throw EngineFailure("usage", "the certificate's key is not the one this peer is named after");
  }
}

bool is_loopback(const std::string& host) { return host.starts_with("127.") || host == "::1"; }

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
      executor_(config.peer_id, config.lanes != 0 ? config.lanes : lanes_default,
                config.shared_memory, config.host_key,
                *this) {
  (void)poller_.add(kick_fd_.get(), ready::read, 0);
  polling_.set_limit(1e-6 * (config.spin_us >= 0 ? config.spin_us : spin_us_default));
  if (!config.ucx_libraries.empty()) {
    if (config.tls) throw EngineFailure("usage", "UCX does not encrypt, and the run is secured");
    std::string obstacle;
    ucx_ = UcxWorker::make(config.ucx_libraries, is_loopback(config.listen_host), obstacle);
    if (!ucx_) throw EngineFailure("ucx", obstacle);
    (void)poller_.add(ucx_->event_fd(), ready::read, ucx_token);
  }
  // So that no memory is needed to say that there is none.
  failed_text_.reserve(std::strlen(memory_text) + 1);
  ControlConfig control;
  control.peer_id = config.peer_id;
  control.listen_host = config.listen_host;
  control.listen_port = config.listen_port;
  if (config.tls) check_key(*config.tls, config.peer_id);
  control.tls = config.tls;
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
  deliver_last_words();
  {
    const Lock turn = take_turn();
    if (failed_code_.empty()) {
      failed_code_ = "closed";
      failed_text_ = "the communicator is closed";
    }
    executor_.abandon();
    stop_ = true;
    changed_.notify_all();
    standby_.call();
  }
  kick();
  control_->stop();
  if (reactor_.joinable()) reactor_.join();
}

/// Who left as planned is waited for by nobody, but its last DONEs are: closing a socket too early
/// would take them along.
void Engine::deliver_last_words() noexcept {
  const double until_s = monotonic_s() + last_words_s;
  for (;;) {
    {
      const Lock turn = take_turn();
      if (stop_ || !failed_code_.empty() || !executor_.owes_words()) return;
    }
    if (monotonic_s() >= until_s) return;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
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
  bool ran_out = false;
  {
    const Lock turn = take_turn();
    ran_out = memory_ran_out_ && !std::exchange(told_of_memory_, memory_ran_out_);
  }
  const std::lock_guard lock(events_mutex_);
  std::vector<EngineEvent> events(std::make_move_iterator(events_.begin()),
                                  std::make_move_iterator(events_.end()));
  events_.clear();
  if (ran_out) events.push_back({EngineEvent::Kind::failed, 0, 0, memory_text, {}});
  return events;
}

void Engine::out_of_memory() noexcept {
  if (memory_ran_out_) return;
  memory_ran_out_ = true;
  if (failed_code_.empty()) {
    failed_code_ = "memory";
    failed_text_ = memory_text;
  }
  executor_.cut();
  control_->end();
  changed_.notify_all();
  standby_.call();
  const std::uint64_t one = 1;
  (void)!::write(event_fd_.get(), &one, sizeof one);
}

void Engine::emit(EngineEvent event) {
  {
    const std::lock_guard lock(events_mutex_);
    events_.push_back(std::move(event));
  }
  const std::uint64_t one = 1;
  (void)!::write(event_fd_.get(), &one, sizeof one);
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
  with_turn([&](Lock&) {
    if (!failed_code_.empty()) throw EngineFailure(failed_code_, failed_text_);
    if (executor_.post(posted) != Status::ok ||
        (last && executor_.seal(posted.step) != Status::ok)) {
      throw EngineFailure("usage",
                          "the step is over or sealed, has an operation with this tag, or the root "
                          "or the sizes do not fit its members");
    }
    const bool more = pump(monotonic_s());
    // Whoever posts the last operation mostly waits next, and then moves the frames itself.
    const Descriptor& what = posted.descriptor;
    const bool large =
        what.uneven || what.count * size_of(what.dtype) > small_operation_bytes;
    if (more || (large && !last) || (ucx_ && ucx_->busy())) attend();
    tell_decided();
  });
}

void Engine::seal(StepId step) {
  check_usable();
  const DefaultArithmetic arithmetic;
  with_turn([&](Lock&) {
    if (!failed_code_.empty()) throw EngineFailure(failed_code_, failed_text_);
    if (executor_.seal(step) != Status::ok) {
      throw EngineFailure("usage", "the step is over or sealed");
    }
    if (pump(monotonic_s()) || (ucx_ && ucx_->busy())) attend();
    tell_decided();
  });
}

StepResult Engine::result(StepId step) {
  check_usable();
  const Lock turn = take_turn();
  const StepRecord* record = executor_.record(step);
  if (record == nullptr) throw EngineFailure("usage", "no such step");
  return {record->state,  record->epoch,      record->retries, record->contributors,
          record->groups, record->wire_bytes, record->code,    record->text};
}

void Engine::release(StepId step) {
  if (forks.load() != forks_) return;
  const Lock turn = take_turn();
  executor_.release(step);
}

void Engine::propose_failure(StepId step, SuspectCode code, const std::string& text,
                             double after_s) {
  check_usable();
  Suspect suspicion{0, step, code, {}, text};
  const Lock turn = take_turn();
  if (after_s > 0) {
    overdue_ = std::move(suspicion);
    overdue_s_ = monotonic_s() + after_s;
  } else {
    propose(std::move(suspicion));
  }
}

/// With the turn held.
void Engine::propose(Suspect suspicion) {
  const StepRecord* record = executor_.record(suspicion.step);
  if (record == nullptr || record->state != StepState::open) return;
  // A step that waits at the gate has no attempt: what it says concerns the view in force.
  suspicion.epoch = record->started ? record->epoch : executor_.machine()->view().epoch;
  control_->suspect(std::move(suspicion));
}

void Engine::notify_when_decided(StepId step) {
  check_usable();
  with_turn([&](Lock&) {
    StepRecord* record = executor_.record(step);
    if (record == nullptr || record->state != StepState::open || !failed_code_.empty()) {
      emit({EngineEvent::Kind::decided, 0, step, {}, {}});
      return;
    }
    record->notify = true;
    attend();
  });
}

void Engine::set_tls(std::shared_ptr<const TlsContext> tls) {
  check_usable();
  if (!config_.tls) throw EngineFailure("usage", "a run that began plain cannot be secured");
  check_key(*tls, config_.peer_id);
  control_->set_tls(std::move(tls));
}

EngineStats Engine::stats() {
  check_usable();
  const ControlCounters control = control_->counters();
  const Lock turn = take_turn();
  const Letters& letters = executor_.letters();
  return {executor_.counters(),  control,
          executor_.open_steps(), letters.open(),
          letters.sends_done,     letters.receives_done,
          executor_.link_count(), executor_.lane_count(),
          executor_.progress(),   executor_.environment().buffers.bytes_in_use(),
          ucx_ ? ucx_->report() : UcxReport{}};
}

}  // namespace pccl
