// native/tests/control_rig.hpp — a recording host, and plain sockets that play the other side.
// Ownership: values of the test that makes them; a FakeHost outlives its Control.
// Threads:   FakeHost's callbacks come from the control thread; the test looks under its mutex.
// Errors:    CHECK; every wait ends by patience_s.
#pragma once

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/time.h>

#include <algorithm>
#include <cerrno>
#include <functional>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "check.hpp"
#include "pccl/clock.hpp"
#include "pccl/control.hpp"
#include "pccl/control_frames.hpp"
#include "pccl/crc32.hpp"
#include "pccl/sockets.hpp"

namespace rig {

using namespace pccl;
using Bytes = std::vector<std::byte>;

inline constexpr double patience_s = 10.0;  // far above anything that works

template <class Id>
Id id(std::uint8_t fill) {
  Id value;
  value.bytes.fill(fill);
  return value;
}

inline bool eventually(const std::function<bool()>& condition) {
  const double deadline_s = monotonic_s() + patience_s;
  while (!condition()) {
    if (monotonic_s() > deadline_s) return false;
    ::poll(nullptr, 0, 1);
  }
  return true;
}

class FakeHost final : public ControlHost {
 public:
  struct Lane {
    LaneHello hello;
    Fd socket;
  };
  struct Seen {
    std::vector<Lane> lanes;
    std::vector<std::pair<PeerId, Fd>> streams;
    std::vector<PeerId> failed;
    std::vector<PeerId> beats;
    std::vector<StepId> watermarks;  // of the beats
    std::vector<PeerId> silent;
    std::vector<std::vector<Route>> routes;
    std::vector<bool> connected;
    std::vector<Generation> followed;
    std::vector<std::string> evicted;
    std::vector<std::uint8_t> refused;
    std::vector<Epoch> fences;
  };

  Report report;            // what fence() answers, with the target filled in; set before the start
  HeartbeatStatus beating;  // what status() answers; set before the start
  PeerEndpoint carried;     // whom it relays for; set before the start
  std::vector<PeerEndpoint> met;  // whom else it knows; set before the start

  template <class Look>
  auto look(Look look_at) {
    const std::lock_guard lock(mutex_);
    return look_at(seen_);
  }
  template <class Condition>
  bool sees(Condition condition) {
    return eventually([&] { return look(condition); });
  }

  Report fence(Generation generation, Epoch target) noexcept override {
    const std::lock_guard lock(mutex_);
    seen_.fences.push_back(target);
    Report answer = report;
    answer.generation = generation;
    answer.target = target;
    return answer;
  }
  HeartbeatStatus status() noexcept override { return beating; }
  void adopt_lane(const LaneHello& hello, std::unique_ptr<Conduit> conduit) noexcept override {
    const std::lock_guard lock(mutex_);
    seen_.lanes.push_back({hello, conduit->release()});
  }
  void adopt_stream(PeerId peer, Fd socket) noexcept override {
    const std::lock_guard lock(mutex_);
    seen_.streams.push_back({peer, std::move(socket)});
  }
  void connect_failed(PeerId peer, Incarnation, bool) noexcept override {
    const std::lock_guard lock(mutex_);
    seen_.failed.push_back(peer);
  }
  void evicted(std::string text) noexcept override {
    const std::lock_guard lock(mutex_);
    seen_.evicted.push_back(std::move(text));
  }
  void refused(std::uint8_t code, std::string) noexcept override {
    const std::lock_guard lock(mutex_);
    seen_.refused.push_back(code);
  }
  void coordinator_connected(bool connected, Generation) noexcept override {
    const std::lock_guard lock(mutex_);
    seen_.connected.push_back(connected);
  }
  void coordinator_followed(Generation generation) noexcept override {
    const std::lock_guard lock(mutex_);
    seen_.followed.push_back(generation);
  }
  void peer_beat(PeerId peer, Epoch, StepId watermark) noexcept override {
    const std::lock_guard lock(mutex_);
    seen_.beats.push_back(peer);
    seen_.watermarks.push_back(watermark);
  }
  void routes(Generation, const std::vector<Route>& table) noexcept override {
    const std::lock_guard lock(mutex_);
    seen_.routes.push_back(table);
  }
  bool endpoint_of(PeerId peer, Incarnation incarnation, PeerEndpoint& out) noexcept override {
    const auto is_it = [&](const PeerEndpoint& one) {
      return one.peer == peer && one.incarnation == incarnation;
    };
    const auto known = std::find_if(met.begin(), met.end(), is_it);
    if (known == met.end() && !is_it(carried)) return false;
    out = known == met.end() ? carried : *known;
    return true;
  }
  void peer_silent(PeerId peer, Incarnation) noexcept override {
    const std::lock_guard lock(mutex_);
    seen_.silent.push_back(peer);
  }

