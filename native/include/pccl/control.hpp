// native/include/pccl/control.hpp — the control thread: small connections, timers, handshakes.
//
// One thread, one epoll set, no tensor bytes.  It owns the peer's one listening port, answers and
// dials every handshake (native HELLO / WELCOME / REFUSED, docs/PROTOCOL.md) and hands finished
// data
// lanes to the host; it keeps the native connection to the coordinator (heartbeats, FLUSH, REPORT,
// SUSPECT) and one heartbeat connection per peer.  It never runs Python, so a process whose Python
// is busy for a minute still answers FLUSH at once.
//
// Ownership: owns its thread, listener and connections; the host outlives it.
// Threads:   public members from any thread (a mailbox behind a mutex and an eventfd); the host's
//            callbacks run on the control thread.
// Errors:    the constructor throws std::system_error if the port cannot be bound; nothing else
//            does.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "pccl/conduit.hpp"
#include "pccl/fd.hpp"
#include "pccl/report.hpp"
#include "pccl/status.hpp"
#include "pccl/tls.hpp"
#include "pccl/types.hpp"

namespace pccl {

enum class Purpose : std::uint8_t {
  coordinator = 0, data_lane = 1, peer_control = 2, relay = 3, relayed_lane = 4,
  stream = 5,
};

/// Lanes to `peer` run through `via`.
struct Route {
  PeerId peer;
  PeerId via;
  friend bool operator==(const Route&, const Route&) = default;
};

/// Who is at the other end of a finished data lane.
struct LaneHello {
  PeerId peer;
  Incarnation incarnation = 0;
  std::uint32_t series = 0;  // of the dialler: its lanes of an older one are over
  bool dialled = false;      // by this side
  bool relayed = false;      // through a third peer
};

struct PeerEndpoint {
  PeerId peer;
  Incarnation incarnation = 0;
  Secret secret;  // the listener's, from the view
  std::string host;
  std::uint16_t port = 0;  // 0: nobody can dial it (it is behind NAT); it dials
  [[nodiscard]] bool dialable() const noexcept { return port != 0 && !host.empty(); }
  friend bool operator==(const PeerEndpoint&, const PeerEndpoint&) = default;
};

class ControlHost {
 public:
  /// Fences every attempt below `target`; when it returns nothing writes to callers' memory for
  /// them any more.  Answers within milliseconds.
  virtual Report fence(Generation generation, Epoch target) = 0;
  virtual HeartbeatStatus status() = 0;
  /// A data lane, handshake done, nothing read beyond it.
  virtual void adopt_lane(const LaneHello& hello, std::unique_ptr<Conduit> conduit) = 0;
  /// A connection for the program's own side of this peer (shared state), handshake done, socket
  /// non-blocking, nothing read beyond it.  In a secured run there was no handshake: the program
  /// makes TLS and HELLO itself, and `peer` is zero.
  virtual void adopt_stream(PeerId peer, Fd socket) = 0;
  /// Lanes asked for by connect() that did not come up before their deadline.
  virtual void connect_failed(PeerId peer, Incarnation incarnation, bool relayed) = 0;
  virtual void evicted(std::string text) = 0;
  virtual void refused(std::uint8_t code, std::string text) = 0;  // by the coordinator
  /// `generation`: of that coordinator.
  virtual void coordinator_connected(bool connected, Generation generation) = 0;
  /// Its word counts from now on, and that of an older one does not.
  virtual void coordinator_followed(Generation generation) = 0;
  /// PEER_BEAT heard.
  virtual void peer_beat(PeerId peer, Epoch epoch, StepId watermark) = 0;
  /// No PEER_BEAT for too long although there was a connection, which is closed now.
  virtual void peer_silent(PeerId peer, Incarnation incarnation) = 0;
  /// ROUTES heard: through whom lanes are to be dialled.
  virtual void routes(Generation generation, const std::vector<Route>& table) = 0;
  /// Where a peer that this one relays for can be reached; false: not known here.
  virtual bool endpoint_of(PeerId peer, Incarnation incarnation, PeerEndpoint& out) = 0;

