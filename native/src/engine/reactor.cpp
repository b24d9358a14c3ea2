// native/src/engine/reactor.cpp — who moves the frames: the reactor thread, or a waiting caller.
// Ownership: see engine.hpp.
// Threads:   the reactor thread, and callers of begin_step and wait_step.
// Errors:    EngineFailure on callers' threads only.
#include <sys/eventfd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <thread>

#include "pccl/arithmetic.hpp"
#include "pccl/clock.hpp"
#include "pccl/engine.hpp"
#include "pccl/xxh3.hpp"

namespace pccl {
namespace {

constexpr std::size_t events_max = 64;
constexpr int idle_poll_ms = 50;   // also the grain of the executor's timers
// After driving, a caller mostly drives again: the reactor thread leaves the sockets to it so long.
constexpr double linger_s = 0.002;
constexpr int courtesy_spins = 20;
constexpr auto courtesy = std::chrono::milliseconds(2);
constexpr double dial_timeout_s = 5.0;
// The first of several tries, the next take longer: a SYN that was lost while the way was cut would
// be repeated ever more rarely.
constexpr double redial_try_s = 1.5;

}  // namespace

Engine::Lock Engine::take_turn() {
  turn_wanted_.fetch_add(1, std::memory_order_relaxed);
  Lock turn(turn_);
  turn_wanted_.fetch_sub(1, std::memory_order_relaxed);
  if (giving_way_ > 0) given_.notify_all();
  return turn;
}

/// Lets those in who wait for the turn: a mutex alone would give it back to its last holder.  Where
/// they have no processor to take it with, this thread sleeps until one had it.
void Engine::give_way(Lock& turn) noexcept {
  const auto wanted = [&] { return turn_wanted_.load(std::memory_order_relaxed) > 0; };
  for (int i = 0; i < courtesy_spins && wanted(); ++i) {
    turn.unlock();
    std::this_thread::yield();
    turn.lock();
  }
  if (!wanted()) return;
  ++giving_way_;
  (void)given_.wait_for(turn, courtesy, [&] { return !wanted(); });
  --giving_way_;
}

std::size_t Engine::poll(Lock& turn, std::span<Poller::Event> events, int timeout_ms,
                         bool driver) noexcept {
  if (ucx_ && timeout_ms != 0 && !ucx_->arm()) timeout_ms = 0;
  turn.unlock();
  std::size_t count = poller_.wait(ucx_ ? events.first(events.size() / 2) : events, timeout_ms);
  turn.lock();
  // What UCX has moved makes its descriptor unready: done by the reactor thread after a driver has
  // begun, that would let the driver sleep on.
  if (ucx_ && driving_ == driver) count += ucx_->progress(events.subspan(count), monotonic_s());
  return count;
}

/// Looks for events once, after whoever is ready to run has been offered this processor.
std::size_t Engine::offer_and_poll(Lock& turn, std::span<Poller::Event> events) noexcept {
  turn.unlock();
  const double offered_s = monotonic_s();
  std::this_thread::yield();
  const double took_s = monotonic_s() - offered_s;
  turn.lock();
  polling_.offered(took_s);
  return poll(turn, events, 0, true);
}

bool Engine::pump(double now_s) noexcept {
  if (memory_ran_out_) return false;
  try {
    return executor_.pump(now_s);
  } catch (...) {
    out_of_memory();
    return false;
  }
}

void Engine::handle(Lock& turn, std::span<const Poller::Event> events) noexcept {
  try {
    handle_each(turn, events);
  } catch (...) {
    out_of_memory();
  }
}

void Engine::handle_each(Lock& turn, std::span<const Poller::Event> events) {
  const DefaultArithmetic arithmetic;
  const double now_s = monotonic_s();
  for (const Poller::Event& event : events) {
    if (event.token == 0) {
      std::uint64_t count = 0;
      (void)!::read(kick_fd_.get(), &count, sizeof count);
      continue;
    }
    // Lanes may have gone since the event was fetched, by the hand of an event before it.
    const auto id = static_cast<std::uint32_t>(event.token);
    Link* link = executor_.link_of_lane(id);
    if (link == nullptr) continue;
    const auto lane = std::find_if(link->lanes.begin(), link->lanes.end(),
                                   [&](const auto& held) { return held->id() == id; });
    if (lane == link->lanes.end()) continue;
    const bool readable = (event.bits & (ready::read | ready::error)) != 0;
    executor_.ready(*link, **lane, readable, (event.bits & ready::write) != 0, now_s);
    if (!memory_ran_out_) (void)executor_.pump(now_s);
    give_way(turn);  // a fence must not wait for all that is ready
  }
  if (!memory_ran_out_) executor_.tick(now_s);
  if (ucx_) tell_wire();
  tell_decided();
}

/// What the program asked for and what it got may be two things: it should hear of it once.
void Engine::tell_wire() {
  if (!ucx_->changed()) return;
  const UcxReport now = ucx_->report();
  if (now.declined > told_wire_.declined) emit({EngineEvent::Kind::wire, 0, 0, {}, {}});
  if (now.transports != told_wire_.transports) {
    emit({EngineEvent::Kind::wire, now.rdma ? 1u : 0u, 0, now.transports, {}});
  }
  told_wire_ = now;
}

void Engine::run_reactor() noexcept {
  std::array<Poller::Event, events_max> events;
  Lock turn = take_turn();
  while (!stop_) {
    if (standby_.on_leave()) {
      turn.unlock();
      standby_.wait(linger_s);
      turn.lock();
      continue;
    }
    const bool more = pump(monotonic_s());
    give_way(turn);
    if (driving_ || stop_) continue;
    const std::size_t count = poll(turn, events, more ? 0 : idle_poll_ms, false);
    if (driving_) continue;  // events stay ready: the driver will be told of them
    handle(turn, {events.data(), count});
  }
}

template <class Done>
bool Engine::drive(Lock& turn, const Done& done, double deadline_s) noexcept {
  std::array<Poller::Event, events_max> events;
  driving_ = true;
  standby_.leave(Standby::for_good_s);
  double now_s = monotonic_s();
  polling_.begin(now_s);
  const auto decided = [&] { return done() || !failed_code_.empty(); };
  while (!decided() && now_s < deadline_s) {
    const bool more = pump(now_s);
    if (decided()) break;
    give_way(turn);
    std::size_t count = 0;
    if (more) {
      count = poll(turn, events, 0, true);
    } else if (polling_.looks(now_s)) {
      count = offer_and_poll(turn, events);
    } else {
      const int left_ms = static_cast<int>(std::min(deadline_s - now_s, 1.0) * 1e3) + 1;
      count = poll(turn, events, std::clamp(left_ms, 1, idle_poll_ms), true);
    }
    handle(turn, {events.data(), count});
    now_s = monotonic_s();
    if (count > 0) polling_.found(now_s);
  }
  polling_.end();
  driving_ = false;
  const bool open = executor_.open_steps() > 0 || executor_.letters().open() > 0;
  const bool busy = pump(now_s) || open || executor_.has_output();
  standby_.leave(busy ? 0 : now_s + linger_s);
  if (busy) standby_.call();
  if (busy && ucx_) kick();  // it may sleep on what was armed before this caller moved things
  changed_.notify_all();  // another waiting caller may drive now
  return decided();
}

/// Waits for what is done by moving the frames, or while another caller moves them.
template <class Done>
bool Engine::drive_or_wait(Lock& turn, const Done& done, double deadline_s) {
  for (;;) {
    if (done()) return true;
    if (!failed_code_.empty()) throw EngineFailure(failed_code_, failed_text_);
    const double left_s = deadline_s - monotonic_s();
    if (left_s <= 0) return false;
    if (driving_) {
      changed_.wait_for(turn, std::chrono::duration<double>(left_s));
    } else {
      (void)drive(turn, done, deadline_s);
    }
  }
}

bool Engine::wait_step(StepId step, double timeout_s) {
  check_usable();
  const double deadline_s = monotonic_s() + timeout_s;
  Lock turn = take_turn();
  if (executor_.record(step) == nullptr) throw EngineFailure("usage", "no such step");
  const auto decided = [&] {
    const StepRecord* record = executor_.record(step);
    return record == nullptr || record->state != StepState::open;
  };
  return drive_or_wait(turn, decided, deadline_s);
}

bool Engine::wait_letter(LetterId id, double timeout_s) {
  check_usable();
  const double deadline_s = monotonic_s() + timeout_s;
  Lock turn = take_turn();
  if (executor_.letters().find(id) == nullptr) throw EngineFailure("usage", "no such message");
  const auto ended = [&] {
    const Letter* letter = executor_.letters().find(id);
    return letter == nullptr || letter->state != LetterState::open;
  };
  return drive_or_wait(turn, ended, deadline_s);
}

BegunStep Engine::begin_step(const std::string& name, double timeout_s) {
  check_usable();
  const double deadline_s = monotonic_s() + timeout_s;
  return with_turn([&](Lock& turn) { return begin_or_wait(turn, name, deadline_s); });
}

BegunStep Engine::begin_or_wait(Lock& turn, const std::string& name, double deadline_s) {
  const std::uint64_t hash = name_hash(name);
  for (;;) {
    if (!failed_code_.empty()) throw EngineFailure(failed_code_, failed_text_);
    if (const auto id = executor_.begin(hash)) {
      leave_entry(turn);
      decided_ = false;
      return begun(*id);
    }
    refuse_begin(turn);
    const OutcomeMachine* machine = executor_.machine();
    const bool outside = machine == nullptr || machine->rank() < 0 ||
                         machine->view().pause != Pause::none;
    if (outside && !at_entry_) {
      at_entry_ = true;
      const StepId next = machine == nullptr ? 0 : machine->next_step();
      emit({EngineEvent::Kind::at_entry, 0, next, name, {}});
    }
    const double left_s = deadline_s - monotonic_s();
    if (left_s <= 0) throw EngineFailure("timeout", "no step began within the time given");
    attend();
    changed_.wait_for(turn, std::chrono::duration<double>(left_s));
  }
}

/// A view may hold members that come in at a later step: they do not count here.
BegunStep Engine::begun(StepId step) {
  const OutcomeMachine& machine = *executor_.machine();
  const StepRecord& record = *executor_.record(step);
  const std::size_t size = record.begun_with.size();
  // One that the others have failed already begins among nobody.
  if (size == 0) return {step, machine.view().epoch, machine.rank(), machine.group_size()};
  return {step, record.epoch, record.rank, static_cast<int>(size)};
}

void Engine::refuse_begin(const Lock& turn) {
  const Refusal refusal = executor_.refusal();
  if (refusal == Refusal::none) return;
  leave_entry(turn);
  switch (refusal) {
    case Refusal::left:
      throw EngineFailure("left", "this peer has left the run, as it was asked to");
    case Refusal::excluded:
      throw EngineFailure("excluded", excluded_text_);
    case Refusal::underflow:
      throw EngineFailure("underflow", "the view has fewer members than min_world; steps run again "
                                       "when enough have come in");
    case Refusal::none: return;
  }
}

void Engine::leave_entry() {
  with_turn([&](Lock& turn) { leave_entry(turn); });
}

void Engine::leave_entry(const Lock&) {
  if (!at_entry_) return;
  at_entry_ = false;
  emit({EngineEvent::Kind::left_entry, 0, 0, {}, {}});
}

void Engine::attend() noexcept {
  if (!driving_) standby_.leave(0);
  standby_.call();
  kick();
}

void Engine::after_change() noexcept {
  decided_ = false;
  attend();
  changed_.notify_all();
}

void Engine::tell_decided() noexcept {
  if (!decided_) return;
  decided_ = false;
  changed_.notify_all();
}

void Engine::kick() noexcept {
  const std::uint64_t one = 1;
  (void)!::write(kick_fd_.get(), &one, sizeof one);
}

// --- the executor's callbacks, under the turn ---

void Engine::watch(Lane& lane) noexcept {
  if (lane.conduit().watch(poller_, lane.id()) != Status::ok) lane.unwatched = true;
}

void Engine::unwatch(Lane& lane) noexcept { lane.conduit().unwatch(poller_); }

void Engine::want_write(Lane& lane, bool wanted) noexcept {
  if (lane.conduit().want_write(poller_, lane.id(), wanted) != Status::ok) lane.unwatched = true;
}

void Engine::suspect(Suspect suspicion) { control_->suspect(std::move(suspicion)); }

void Engine::dial(DialRequest request, bool again) {
  request.timeout_s = dial_timeout_s;
  request.try_s = again && !request.via ? redial_try_s : dial_timeout_s;
  control_->connect(request);
}

void Engine::forget(PeerId peer, Incarnation incarnation) {
  control_->forget(peer, incarnation);
}

void Engine::step_decided(const StepRecord& record) {
  decided_ = true;
  if (record.notify) emit({EngineEvent::Kind::decided, 0, record.id, {}, {}});
}

void Engine::letter_ended(const Letter& letter) {
  decided_ = true;
  // That the engine ends, all are told at once, and there may be no memory to tell each.
  if (letter.notify && letter.end != LetterEnd::closed) {
    emit({EngineEvent::Kind::letter, 0, letter.id, {}, {}});
  }
}

void Engine::switched(Epoch epoch, StepId step) {
  emit({EngineEvent::Kind::switched, epoch, step, {}, {}});
}

void Engine::left(Epoch epoch, StepId step) {
  emit({EngineEvent::Kind::left, epoch, step, {}, {}});
}

void Engine::links_up(Epoch epoch) {
  emit({EngineEvent::Kind::links_up, epoch, 0, {}, {}});
}

}  // namespace pccl
