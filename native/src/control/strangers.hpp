// native/src/control/strangers.hpp — the listener, and those who have not yet proved themselves.
//
// A stranger has handshake_timeout_s to send one HELLO that names our run and our secret; until
// then it costs one descriptor and at most 4 KiB.  Whether it is in the view is not asked here: the
// secret shows that it has seen a view with us in it, and the host looks at the rest.  One that
// asks for a relay has the rest of its time to say in a second frame to whom.
//
// Ownership: owns the listening socket and the handshakes under way; a finished data lane or
//            stream goes to the host, a finished peer control connection to PeerLinks, one that
//            wants to be relayed to Relay.
// Threads:   the control thread only; made on the thread that makes the Control.
// Errors:    listen throws std::system_error; a stranger that fails in any way is closed.
#pragma once

#include <unordered_map>

#include "control/context.hpp"
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

  /// Each costs about a millisecond of computing, and members must be heard first: what is beyond
  /// that stays in the socket, and the poller tells of it again.
  static constexpr int handshakes_per_turn_max = 8;

 private:
  struct Stranger {
    FramedSocket socket;
    double deadline_s = 0;
    std::optional<PeerId> wants_relay{};  // who it is, once its HELLO has asked for that
    bool spoke = false;
    bool established = false;
  };
  void drop(std::uint64_t serial) noexcept;
  bool establish(std::uint64_t serial, Stranger& stranger);
  bool look(std::uint64_t serial, Stranger& stranger);
  bool hear(std::uint64_t serial, std::uint32_t bits, double now_s);
  void judge(std::uint64_t serial, std::span<const std::byte> body, Stranger stranger,
             double now_s);
  void carry(std::span<const std::byte> body, PeerId from, FramedSocket socket);
  void welcome(const frames::Hello& hello, FramedSocket socket, double now_s);

  Context& context_;
  PeerLinks& peers_;
  Relay& relay_;
  Fd listener_;
  double accept_again_s_ = no_deadline;  // while accepting is paused
  int handshakes_left_ = handshakes_per_turn_max;
  std::unordered_map<std::uint64_t, Stranger> strangers_;
};

}  // namespace pccl
