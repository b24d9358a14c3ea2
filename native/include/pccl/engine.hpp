// native/include/pccl/engine.hpp — one per process: threads, waits and errors around the executor.
//
// Two threads: the control thread (control.hpp) and the reactor.  Everything of the data path is
// guarded by one mutex, the turn, held while events are handled and never while waiting.  A caller
// that waits for a step takes the reactor's place and moves the frames itself, since waking another
// thread costs more than a small operation; the reactor thread then stands by.
//
// Ownership: owns both threads, all sockets and the executor.
// Threads:   every public member from any thread.
// Errors:    the constructor throws std::system_error; members throw EngineFailure (on the caller's
//            thread, with a code and a text); the engine's own threads never throw.  Where memory
//            runs out in the middle of something, whoever's thread it was, the engine ends: every
//            wait fails with code memory, and to the others this process looks dead.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <new>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "pccl/control.hpp"
#include "pccl/executor.hpp"
#include "pccl/poller.hpp"
#include "pccl/polling.hpp"
#include "pccl/standby.hpp"
#include "pccl/ucx.hpp"

namespace pccl {

/// Why a call could not be served: closed, evicted, coordinator_lost, timeout, usage, forked, left,
/// underflow, excluded, memory, ucx.
class EngineFailure : public std::runtime_error {
 public:
  EngineFailure(std::string code, const std::string& text)
      : std::runtime_error(text), code_(std::move(code)) {}
  [[nodiscard]] const std::string& code() const noexcept { return code_; }

 private:
  std::string code_;
};

struct EngineEvent {
  enum class Kind : std::uint8_t {
    at_entry, left_entry, links_up, links_failed, switched, left, installed, excluded, evicted,
    refused, coordinator, followed, decided, letter, failed, stream,
    wire,  // UCX has chosen its transports (text), or the peer does without it (no text)
  };
  Kind kind;
  std::uint64_t number = 0;  // epoch, step, code or 0/1
  std::uint64_t step = 0;    // or generation, or letter
  std::string text;
  std::vector<PeerId> peers;
  Fd socket{};  // of a stream: whoever takes the event owns it
};

struct EngineConfig {
  PeerId peer_id;
  std::string listen_host = "127.0.0.1";
  std::uint16_t listen_port = 0;
  std::uint16_t lanes = 0;  // per pair; 0: automatic
  int spin_us = -1;         // of a waiting caller before it blocks; -1: automatic
  std::uint64_t host_key = 0;
  bool shared_memory = true;  // payloads between processes of one machine go through memory
  std::shared_ptr<const TlsContext> tls{};  // of a secured run: its key is the one of peer_id
  std::vector<std::string> ucx_libraries;  // lanes go through the first usable; none: over TCP
};

struct BegunStep {
  StepId step = 0;
  Epoch epoch = 0;
  int rank = 0;  // it and the world size are of the own group's participants
  int world_size = 0;
};

struct StepResult {
  StepState state = StepState::open;
  Epoch epoch = 0;
  std::uint32_t retries = 0;
  std::vector<PeerId> contributors;  // of the own group, in rank order
  std::vector<std::uint32_t> groups;  // of each participant, of all groups
  std::uint64_t wire_bytes = 0;
  SuspectCode code = SuspectCode::none;
  std::string text;
};

struct EngineStats {
  ExecutorCounters executor;
  ControlCounters control;
  std::size_t open_steps = 0;
  std::size_t open_letters = 0;
  std::uint64_t letters_sent = 0;
  std::uint64_t letters_received = 0;
  std::size_t links = 0;
  std::size_t lanes = 0;
  std::uint64_t progress = 0;
  std::uint64_t tile_bytes = 0;
  UcxReport ucx;
};

class Engine final : private ControlHost, private ExecutorHost {
 public:
  explicit Engine(const EngineConfig& config);
  ~Engine();
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  [[nodiscard]] std::uint16_t port() const noexcept { return control_->port(); }
  /// Readable while events wait.
  [[nodiscard]] int event_fd() const noexcept { return event_fd_.get(); }
  std::vector<EngineEvent> drain_events();

