// native/tests/test_conduits.cpp — one suite that every conduit passes: a TCP socket, TLS records,
// sealed pieces; and what only the sealed ones must refuse.
// Ownership: each test owns its pair.
// Threads:   one; both ends take turns.
// Errors:    CHECKs.
#include <poll.h>
#include <sys/socket.h>

#include <functional>
#include <random>
#include <vector>

#include "check.hpp"
#include "pccl/conduit.hpp"
#include "pccl/sockets.hpp"
#include "tls_rig.hpp"

namespace {

using namespace pccl;
using Bytes = std::vector<std::byte>;

enum class Kind { socket, records, pieces };
constexpr Kind kinds[] = {Kind::socket, Kind::records, Kind::pieces};

std::pair<Fd, Fd> connected() {
  Fd listener, near, far;
  CHECK(listen_tcp("127.0.0.1", 0, 4, listener) == Status::ok);
  CHECK(connect_tcp("127.0.0.1", local_port(listener.get()), near) == Status::ok);
  pollfd wait{listener.get(), POLLIN, 0};
  CHECK(::poll(&wait, 1, 5000) == 1);
  CHECK(accept_tcp(listener.get(), far) == Status::ok);
  return {std::move(near), std::move(far)};
}

const rig_tls::Authority& authority() {
  static const rig_tls::Authority one;
  return one;
}

/// Both handshakes to their ends; the statuses that they came to.
std::pair<Status, Status> establish(Conduit& a, Conduit& b) {
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

Two make(Kind kind, Fd near, Fd far) {
  Two two;
  if (kind == Kind::socket) {
    two = {make_socket_conduit(std::move(near)), make_socket_conduit(std::move(far))};
  } else {
    two = {authority().context()->dial(std::move(near), {}),
           authority().context()->accept(std::move(far))};
  }
  CHECK(establish(*two.near, *two.far) == std::pair(Status::ok, Status::ok));
  if (kind == Kind::pieces) {
    CHECK(two.near->seal_in_bulk() == Status::ok && two.far->seal_in_bulk() == Status::ok);
  }
  return two;
}

Two pair_of(Kind kind) {
  auto [near, far] = connected();
  return make(kind, std::move(near), std::move(far));
}

Bytes noise(std::size_t count, unsigned seed) {
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

void run(const std::vector<Flow*>& flows, unsigned seed) {
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

}  // namespace

TEST(bytes_of_all_sizes_come_out_as_they_went_in_both_ways_at_once) {
  for (const Kind kind : kinds) {
    for (const std::size_t count : {std::size_t{1}, std::size_t{100}, std::size_t{65'537},
                                    std::size_t{check::sanitized ? 1'000'003 : 6'000'003}}) {
      const Two two = pair_of(kind);
      Flow there{*two.near, *two.far, noise(count, 1)};
      Flow back{*two.far, *two.near, noise(count + 5, 2)};
      run({&there, &back}, static_cast<unsigned>(count));
      CHECK(there.got == there.in.size() && there.out == there.in);
      CHECK(back.got == back.in.size() && back.out == back.in);
    }
  }
}

TEST(both_directions_full_say_would_block_and_go_on_when_somebody_reads) {
  for (const Kind kind : kinds) {
    const Two two = pair_of(kind);
    Flow there{*two.near, *two.far, noise(24'000'000, 3)};
    Flow back{*two.far, *two.near, noise(24'000'000, 4)};
    std::mt19937 dice(5);
    std::size_t before = 1;
    while (there.sent + back.sent != before) {
      before = there.sent + back.sent;
      there.write(dice);
      back.write(dice);
    }
    CHECK(there.sent < there.in.size() && back.sent < back.in.size());
    run({&there, &back}, 6);
    CHECK(there.out == there.in && back.out == back.in);
  }
}

TEST(an_end_in_the_middle_gives_a_prefix_and_then_an_error) {
  for (const Kind kind : kinds) {
    Two two = pair_of(kind);
    Flow there{*two.near, *two.far, noise(3'000'000, 7)};
    std::mt19937 dice(8);
    while (there.sent < 700'000) {
      there.write(dice);
      there.read(dice);
    }
    two.near->shut();
    for (int i = 0; i < 10'000 && there.ended == Status::ok; ++i) there.read(dice);
    CHECK(there.ended == Status::closed || there.ended == Status::io_error);
    CHECK(there.got <= there.sent);
    CHECK(std::equal(there.out.begin(), there.out.begin() + static_cast<long>(there.got),
                     there.in.begin()));
  }
}

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
  Tapped made{{authority().context()->dial(std::move(near), {}),
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