 protected:
  ~ControlHost() = default;
};

inline constexpr double handshake_timeout_s_usual = 5.0;

struct ControlConfig {
  PeerId peer_id;
  std::string listen_host = "127.0.0.1";  // literal IPv4 or IPv6 address, or "" for all
  std::uint16_t listen_port = 0;          // 0: any
  double handshake_timeout_s = handshake_timeout_s_usual;
  std::uint32_t half_open_max = 64;       // handshakes under way, of those who are no members
  double peer_beat_s = 0.5;
  double peer_silence_s = 1.5;            // without a beat: the way is cut; at least 20 round trips
  double stranger_age_s = 15.0;           // so long has peer control who is in no view or plan
  std::shared_ptr<const TlsContext> tls{};  // of a secured run: every connection needs it
};

struct Identity {
  RunId run_id;
  Incarnation incarnation = 0;
  Secret secret;
  Generation generation = 0;
};

struct CoordinatorEndpoint {
  std::string host;  // literal address
  std::uint16_t port = 0;
  double heartbeat_s = 0.25;
};

/// Lanes to be opened to a peer.
struct DialRequest {
  PeerEndpoint peer;
  std::uint16_t lanes = 1;  // 0: only the peer control connection
  double timeout_s = 5.0;   // for all of it
  double try_s = 5.0;       // for the first of several tries; the next take longer
  std::uint32_t series = 0;
  std::optional<PeerEndpoint> via{};  // the peer that relays
  bool awaits = false;  // of two that meet at the relay, the end that waits for the handshake
  std::uint64_t call = 0;  // not 0: it was called to `via` by the peer, for a stream
};

struct ControlCounters {
  std::uint64_t accepted = 0;
  std::uint64_t dropped = 0;  // garbage, oversized or late first frames; wrong secrets; over limits
  std::uint64_t heartbeats = 0;
  std::uint64_t flushes = 0;
  std::uint64_t tunnels = 0;        // that this peer carries now
  std::uint64_t relayed_bytes = 0;  // that it has carried
  std::uint64_t unproven = 0;       // connections whose other end did not prove what it has to
};

class Control {
 public:
  Control(const ControlConfig& config, ControlHost& host);
  ~Control();  // stop()
  Control(const Control&) = delete;
  Control& operator=(const Control&) = delete;

  [[nodiscard]] std::uint16_t port() const noexcept;
  /// Takes on an identity and (re)dials the coordinator: 0.1 s doubling to 2 s, until stop().
  /// Handshakes from peers are accepted from now on (before, they are REFUSED).
  void admit(const Identity& identity, const CoordinatorEndpoint& coordinator);
  /// Dials lanes to a peer, and its peer control connection if there is none and no relay is used,
  /// until the time is up: refused or reset dials again after 50 ms, one that gets no answer after
  /// `try_s`.  Lanes that an earlier call of the same kind (direct or relayed) is still dialling
  /// are given up.
  void connect(const DialRequest& request);
  /// Says at which literal addresses members are: who comes from there is served first.
  void expect(const std::vector<std::string>& hosts);
  /// Stops dialling an incarnation and closes its peer control connection.
  void forget(PeerId peer, Incarnation incarnation);
  void suspect(Suspect suspicion);
  /// For connections from now on; those that are up keep what they began with.
  void set_tls(std::shared_ptr<const TlsContext> tls);
  /// Sends a heartbeat now (a status changed that the coordinator should see at once).
  void beat_now();
  [[nodiscard]] ControlCounters counters() const noexcept;
  /// Ends the thread and closes everything; idempotent.
  void stop() noexcept;
  /// The same, but waits for nothing: connections and port are closed soon after.
  void end() noexcept;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace pccl