  // --- membership: called by the member's agent ---
  void admit(const Identity& identity, const CoordinatorEndpoint& coordinator);
  void prepare_view(Generation generation, Epoch epoch, const std::vector<MemberEntry>& members);
  StepId hold(Generation generation, Epoch epoch);
  /// Within so many steps this process is expected to begin one of that name; 0: not at all.
  std::uint64_t entry_within(const std::string& name);
  void activate(const View& view, const std::vector<MemberEntry>& members, StepId step,
                const std::string& name);
  void cancel_plan(Generation generation, Epoch epoch);
  void install(const View& view, const std::vector<MemberEntry>& members, StepId committed_below,
               const std::vector<Decision>& decisions);
  /// Back among the learners: what is open fails with `code`, or the next begin_step tells; after
  /// that it waits as a newcomer's.
  void exclude(Generation generation, Epoch epoch, const std::string& text,
               SuspectCode code = SuspectCode::excluded);
  /// Every present and later wait ends with this failure; inputs of open steps are given back.
  void fail(const std::string& code, const std::string& text);
  [[nodiscard]] View view(int& rank, std::uint32_t& group);

  // --- steps: called by the program ---
  /// After a timeout the program still waits at the entry, and may call again, or leave_entry().
  BegunStep begin_step(const std::string& name, double timeout_s);
  void leave_entry();
  /// With `last`, seals the step as well: one system call sends it all.
  void post(const Posted& posted, bool last = false);
  void seal(StepId step);
  /// False: the time is over and the step is still open.
  bool wait_step(StepId step, double timeout_s);
  StepResult result(StepId step);
  void release(StepId step);
  /// Tells the coordinator.  With `after_s` the control thread does, then and with each heartbeat
  /// while the step is open, whatever else this process is at; the newest such call counts, and one
  /// of SuspectCode::none takes it back.
  void propose_failure(StepId step, SuspectCode code, const std::string& text, double after_s = 0);
  void notify_when_decided(StepId step);

  // --- messages: called by the program ---
  /// Its memory is borrowed until the letter has ended; `posted.deadline_s` is set from
  /// `timeout_s`, and then it ends by itself.
  LetterId post(PostedLetter posted, double timeout_s);
  /// False: the time is over and the letter is still open.
  bool wait_letter(LetterId letter, double timeout_s);
  Letter letter(LetterId letter);
  void cancel_letter(LetterId letter);
  void release_letter(LetterId letter);
  void notify_when_ended(LetterId letter);

  /// For connections from now on; of the same key.
  void set_tls(std::shared_ptr<const TlsContext> tls);
  EngineStats stats();
  void close() noexcept;
  /// What a FLUSH does, for tests that play the coordinator.
  Report fence_for_test(Generation generation, Epoch target) { return fence(generation, target); }
  /// What the control thread says of a dial through a third peer that came to nothing.
  void connect_failed_for_test(PeerId peer, Incarnation incarnation) {
    connect_failed(peer, incarnation, true);
  }

 private:
  using Lock = std::unique_lock<std::mutex>;

  // ControlHost, on the control thread.
  Report fence(Generation generation, Epoch target) override;
  HeartbeatStatus status() override;
  void adopt_lane(const LaneHello& hello, std::unique_ptr<Conduit> conduit) override;
  void adopt_stream(PeerId peer, Fd socket) override;
  void connect_failed(PeerId peer, Incarnation incarnation, bool relayed) override;
  void evicted(std::string text) override;
  void refused(std::uint8_t code, std::string text) override;
  void coordinator_connected(bool connected, Generation generation) override;
  void coordinator_followed(Generation generation) override;
  void peer_beat(PeerId peer, Epoch epoch, StepId watermark) override;
  void peer_silent(PeerId peer, Incarnation incarnation) override;
  void routes(Generation generation, const std::vector<Route>& table) override;
  bool endpoint_of(PeerId peer, Incarnation incarnation, PeerEndpoint& out) override;
  // ExecutorHost, under the turn.
  void watch(Lane& lane) noexcept override;
  void unwatch(Lane& lane) noexcept override;
  void want_write(Lane& lane, bool wanted) noexcept override;
  void suspect(Suspect suspicion) override;
  void dial(DialRequest request, bool again) override;
  void forget(PeerId peer, Incarnation incarnation) override;
  void step_decided(const StepRecord& record) override;
  void letter_ended(const Letter& letter) override;
  void switched(Epoch epoch, StepId step) override;
  void left(Epoch epoch, StepId step) override;
  void links_up(Epoch epoch) override;

