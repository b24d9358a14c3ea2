// native/tests/conduit_kinds.hpp — pairs of conduits of every kind, and bytes that flow in them.
// Ownership: each test owns its pair.
// Threads:   one; both ends take turns.
// Errors:    CHECKs.
#pragma once

#include <poll.h>
#include <sys/socket.h>

#include <memory>
#include <random>
#include <utility>
#include <vector>

#include "check.hpp"
#include "conduit_rig.hpp"
#include "pccl/conduit.hpp"
#include "pccl/sockets.hpp"
#include "tls_rig.hpp"
#include "ucx_rig.hpp"

namespace pccl {

using Bytes = std::vector<std::byte>;

/// Rekeyed: pieces that get a new key at every third.
enum class Kind { socket, records, pieces, rekeyed, ucx };
inline constexpr LaneSealing rekeyed{.pieces = true, .piece_bytes = 64 * 1024, .pieces_per_key = 3};

inline std::vector<Kind> kinds() {
  std::vector<Kind> all{Kind::socket, Kind::records, Kind::pieces, Kind::rekeyed};
  static const bool with_ucx = ucx_worker() != nullptr;
  if (with_ucx) all.push_back(Kind::ucx);
  return all;
}

inline std::pair<Fd, Fd> connected() {
  Fd listener, near, far;
  CHECK(listen_tcp("127.0.0.1", 0, 4, listener) == Status::ok);
  CHECK(connect_tcp("127.0.0.1", local_port(listener.get()), near) == Status::ok);
  pollfd wait{listener.get(), POLLIN, 0};
  CHECK(::poll(&wait, 1, 5000) == 1);
  CHECK(accept_tcp(listener.get(), far) == Status::ok);
  return {std::move(near), std::move(far)};
}

inline const rig_tls::Authority& authority() {
  static const rig_tls::Authority one;
  return one;
}

inline bool sealed(Kind kind) { return kind == Kind::pieces || kind == Kind::rekeyed; }

inline std::shared_ptr<const TlsContext> context_for(Kind kind) {
  const TlsMaterial material = authority().material(authority().issue());
  return std::make_shared<const TlsContext>(material,
                                            kind == Kind::rekeyed ? rekeyed : LaneSealing{});
}

/// Both handshakes to their ends; the statuses that they came to.
inline std::pair<Status, Status> establish(Conduit& a, Conduit& b) {
  Status first = Status::would_block, second = Status::would_block;
  for (int i = 0; i < 2000; ++i) {
    if (first == Status::would_block) first = a.establish();
    if (second == Status::would_block) second = b.establish();
    if (first != Status::would_block && second != Status::would_block) break;
    ::poll(nullptr, 0, 1);
  }
  return {first, second};
}

struct Two {
  std::unique_ptr<UcxWorker> near_worker, far_worker;  // null for other kinds
  std::unique_ptr<Conduit> near;
  std::unique_ptr<Conduit> far;

  /// What a reactor does besides: a UCX worker moves when it is told to.
  void move() const {
    for (const auto* worker : {&near_worker, &far_worker}) {
      if (*worker) (void)(*worker)->progress({}, monotonic_s());
    }
  }
};

/// Both ends hear the other's answer, so that bytes go through UCX from here on.
inline void reach(Two& two) {
  const double until_s = monotonic_s() + conduit_patience_s;
  for (auto* end : {&two.near, &two.far}) {
    std::byte none{};
    const iovec part{&none, 1};
    std::size_t got = 0;
    bool drained = false;
    Status status = Status::would_block;
    const UcxWorker& worker = end == &two.near ? *two.near_worker : *two.far_worker;
    while (worker.report().through_ucx == 0 && monotonic_s() < until_s) {
      status = (*end)->receive({&part, 1}, got, drained);
      CHECK(status == Status::would_block);
    }
    CHECK(worker.report().through_ucx == 1);
  }
}

inline Two make(Kind kind, Fd near, Fd far) {
  Two two;
  if (kind == Kind::socket) {
    two.near = make_socket_conduit(std::move(near));
    two.far = make_socket_conduit(std::move(far));
  } else if (kind == Kind::ucx) {
    two.near_worker = ucx_worker();
    two.far_worker = ucx_worker();
    two.near = two.near_worker->conduit(make_socket_conduit(std::move(near)));
    two.far = two.far_worker->conduit(make_socket_conduit(std::move(far)));
    reach(two);
  } else {
    two.near = context_for(kind)->dial(std::move(near), {});
    two.far = context_for(kind)->accept(std::move(far));
  }
  CHECK(establish(*two.near, *two.far) == std::pair(Status::ok, Status::ok));
  if (sealed(kind)) {
    CHECK(two.near->seal_in_bulk() == Status::ok && two.far->seal_in_bulk() == Status::ok);
  }
  return two;
}

inline Two pair_of(Kind kind) {
  auto [near, far] = connected();
  return make(kind, std::move(near), std::move(far));
}

inline Bytes noise(std::size_t count, unsigned seed) {
  std::mt19937 dice(seed);
  Bytes bytes(count);
  for (std::byte& byte : bytes) byte = static_cast<std::byte>(dice());
  return bytes;
}

/// One direction: bytes in parts of many sizes, in and out.
struct Flow {
  Conduit& from;
  Conduit& to;
  Bytes in;
  Bytes out = Bytes(in.size());
  std::size_t sent = 0, got = 0;
  Status ended = Status::ok;

  static std::vector<iovec> cut(Bytes& bytes, std::size_t at, std::mt19937& dice) {
    constexpr std::size_t sizes[] = {1, 3, 32, 4096, 70'000, 300'000};
    std::vector<iovec> parts;
    while (at < bytes.size() && parts.size() < 7) {
      const std::size_t count = std::min(sizes[dice() % std::size(sizes)], bytes.size() - at);
      parts.push_back({bytes.data() + at, count});
      at += count;
    }
    return parts;
  }
  void write(std::mt19937& dice) {
    if (sent < in.size()) {
      std::size_t count = 0;
      const auto parts = cut(in, sent, dice);
      const Status status = from.send(parts, count);
      CHECK(status == Status::ok || status == Status::would_block);
      if (status == Status::ok) CHECK(count > 0);
      if (status == Status::ok) sent += count;
    } else {
      CHECK(from.flush() == Status::ok);
    }
  }
  void read(std::mt19937& dice) {
    if (got == out.size() || ended != Status::ok) return;
    std::size_t count = 0;
    bool drained = false;
    const auto parts = cut(out, got, dice);
    const Status status = to.receive(parts, count, drained);
    if (status == Status::ok) {
      CHECK(count > 0);
      got += count;
    } else if (status != Status::would_block) {
      ended = status;
    }
  }
  [[nodiscard]] bool done() const { return got == out.size() || ended != Status::ok; }
};

inline void run(const Two& two, const std::vector<Flow*>& flows, unsigned seed) {
  std::mt19937 dice(seed);
  for (int i = 0; i < 400'000; ++i) {
    bool all = true;
    two.move();
    for (Flow* flow : flows) {
      if (flow->ended == Status::ok) flow->write(dice);
      if (dice() % 3 == 0) flow->read(dice);
      all = all && flow->done();
    }
    if (all) return;
  }
}

}  // namespace pccl
