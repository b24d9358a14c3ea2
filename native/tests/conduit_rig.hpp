// native/tests/conduit_rig.hpp — what every conduit must do, said once for all kinds of them.
// Ownership: a rig owns both ends and their pollers.
// Threads:   one.
// Errors:    CHECKs.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "check.hpp"
#include "pccl/clock.hpp"
#include "pccl/conduit.hpp"
#include "pccl/poller.hpp"
#include "pccl/ucx.hpp"

namespace pccl {

constexpr double conduit_patience_s = 20.0;

/// One end: its conduit, and what tells of it.
struct ConduitEnd {
  std::unique_ptr<UcxWorker> worker;  // null for other kinds; outlives the conduit
  std::unique_ptr<Conduit> conduit;
  Poller poller;
  bool readable = false;
  bool writable = true;
  bool asked = false;  // for news of room
  bool closed = false;

  void begin() {
    CHECK(conduit->watch(poller, 1) == Status::ok);
    if (worker) CHECK(poller.add(worker->event_fd(), ready::read, 0) == Status::ok);
  }

  /// One turn of a reactor: looks who is ready.
  void turn(int timeout_ms) {
    std::array<Poller::Event, 8> events;
    if (worker && !worker->arm()) timeout_ms = 0;
    std::size_t count = poller.wait({events.data(), 4}, timeout_ms);
    if (worker) count += worker->progress({events.data() + count, 4}, monotonic_s());
    if (!conduit) return;  // its worker alone moves on
    // What has come and lies in the conduit the poller does not tell of.
    readable = readable || conduit->holds_received();
    for (std::size_t i = 0; i < count; ++i) {
      if (events[i].token != 1) continue;
      readable = readable || (events[i].bits & (ready::read | ready::error)) != 0;
      if ((events[i].bits & ready::write) != 0) {
        writable = true;
        closed = closed || (conduit->wants_write() && conduit->flush() != Status::ok);
      }
    }
    // Asks for room only where some is wanted, as an engine does.
    const bool wanted = !writable || conduit->wants_write();
    if (std::exchange(asked, wanted) != wanted) {
      CHECK(conduit->want_write(poller, 1, wanted) == Status::ok);
    }
  }

  /// Sends what it takes of `bytes` from `done` on.
  void send(const std::vector<std::byte>& bytes, std::size_t& done) {
    while (writable && done < bytes.size() && !closed) {
      const std::size_t half = (bytes.size() - done + 1) / 2;
      const std::array<iovec, 2> parts{
          iovec{const_cast<std::byte*>(bytes.data()) + done, half},
          iovec{const_cast<std::byte*>(bytes.data()) + done + half, bytes.size() - done - half}};
      std::size_t sent = 0;
      const Status status = conduit->send(parts, sent);
      if (status == Status::would_block) {
        writable = false;
      } else if (status == Status::ok) {
        CHECK(sent > 0 && sent <= bytes.size() - done);
        done += sent;
      } else {
        closed = true;
      }
    }
  }

  /// Receives up to `most` bytes, if something is ready.
  void receive(std::vector<std::byte>& into, std::size_t most) {
    std::array<std::byte, 100'000> room;
    while (readable && most > 0 && !closed) {
      const std::size_t small = std::min<std::size_t>(most, 7);
      const std::size_t large = std::min(most - small, room.size() - small);
      const std::array<iovec, 2> parts{iovec{room.data(), small},
                                       iovec{room.data() + small, large}};
      std::size_t got = 0;
      bool drained = false;
      const Status status = conduit->receive({parts.data(), large > 0 ? 2u : 1u}, got, drained);
      if (status == Status::ok) {
        CHECK(got > 0 && got <= small + large);
        into.insert(into.end(), room.begin(), room.begin() + static_cast<std::ptrdiff_t>(got));
        most -= got;
        if (drained) readable = false;
      } else if (status == Status::would_block) {
        readable = false;
      } else {
        CHECK(status == Status::closed || status == Status::io_error);
        closed = true;
      }
    }
  }
};

inline std::vector<std::byte> pattern(std::size_t count, std::uint64_t seed) {
  std::vector<std::byte> bytes(count);
  std::uint64_t state = seed * 0x9E3779B97F4A7C15ULL + 1;
  for (std::byte& byte : bytes) {
    state = state * 6364136223846793005ULL + 1442695040888963407ULL;
    byte = static_cast<std::byte>(state >> 56U);
  }
  return bytes;
}

/// Moves both ways until all is there, `most` bytes a turn at the receiving side.
inline void exchange(ConduitEnd& a, ConduitEnd& b, const std::vector<std::byte>& there,
                     const std::vector<std::byte>& back, std::size_t most) {
  std::vector<std::byte> at_b;
  std::vector<std::byte> at_a;
  std::size_t sent_a = 0;
  std::size_t sent_b = 0;
  const double until_s = monotonic_s() + conduit_patience_s;
  while ((at_b.size() < there.size() || at_a.size() < back.size()) && monotonic_s() < until_s) {
    a.send(there, sent_a);
    b.send(back, sent_b);
    a.turn(0);
    b.turn(0);
    a.receive(at_a, most);
    b.receive(at_b, most);
  }
  CHECK(at_b == there);
  CHECK(at_a == back);
}

}  // namespace pccl
