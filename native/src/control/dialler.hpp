// native/src/control/dialler.hpp — opening lanes and peer control connections to peers.
//
// A connect() is a job of several dials, one per lane and one for peer control.  A dial that is
// refused, reset or answered with REFUSED is tried again after 50 ms doubling to 1 s: the other
// side may hear of the view a little later than we do, or have no place for us; one without an
// answer is given up and tried again.  At the job's deadline what is not up is given up, and the
// host hears of missing lanes once.  A peer has one job for direct lanes and one for
// relayed ones at a time, so that none is made twice.  Through a relay a dial has two handshakes:
// with the relay, and, when that has reached the peer, with it.
// Two peers of which neither can be dialled both dial the relay; then one makes the handshake, and
// to the other it is as if a stranger had come.  So it is for a stream to a peer that nobody can
// dial: it is called to a relay, dials that once, and nobody is told if this is in vain.
//
// Ownership: owns dials under way; a finished lane goes to the host, a peer control connection to
//            PeerLinks.
// Threads:   the control thread only.
// Errors:    ControlHost::connect_failed.
#pragma once

#include <unordered_map>

#include "control/context.hpp"
#include "control/peer_links.hpp"
#include "control/strangers.hpp"

namespace pccl {

/// How long a dial waits after that many tries in vain before, with left_s until its end: 50 ms
/// doubling to 1 s, less up to half by `dice`, so that those who are refused together do not return
/// together.
[[nodiscard]] double retry_pause_s(int refusals, double left_s, std::uint64_t dice) noexcept;

class Dialler {
 public:
  Dialler(Context& context, PeerLinks& peers, Strangers& strangers) noexcept
      : context_(context), peers_(peers), strangers_(strangers) {}

  void connect(const DialRequest& request, double now_s);
  /// Comes to `relay`, where `caller` waits.  More than answers_max under way are not answered.
  void answer(const PeerEndpoint& caller, const PeerEndpoint& relay, std::uint64_t call,
              double now_s);
  static constexpr std::ptrdiff_t answers_max = 64;
  void forget(PeerId peer, Incarnation incarnation) noexcept;

  void on_ready(std::uint64_t serial, std::uint32_t bits, double now_s);
  [[nodiscard]] double due_s() const noexcept;
  void on_time(double now_s);
  void close() noexcept;  // tells nobody

 private:
  struct Job {
    DialRequest request;
    double deadline_s = 0;
    std::size_t lanes_missing = 0;
    [[nodiscard]] bool is_for(PeerId peer, Incarnation incarnation) const noexcept {
      return request.peer.peer == peer && request.peer.incarnation == incarnation;
    }
  };
  enum class Stage : std::uint8_t { idle, connecting, securing, asking_relay, greeting };
  struct Dial {
    std::uint64_t job = 0;
    Purpose purpose = Purpose::data_lane;
    Stage stage = Stage::idle;
    bool in_tunnel = false;  // the relay has reached the peer
    int tries = 0;
    int refusals = 0;  // and tries given up
    double due_s = 0;  // idle: try then; else: give this try up then
    FramedSocket socket;
  };
  enum class Progress : std::uint8_t { pending, failed, done, met };

  void add(std::uint64_t job, Purpose purpose, double now_s, double after_s = 0);
  void hurry(std::uint64_t job, double now_s) noexcept;
  void start(std::uint64_t serial, Dial& dial, double now_s);
  void retry(std::uint64_t serial, Dial& dial, double now_s) noexcept;
  Progress advance(std::uint64_t serial, Dial& dial, std::uint32_t bits);
  Progress connected(std::uint64_t serial, Dial& dial);
  Progress secure(std::uint64_t serial, Dial& dial);
  Progress enter_tunnel(std::uint64_t serial, Dial& dial);
  Progress greet(std::uint64_t serial, Dial& dial);
  Progress ask_relay(std::uint64_t serial, Dial& dial);
  [[nodiscard]] frames::Hello hello(Purpose purpose, const Job& job, const Secret& secret) const;
  void finish(std::uint64_t serial, double now_s);
  void await_other(std::uint64_t serial, double now_s);
  void drop_lanes(const DialRequest& request) noexcept;
  [[nodiscard]] bool has_dials(std::uint64_t job) const noexcept;
  [[nodiscard]] bool dialling(PeerId peer, Incarnation incarnation) const noexcept;

  Context& context_;
  PeerLinks& peers_;
  Strangers& strangers_;
  std::unordered_map<std::uint64_t, Job> jobs_;
  std::unordered_map<std::uint64_t, Dial> dials_;
};

}  // namespace pccl
