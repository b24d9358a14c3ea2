// native/tests/conduit_tap.hpp — a pair of sealed conduits with a tap between its ends.
// Ownership: values; each test owns its pair.
// Threads:   one; both ends and the tap take turns.
// Errors:    CHECKs.
#pragma once

#include <functional>

#include "conduit_kinds.hpp"

namespace pccl {

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
  Tapped made{{nullptr, nullptr, context_for(kind)->dial(std::move(near), {}),
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

}  // namespace pccl
