// native/src/control/strangers.hpp — the listener, and those who have not yet proved themselves.
//
// A stranger has handshake_timeout_s to send one HELLO that names our run and our secret; in a
// secured run so long to begin, twice as long to wait for its turn, and from then as long again.
// Until then it costs one descriptor and at most 4 KiB.  Whether it is in the view is not
// asked here: the secret shows that it has seen a view with us in it, and the host looks at the
// rest.  One that asks for a relay has the rest of its time to say in a second frame to whom.
//
// Origins where members of the view are, or from where a HELLO was welcome, come first: they have
// places of their own, their handshakes a pace of their own.  Of all others half_open_max are heard
// at once; one more takes a place of the origin that has the most, of one that is silent and not of
// one whose handshake is under way: place_for() in origins.hpp.
//
// Ownership: owns the listening socket and the handshakes under way; a finished data lane or
//            stream goes to the host, a finished peer control connection to PeerLinks, one that
//            wants to be relayed to Relay.
// Threads:   the control thread only; made on the thread that makes the Control.
// Errors:    listen throws std::system_error; a stranger that fails in any way is closed.
#pragma once

#include <unordered_map>

#include "control/context.hpp"
#include "control/origins.hpp"
#include "control/peer_links.hpp"
#include "control/relay.hpp"

namespace pccl {

class Strangers {
 public:
  Strangers(Context& context, PeerLinks& peers, Relay& relay) noexcept
      : context_(context), peers_(peers), relay_(relay) {}

  std::uint16_t listen();  // once; returns the port
  void on_listener_ready(double now_s);
  /// One more connection; its serial, or 0 if there is no room.
  std::uint64_t add(Fd fd, double now_s);
  void on_ready(std::uint64_t serial, std::uint32_t bits, double now_s);
  [[nodiscard]] double due_s() const noexcept;
  void on_time(double now_s);
  void close() noexcept;  // for good
  /// Where members are, from now on.
  void expect(std::vector<Origin> origins) noexcept { known_.expect(std::move(origins)); }

  /// Each costs about a millisecond of computing, and members must be heard first: what is beyond
  /// that stays in the socket, and the poller tells of it again.
  static constexpr int handshakes_per_turn_max = 8;
  /// From where members are; in all no more than a quarter of the process's descriptors.
  static constexpr std::size_t expected_half_open_max = 4096;
  static constexpr std::size_t expected_half_open_per_origin_max = 512;

 private:
  struct Asker {
    PeerId peer;
    Incarnation incarnation = 0;
  };
  struct Stranger {
    FramedSocket socket;
    double deadline_s = 0;
    Origin origin{};
    bool expected = false;                // it came from where a member is
    std::optional<Asker> wants_relay{};   // who it is, once its HELLO has asked for that
    enum class Door : std::uint8_t { silent, waiting, open } door = Door::silent;
    // Of one that has said a part of the streams' mark: it is not watched but looked at by time, a
    // few times, so that it costs nothing meanwhile.
    double look_again_s = no_deadline;
    double look_pause_s = 0.05;  // doubled with each look
    bool is_stream = false;  // it said so; what follows is the program's
    bool established = false;
    [[nodiscard]] Place::Stage stage() const noexcept {
      if (wants_relay || door == Door::open) return Place::Stage::under_way;
      return door == Door::waiting ? Place::Stage::waiting : Place::Stage::silent;
    }
  };
  void drop(std::uint64_t serial) noexcept;
  void forget_turn(std::uint64_t serial) noexcept;
  bool make_room(const Origin& origin, bool expected);
  bool establish(std::uint64_t serial, Stranger& stranger, double now_s);
  void look(std::uint64_t serial, Stranger& stranger, double now_s);
  void look_again(double now_s);
  void hand_over(std::uint64_t serial, Stranger& stranger);
  void grant(HandshakePace& pace, double now_s);
  bool hear(std::uint64_t serial, std::uint32_t bits, double now_s);
  void judge(std::uint64_t serial, std::span<const std::byte> body, Stranger stranger,
             double now_s);
  [[nodiscard]] bool carries_for(const Asker& asker);
  void carry(std::span<const std::byte> body, const Asker& asker, FramedSocket socket);
  void welcome(const frames::Hello& hello, FramedSocket socket, double now_s);

  Context& context_;
  PeerLinks& peers_;
  Relay& relay_;
  Fd listener_;
  double accept_again_s_ = no_deadline;  // while accepting is paused
  int handshakes_left_ = handshakes_per_turn_max;
  // A fifth of a core at a millisecond each, whoever asks; the bursts are a few peers that begin
  // together, and a view of some hundred that meets a newcomer.
  HandshakePace pace_{200, 32};
  static constexpr double expected_rate_per_s = 400;
  static constexpr double expected_burst = 512;
  // All of the largest view that meet a newcomer, each by a lane and by peer control, have their
  // turn before they give up; of strangers no more wait than have places.
  static_assert(expected_burst + expected_rate_per_s * handshake_timeout_s_usual >=
                2.0 * frames::peers_max);
  HandshakePace expected_pace_{expected_rate_per_s, expected_burst};
  double turns_due_s_ = no_deadline;  // of who waits for a handshake
  KnownOrigins known_;
  std::unordered_map<std::uint64_t, Stranger> strangers_;
};

}  // namespace pccl
