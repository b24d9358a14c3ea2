// native/src/control/coordinator_link.hpp — the native connection to the coordinator.
//
//   off -> waiting -> connecting -> securing -> greeting -> up    (a fault goes to waiting)
//
// Up: a heartbeat at once and every heartbeat_s; FLUSH is fenced and answered with a REPORT before
// anything else is read.  EVICTED, or a refusal of our incarnation, is final: off until admit().
//
// A coordinator is *followed* from its first order on, or from a PONG that names its generation:
// one that may be on an old copy of its journal names 0.  HELLO says the newest generation that was
// followed.  WELCOME or EVICTED of an older one is not obeyed, for who says so may know nothing of
// this run's later life: it costs the connection.
//
// Ownership: owns the connection and the suspicions that wait for one.
// Threads:   the control thread only.
// Errors:    every fault closes the connection and dials again, after 0.1 s, doubling to 2 s.
#pragma once

#include <deque>
#include <string>

#include "control/context.hpp"

namespace pccl {

class CoordinatorLink {
 public:
  explicit CoordinatorLink(Context& context) : context_(context) {}

  void admit(const CoordinatorEndpoint& endpoint, double now_s);
  void suspect(Suspect suspicion, double now_s);
  /// Another incarnation, perhaps of another run: what this one knows is void.
  void forget() noexcept { suspicions_.clear(); told_.clear(); greeted_ = followed_ = 0; }
  void beat(double now_s);
  /// Off, without a word to the host.
  void shut() noexcept;

  void on_ready(std::uint64_t serial, std::uint32_t bits, double now_s);
  [[nodiscard]] double due_s() const noexcept { return due_s_; }
  void on_time(double now_s);

 private:
  enum class Stage : std::uint8_t { off, waiting, connecting, securing, greeting, up };

  void dial(double now_s);
  void lose(double now_s);
  void close(Stage next);
  Status secure(double now_s);
  Status greet(double now_s);
  Status read(std::uint32_t bits, double now_s);
  Status handle(const frames::Frame& frame, double now_s);
  Status come_up(double now_s);
  Generation newest_followed();
  Generation newest_known();
  void follow(Generation generation);
  Status answer(const frames::Flush& flush);
  Status send_heartbeat(double now_s);
  Status send_suspicions();
  void end_incarnation(const std::string& text);
  Status send(const frames::Frame& frame);

  Context& context_;
  CoordinatorEndpoint endpoint_;
  Stage stage_ = Stage::off;
  FramedSocket socket_;
  Generation greeted_ = 0;   // of the coordinator that either connection has found last
  Generation followed_ = 0;  // never goes down
  std::uint64_t serial_ = 0;
  double due_s_ = no_deadline;  // waiting: dial; connecting, greeting: give up; up: heartbeat
  double backoff_s_ = 0;
  std::deque<Suspect> suspicions_;
  std::deque<Suspect> told_;  // lately; said again on the next connection
  std::deque<double> beats_sent_s_;  // of heartbeats without an answer, which come in order
  // The shortest of these is told: one that contains a pause of either end is no way's length.
  std::deque<std::uint32_t> round_trips_us_;
};

}  // namespace pccl