  Lock take_turn();
  template <class Body>
  auto with_turn(const Body& body);
  template <class Body>
  void guarded(const Body& body);
  void out_of_memory() noexcept;  // under the turn
  void give_way(Lock& turn) noexcept;
  void run_reactor() noexcept;
  std::size_t poll(Lock& turn, std::span<Poller::Event> events, int timeout_ms,
                   bool driver) noexcept;
  std::size_t offer_and_poll(Lock& turn, std::span<Poller::Event> events) noexcept;
  void handle(Lock& turn, std::span<const Poller::Event> events) noexcept;
  void handle_each(Lock& turn, std::span<const Poller::Event> events);
  void tell_wire();
  bool pump(double now_s) noexcept;
  /// True once `done()`, or the engine has failed.
  template <class Done>
  bool drive(Lock& turn, const Done& done, double deadline_s) noexcept;
  template <class Done>
  bool drive_or_wait(Lock& turn, const Done& done, double deadline_s);
  BegunStep begin_or_wait(Lock& turn, const std::string& name, double deadline_s);
  BegunStep begun(StepId step);
  void after_change() noexcept;
  void attend() noexcept;  // the reactor thread, or who drives in its place, has work
  void tell_decided() noexcept;
  void leave_entry(const Lock& turn);
  void refuse_begin(const Lock& turn);
  void kick() noexcept;
  void deliver_last_words() noexcept;
  void emit(EngineEvent event);
  void propose(Suspect suspicion);
  void check_usable() const;
  void expect(const std::vector<MemberEntry>& members);

  const EngineConfig config_;
  const std::uint64_t forks_;  // at construction: a child process must not use this engine
  Fd event_fd_;
  Fd kick_fd_;
  Poller poller_;
  std::unique_ptr<UcxWorker> ucx_;  // null: lanes are TCP
  UcxReport told_wire_;              // what has been told of it

  std::mutex turn_;
  std::atomic<int> turn_wanted_{0};
  int giving_way_ = 0;               // threads that sleep until somebody has had the turn
  std::condition_variable given_;
  std::condition_variable changed_;  // a step was decided, the gate may be open, or it all failed
  Standby standby_;                  // of the reactor thread
  Executor executor_;
  bool driving_ = false;             // a waiting caller moves the frames
  bool stop_ = false;
  bool decided_ = false;
  bool at_entry_ = false;            // the coordinator has been told that we wait
  HeartbeatStatus last_status_;      // of the control thread, which alone asks
  Suspect overdue_;                  // what it says of a step, if that is still open at overdue_s_
  double overdue_s_ = 0;
  Polling polling_;                  // of the caller that drives
  std::string failed_code_;
  std::string failed_text_;
  std::string excluded_text_;
  bool memory_ran_out_ = false;
  bool told_of_memory_ = false;      // by drain_events

  std::mutex events_mutex_;
  std::deque<EngineEvent> events_;

  std::unique_ptr<Control> control_;  // after all it calls back into
  std::thread reactor_;
};

/// With the turn held; what it calls may allocate.
template <class Body>
auto Engine::with_turn(const Body& body) {
  Lock turn = take_turn();
  try {
    return body(turn);
  } catch (const std::bad_alloc&) {
    out_of_memory();
    throw EngineFailure(failed_code_, failed_text_);
  }
}

/// Without the turn.
template <class Body>
void Engine::guarded(const Body& body) {
  try {
    body();
  } catch (const std::bad_alloc&) {
    const Lock turn = take_turn();
    out_of_memory();
  }
}

}  // namespace pccl
