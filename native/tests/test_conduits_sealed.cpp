// native/tests/test_conduits_sealed.cpp — what only conduits that seal must refuse: bits turned,
// ends in the middle, keys and names of others.
// Ownership: each test owns its pair.
// Threads:   one; both ends take turns.
// Errors:    CHECKs.
#include <functional>

#include "conduit_kinds.hpp"

using namespace pccl;

namespace {

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
Tapped tapped(Kind kind) {
  auto [near, left] = connected();
  auto [right, far] = connected();
  Tapped made{{nullptr, nullptr, authority().context()->dial(std::move(near), {}),
               authority().context()->accept(std::move(far))},
              {std::move(left), std::move(right)}};
  Status a = Status::would_block, b = Status::would_block;
  for (int i = 0; i < 2000 && (a != Status::ok || b != Status::ok); ++i) {
    if (a == Status::would_block) a = made.two.near->establish();
    made.tap.pump([](auto, auto) {});
    if (b == Status::would_block) b = made.two.far->establish();
    made.tap.pump([](auto, auto) {});
  }
  CHECK(a == Status::ok && b == Status::ok);
  if (kind == Kind::pieces) {
    CHECK(made.two.near->seal_in_bulk() == Status::ok);
    CHECK(made.two.far->seal_in_bulk() == Status::ok);
  }
  made.tap.passed = 0;
  return made;
}

constexpr std::size_t body = 20'000;

}  // namespace

TEST(a_bit_turned_anywhere_ends_the_stream_and_what_came_before_is_true) {
  for (const Kind kind : {Kind::records, Kind::pieces}) {
    for (std::size_t at = 0; at < body; at += at < 40 ? 1 : 997) {
      Tapped tapped_pair = tapped(kind);
      Flow there{*tapped_pair.two.near, *tapped_pair.two.far, noise(body, 9)};
      std::mt19937 dice(static_cast<unsigned>(at));
      for (int i = 0; i < 300 && !there.done(); ++i) {
        there.write(dice);
        tapped_pair.tap.pump([&](std::span<std::byte> bytes, std::size_t from) {
          if (at >= from && at < from + bytes.size()) bytes[at - from] ^= std::byte{16};
        });
        there.read(dice);
      }
      CHECK(there.got < body);
      // A turned length may only make it wait for what never comes.
      CHECK(there.ended == Status::protocol || there.ended == Status::ok);
      CHECK(at < 5 || there.got > 0 || there.ended == Status::protocol);
      CHECK(std::equal(there.out.begin(), there.out.begin() + static_cast<long>(there.got),
                       there.in.begin()));
    }
  }
}

TEST(a_stream_that_ends_inside_a_record_or_piece_is_closed_and_gives_nothing_of_it) {
  for (const Kind kind : {Kind::records, Kind::pieces}) {
    for (const std::size_t limit : {1u, 4u, 5u, 100u, 1015u}) {
      Tapped tapped_pair = tapped(kind);
      Flow there{*tapped_pair.two.near, *tapped_pair.two.far, noise(1000, 10)};
      std::mt19937 dice(11);
      for (int i = 0; i < 50; ++i) {
        there.write(dice);
        tapped_pair.tap.pump([](auto, auto) {}, limit);
      }
      if (tapped_pair.tap.passed < limit) continue;
      ::shutdown(tapped_pair.tap.right.get(), SHUT_WR);
      for (int i = 0; i < 1000 && there.ended == Status::ok; ++i) there.read(dice);
      CHECK(there.ended == Status::closed);
      CHECK(there.got < 1000);
    }
  }
}

TEST(another_peers_key_and_another_coordinators_name_are_refused_by_who_dials) {
  const auto end = [](const TlsExpectation& expected, const std::string& uri) {
    auto [near, far] = connected();
    const auto us = authority().context()->dial(std::move(near), expected);
    const auto them = authority().context(authority().issue(-300, 3600, uri));
    const auto other = them->accept(std::move(far));
    return establish(*us, *other).first;
  };
  PeerId somebody;
  somebody.bytes[0] = 1;
  RunId run;
  run.bytes[15] = 0xab;
  const std::string right = "pccl://run/000000000000000000000000000000ab/coordinator";
  CHECK(end({somebody, {}}, {}) == Status::protocol);
  CHECK(end({{}, run}, {}) == Status::protocol);
  CHECK(end({{}, run}, "pccl://run/000000000000000000000000000000ac/coordinator") ==
        Status::protocol);
  CHECK(end({{}, run}, "pccl://run/000000000000000000000000000000ab/peer/00") ==
        Status::protocol);
  CHECK(end({{}, run}, right + "x") == Status::protocol);
  CHECK(end({{}, run}, right) == Status::ok);
}
