// native/tests/conduit_rig.hpp — pairs of conduits, bytes through them, and a tap between them.
// Ownership: values; each test owns its pair.
// Threads:   one; both ends take turns.
// Errors:    CHECKs.
#pragma once

#include <poll.h>
#include <sys/socket.h>

#include <functional>
#include <random>
#include <vector>

#include "check.hpp"
#include "pccl/conduit.hpp"
#include "pccl/sockets.hpp"
#include "tls_rig.hpp"

namespace conduit_rig {

using namespace pccl;
using Bytes = std::vector<std::byte>;

/// Rekeyed: pieces that get a new key at every third.
enum class Kind { socket, records, pieces, rekeyed };
inline constexpr Kind kinds[] = {Kind::socket, Kind::records, Kind::pieces, Kind::rekeyed};
inline constexpr LaneSealing rekeyed{.pieces = true, .piece_bytes = 64 * 1024, .pieces_per_key = 3};

inline bool sealed(Kind kind) { return kind == Kind::pieces || kind == Kind::rekeyed; }

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
  std::unique_ptr<Conduit> near;
  std::unique_ptr<Conduit> far;
};

inline Two make(Kind kind, Fd near, Fd far) {
  Two two;
  if (kind == Kind::socket) {
    two = {make_socket_conduit(std::move(near)), make_socket_conduit(std::move(far))};
  } else {
    two = {context_for(kind)->dial(std::move(near), {}),
           context_for(kind)->accept(std::move(far))};
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

inline void run(const std::vector<Flow*>& flows, unsigned seed) {
  std::mt19937 dice(seed);
  for (int i = 0; i < 400'000; ++i) {
    bool all = true;
    for (Flow* flow : flows) {
      if (flow->ended == Status::ok) flow->write(dice);
      if (dice() % 3 == 0) flow->read(dice);
      all = all && flow->done();
    }
    if (all) return;
  }
}

/// Passes bytes between two pairs of sockets until told otherwise.
struct Wiretap {
  Fd left, right;
  std::size_t passed = 0;  // from left to right
  void pump(const std::function<void(std::span<std::byte>, std::size_t)>& touch,
            std::size_t limit = SIZE_MAX) {
    Bytes block(65536);
    const auto move = [&](int from, int to, bool touched) {
      const std::size_t most =
          touched ? std::min(block.size(), limit - std::min(limit, passed)) : block.size();
      if (most == 0) return;
      const ssize_t count = ::recv(from, block.data(), most, MSG_DONTWAIT);
      if (count <= 0) return;
      const auto bytes = std::span(block).first(static_cast<std::size_t>(count));
      if (touched) touch(bytes, passed);
      if (touched) passed += bytes.size();
      for (std::size_t at = 0; at < bytes.size();) {
        const ssize_t put = ::send(to, bytes.data() + at, bytes.size() - at, MSG_NOSIGNAL);
        if (put > 0) at += static_cast<std::size_t>(put);
        if (put < 0 && errno != EAGAIN) return;
      }
    };
    move(left.get(), right.get(), true);
    move(right.get(), left.get(), false);
  }
};

struct Tapped {
  Two two;
  Wiretap tap;
};

/// A pair with the tap between its ends, handshake done and sealed as `kind` says.
inline Tapped tapped(Kind kind) {
  auto [near, left] = connected();
  auto [right, far] = connected();
  Tapped made{{context_for(kind)->dial(std::move(near), {}),
               context_for(kind)->accept(std::move(far))},
              {std::move(left), std::move(right)}};
  Status a = Status::would_block, b = Status::would_block;
  for (int i = 0; i < 2000 && (a != Status::ok || b != Status::ok); ++i) {
    if (a == Status::would_block) a = made.two.near->establish();
    made.tap.pump([](auto, auto) {});
    if (b == Status::would_block) b = made.two.far->establish();
    made.tap.pump([](auto, auto) {});
  }
  CHECK(a == Status::ok && b == Status::ok);
  if (sealed(kind)) {
    CHECK(made.two.near->seal_in_bulk() == Status::ok);
    CHECK(made.two.far->seal_in_bulk() == Status::ok);
  }
  made.tap.passed = 0;
  return made;
}

}  // namespace conduit_rig