 private:
  std::mutex mutex_;
  Seen seen_;
};

/// A body of the test's own with the head it needs.
inline Bytes framed(std::span<const std::byte> body) {
  const auto head = frames::head_of(body);
  Bytes bytes(head.size() + body.size());
  std::copy(head.begin(), head.end(), bytes.begin());
  std::copy(body.begin(), body.end(), bytes.begin() + head.size());
  return bytes;
}

/// A blocking socket whose every call ends by patience_s.
class Wire {
 public:
  Wire() = default;
  explicit Wire(Fd fd) : fd_(std::move(fd)) {
    const timeval timeout{static_cast<time_t>(patience_s), 0};
    ::setsockopt(fd_.get(), SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof timeout);
    ::setsockopt(fd_.get(), SOL_SOCKET, SO_SNDTIMEO, &timeout, sizeof timeout);
  }
  static Wire dial(std::uint16_t port) {
    Wire wire(Fd{::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)});
    wire.dial_to(port);
    return wire;
  }
  /// Comes from another address of this machine.
  static Wire dial_from(const char* address, std::uint16_t port) {
    Wire wire(Fd{::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)});
    sockaddr_in own{};
    own.sin_family = AF_INET;
    CHECK(::inet_pton(AF_INET, address, &own.sin_addr) == 1);
    CHECK(::bind(wire.fd_.get(), reinterpret_cast<const sockaddr*>(&own), sizeof own) == 0);
    wire.dial_to(port);
    return wire;
  }
  void dial_to(std::uint16_t port) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    CHECK(::connect(fd_.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0);
  }

  void write(const void* bytes, std::size_t count) {
    CHECK(::send(fd_.get(), bytes, count, MSG_NOSIGNAL) == static_cast<ssize_t>(count));
  }
  void write(const std::string& text) { write(text.data(), text.size()); }
  void write(const frames::Frame& frame) {
    Bytes bytes;
    CHECK(frames::encode(frame, bytes) == Status::ok);
    write(bytes.data(), bytes.size());
  }
  /// Exactly that many bytes; none if the other side ended or was silent too long.
  std::optional<Bytes> read(std::size_t count) {
    Bytes bytes(count);
    const ssize_t got = ::recv(fd_.get(), bytes.data(), count, MSG_WAITALL);
    if (got != static_cast<ssize_t>(count)) return std::nullopt;
    return bytes;
  }
  std::optional<frames::Frame> read_frame() {
    const auto front = read(frames::head_bytes);
    frames::Head head;
    if (!front || !frames::decode_head(std::span(*front).first<frames::head_bytes>(), head)) {
      return std::nullopt;
    }
    const auto body = read(head.length);
    frames::Frame frame;
    if (!body || crc32(*body) != head.body_check) return std::nullopt;
    if (frames::decode(*body, frame) != Status::ok) return std::nullopt;
    return frame;
  }
  /// The next frame of one type, whatever comes before it.
  template <class Message>
  std::optional<Message> next() {
    while (auto frame = read_frame()) {
      if (Message* message = std::get_if<Message>(&*frame)) return std::move(*message);
    }
    return std::nullopt;
  }
  /// The other side closes (or resets) within patience_s; what it says before does not matter.
  bool ends() {
    const double deadline_s = monotonic_s() + patience_s;
    std::byte byte;
    while (monotonic_s() < deadline_s) {
      const ssize_t got = ::recv(fd_.get(), &byte, 1, 0);
      if (got == 0 || (got < 0 && errno != EAGAIN)) return true;
    }
    return false;
  }
  void close() { fd_.reset(); }
  [[nodiscard]] int fd() const { return fd_.get(); }
  [[nodiscard]] bool silent_for(int timeout_ms) const {
    pollfd waiting{fd_.get(), POLLIN, 0};
    return ::poll(&waiting, 1, timeout_ms) == 0;
  }
  explicit operator bool() const { return static_cast<bool>(fd_); }

 private:
  Fd fd_;
};

/// A listening socket of the test's own.
class Gate {
 public:
  explicit Gate(std::uint16_t port = 0) {
    CHECK(listen_tcp("127.0.0.1", port, 16, fd_) == Status::ok);
    port_ = local_port(fd_.get());
  }
  [[nodiscard]] std::uint16_t port() const { return port_; }
  Wire accept() {
    Fd fd;
    pollfd waiting{fd_.get(), POLLIN, 0};
    ::poll(&waiting, 1, static_cast<int>(patience_s * 1000));
    if (accept_tcp(fd_.get(), fd) != Status::ok) return {};
    const int flags = ::fcntl(fd.get(), F_GETFL);
    ::fcntl(fd.get(), F_SETFL, flags & ~O_NONBLOCK);
    return Wire(std::move(fd));
  }
  /// Somebody dials within the time given.
  bool rings(int timeout_ms) {
    pollfd waiting{fd_.get(), POLLIN, 0};
    return ::poll(&waiting, 1, timeout_ms) == 1;
  }

 private:
  Fd fd_;
  std::uint16_t port_ = 0;
};

/// A Control with its host; `number` makes all its names.
struct Peer {
  explicit Peer(std::uint8_t number, ControlConfig config = {})
      : me(number), control(named(config, number), host) {}

  void admit(std::uint16_t coordinator_port, double heartbeat_s = 0.02,
             Generation generation = 5) {
    control.admit({id<RunId>(9), me, id<Secret>(me), generation},
                  {"127.0.0.1", coordinator_port, heartbeat_s});
  }
  [[nodiscard]] PeerEndpoint endpoint() const {
    return {id<PeerId>(me), me, id<Secret>(me), "127.0.0.1", control.port()};
  }
  /// What a peer that has seen the view sends here.
  [[nodiscard]] frames::Hello hello(Purpose purpose) const {
    return {purpose, id<RunId>(9), id<PeerId>(77), 70, id<Secret>(me), 1, 0};
  }
  static ControlConfig named(ControlConfig config, std::uint8_t number) {
    config.peer_id = id<PeerId>(number);
    return config;
  }

  const std::uint8_t me;
  FakeHost host;
  Control control;
};

}  // namespace rig
