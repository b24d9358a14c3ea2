// native/tests/test_tls_attacks.cpp — what a network attacker does to a handshake and to a lane's
// pieces: old protocols, cuts, turned bits, pieces said again, moved, left out or of elsewhere.
// Ownership: each test owns its pair.
// Threads:   one; both ends take turns.
// Errors:    CHECKs.
#include <algorithm>
#include <array>
#include <deque>

#include "conduit_tap.hpp"
#include "tls/bulk.hpp"

using namespace pccl;

namespace {

Bytes bytes_of(std::initializer_list<int> values) {
  Bytes bytes;
  for (const int value : values) bytes.push_back(static_cast<std::byte>(value));
  return bytes;
}
void append(Bytes& to, const Bytes& more) { to.insert(to.end(), more.begin(), more.end()); }
Bytes sized(std::size_t width, const Bytes& body) {
  Bytes bytes;
  for (std::size_t i = width; i-- > 0;) {
    bytes.push_back(static_cast<std::byte>(body.size() >> 8 * i));
  }
  append(bytes, body);
  return bytes;
}
/// A handshake message of that type in a record of its own.
Bytes in_record(int type, const Bytes& message) {
  Bytes body = bytes_of({type});
  append(body, sized(3, message));
  Bytes record = bytes_of({22, 3, 1});
  append(record, sized(2, body));
  return record;
}

/// A greeting of TLS 1.2, by which servers of that time choose ECDHE with AES; `offers`: what it
/// says in the extension of TLS 1.3, if it has that.
Bytes greeting(const Bytes& offers) {
  Bytes hello = bytes_of({3, 3});
  append(hello, noise(32, 1));
  append(hello, sized(1, {}));
  append(hello, sized(2, bytes_of({0xc0, 0x2b, 0xc0, 0x2f, 0x00, 0x9c, 0x13, 0x01})));
  append(hello, bytes_of({1, 0}));
  Bytes extensions = bytes_of({0, 10, 0, 4, 0, 2, 0, 29});                        // X25519
  append(extensions, bytes_of({0, 13, 0, 8, 0, 6, 8, 7, 4, 3, 4, 1}));            // signatures
  if (!offers.empty()) {
    append(extensions, bytes_of({0, 43}));
    append(extensions, sized(2, sized(1, offers)));
  }
  append(hello, sized(2, extensions));
  return in_record(1, hello);
}

/// What one end says to bytes that were written to it, and what its handshake came to.
std::pair<Status, Bytes> answer(bool dials, const Bytes& said) {
  auto [near, far] = connected();
  const auto context = authority().context();
  const auto conduit =
      dials ? context->dial(std::move(near), {}) : context->accept(std::move(near));
  Status status = conduit->establish();
  CHECK(status == Status::would_block);
  if (dials) {  // its greeting
    Bytes greeted(4096);
    pollfd wait{far.get(), POLLIN, 0};
    CHECK(::poll(&wait, 1, 5000) == 1);
    CHECK(::recv(far.get(), greeted.data(), greeted.size(), MSG_DONTWAIT) > 0);
  }
  CHECK(::send(far.get(), said.data(), said.size(), MSG_NOSIGNAL) ==
        static_cast<ssize_t>(said.size()));
  for (int i = 0; i < 1000 && status == Status::would_block; ++i) {
    ::poll(nullptr, 0, 1);
    status = conduit->establish();
  }
  CHECK(!conduit->refusal().empty());
  Bytes heard(4096);
  pollfd wait{far.get(), POLLIN, 0};
  const bool any = ::poll(&wait, 1, 5000) == 1;
  const ssize_t count = any ? ::recv(far.get(), heard.data(), heard.size(), MSG_DONTWAIT) : 0;
  heard.resize(count > 0 ? static_cast<std::size_t>(count) : 0);
  return {status, heard};
}

const Bytes alert_of_version = bytes_of({21, 3, 1, 0, 2, 2, 70});

bool is_alert_of_version(Bytes heard) {
  if (heard.size() > 2) heard[2] = alert_of_version[2];  // which of the old versions it is said in
  return heard == alert_of_version;
}

}  // namespace

TEST(whoever_offers_or_chooses_less_than_tls_1_3_is_refused) {
  for (const Bytes& offers : {Bytes{}, bytes_of({3, 3}), bytes_of({3, 3, 3, 2, 3, 1})}) {
    const auto [status, heard] = answer(false, greeting(offers));
    CHECK(status == Status::protocol);
    CHECK(is_alert_of_version(heard));
  }
  // The same words with TLS 1.3 among the offers get further: what was refused was the version.
  const auto [status, heard] = answer(false, greeting(bytes_of({3, 4})));
  CHECK(status == Status::protocol && !is_alert_of_version(heard));
  // A server that chooses TLS 1.2, as one in the middle would make it say.
  Bytes chosen = bytes_of({3, 3});
  append(chosen, noise(32, 2));
  append(chosen, sized(1, {}));
  append(chosen, bytes_of({0xc0, 0x2b, 0}));
  const auto [dialler, said] = answer(true, in_record(2, chosen));
  CHECK(dialler == Status::protocol);
  CHECK(!said.empty() && said[0] == std::byte{21});
}

namespace {

/// A handshake through a tap; stops as soon as both ends have come to something.
struct Shaken {
  Status near = Status::would_block, far = Status::would_block;
  Two two;
  Wiretap tap;
};

/// `touch` sees what passes from near to far, or, if `back`, from far to near.
void shake(Shaken& made, bool back,
           const std::function<void(std::span<std::byte>, std::size_t)>& touch, std::size_t limit) {
  auto [a, left] = connected();
  auto [right, b] = connected();
  static const auto ours = authority().context();
  static const auto theirs = authority().context();
  auto dialled = ours->dial(std::move(a), {});
  auto accepted = theirs->accept(std::move(b));
  made.two = {nullptr, nullptr, std::move(dialled), std::move(accepted)};
  made.tap = back ? Wiretap{std::move(right), std::move(left)}
                  : Wiretap{std::move(left), std::move(right)};
  bool cut = false;
  for (int idle = 0; idle < 6;) {
    const std::size_t before = made.tap.passed;
    if (made.near == Status::would_block) made.near = made.two.near->establish();
    made.tap.pump(touch, limit);
    if (made.far == Status::would_block) made.far = made.two.far->establish();
    made.tap.pump(touch, limit);
    if (made.tap.passed == limit && !cut) {
      cut = true;
      ::shutdown(made.tap.right.get(), SHUT_WR);
    }
    const bool both = made.near != Status::would_block && made.far != Status::would_block;
    if (both && limit == SIZE_MAX) break;
    idle = made.tap.passed == before ? idle + 1 : 0;
    if (idle > 0) ::poll(nullptr, 0, idle > 3 ? 1 : 0);
  }
}

std::size_t bytes_of_a_handshake(bool back) {
  Shaken made;
  shake(made, back, [](auto, auto) {}, SIZE_MAX);
  CHECK(made.near == Status::ok && made.far == Status::ok);
  return made.tap.passed;
}

constexpr std::size_t stride = check::sanitized ? 29 : 1;

}  // namespace

TEST(a_handshake_that_is_cut_at_any_byte_opens_nothing_at_the_end_that_misses_it) {
  for (const bool back : {false, true}) {
    const std::size_t all = bytes_of_a_handshake(back) - 24;  // signatures vary by a few bytes
    CHECK(all > 400);
    for (std::size_t limit = 0; limit < all; limit += stride) {
      Shaken made;
      shake(made, back, [](auto, auto) {}, limit);
      const Status misses = back ? made.near : made.far;
      CHECK(misses == Status::closed || misses == Status::protocol);
      Bytes one(1);
      const iovec part{one.data(), 1};
      std::size_t count = 0;
      const Conduit& end = back ? *made.two.near : *made.two.far;
      CHECK(!end.proves(authority().context()->peer()));
      CHECK((back ? *made.two.near : *made.two.far).send({&part, 1}, count) != Status::ok);
    }
  }
}

TEST(a_bit_turned_at_any_byte_of_a_handshake_opens_nothing_or_changes_nothing) {
  int opened = 0, tried = 0;
  for (const bool back : {false, true}) {
    const std::size_t all = bytes_of_a_handshake(back) - 24;
    for (std::size_t at = 0; at < all; at += stride) {
      Shaken made;
      shake(made, back,
            [&](std::span<std::byte> bytes, std::size_t from) {
              if (at >= from && at < from + bytes.size()) {
                bytes[at - from] ^= static_cast<std::byte>(1u << at % 8);
              }
            },
            SIZE_MAX);
      ++tried;
      if (made.near != Status::ok || made.far != Status::ok) continue;
      // Some bytes mean nothing, such as the version in the head of an early record.
      ++opened;
      CHECK(made.two.near->seal_in_bulk() == Status::ok);
      CHECK(made.two.far->seal_in_bulk() == Status::ok);
      const Bytes said = noise(100, 3);
      Bytes heard(said.size());
      const iovec out{const_cast<std::byte*>(said.data()), said.size()};
      const iovec in{heard.data(), heard.size()};
      std::size_t sent = 0, got = 0;
      bool drained = false;
      CHECK(made.two.near->send({&out, 1}, sent) == Status::ok);
      for (int i = 0; i < 20 && got == 0; ++i) {
        made.tap.pump([](auto, auto) {});
        (void)made.two.far->receive({&in, 1}, got, drained);
      }
      CHECK(got == said.size() && heard == said);
    }
  }
  std::printf("  %d turned, %d of them in bytes that mean nothing\n", tried, opened);
  CHECK(opened < tried / 20);
}

namespace {

/// What `from` sends, as whole pieces.
std::deque<Bytes> pieces_of(Conduit& from, int raw, const Bytes& said) {
  Bytes wire;
  std::size_t sent = 0, turn = 0;
  while (sent < said.size()) {  // pieces of several lengths
    const std::size_t most = ++turn % 2 == 0 ? 500 : 5000;
    const std::size_t here = std::min(said.size() - sent, most);
    const iovec part{const_cast<std::byte*>(said.data()) + sent, here};
    std::size_t count = 0;
    CHECK(from.send({&part, 1}, count) == Status::ok);
    sent += count;
    for (;;) {
      const std::size_t held = wire.size();
      wire.resize(held + 65536);
      const ssize_t got = ::recv(raw, wire.data() + held, 65536, MSG_DONTWAIT);
      wire.resize(held + (got > 0 ? static_cast<std::size_t>(got) : 0));
      if (got <= 0) break;
    }
  }
  for (int i = 0; i < 100; ++i) {
    const std::size_t held = wire.size();
    wire.resize(held + 65536);
    const ssize_t got = ::recv(raw, wire.data() + held, 65536, MSG_DONTWAIT);
    wire.resize(held + (got > 0 ? static_cast<std::size_t>(got) : 0));
    if (got <= 0) ::poll(nullptr, 0, 0);
  }
  std::deque<Bytes> pieces;
  for (std::size_t at = 0; at < wire.size();) {
    std::size_t bytes = 0;
    CHECK(piece_length(std::span(wire).subspan(at), bytes) == Status::ok && bytes > 0);
    if (bytes == 0) break;
    bytes += piece_overhead;
    pieces.emplace_back(wire.begin() + static_cast<long>(at),
                        wire.begin() + static_cast<long>(std::min(at + bytes, wire.size())));
    at += bytes;
  }
  return pieces;
}

/// How far the far end gets with these pieces, and what ends it.
std::pair<std::size_t, Status> opened(Conduit& to, int raw, const std::deque<Bytes>& pieces,
                                      const Bytes& said) {
  for (const Bytes& piece : pieces) {
    CHECK(::send(raw, piece.data(), piece.size(), MSG_NOSIGNAL) ==
          static_cast<ssize_t>(piece.size()));
  }
  Bytes heard(said.size() + 70000);
  std::size_t got = 0;
  Status status = Status::ok;
  for (int i = 0; i < 2000 && (status == Status::ok || status == Status::would_block); ++i) {
    const iovec part{heard.data() + got, heard.size() - got};
    std::size_t count = 0;
    bool drained = false;
    status = to.receive({&part, 1}, count, drained);
    if (status == Status::ok) got += count;
    if (status == Status::would_block && i > 100) break;
  }
  CHECK(got <= said.size() && std::equal(heard.begin(), heard.begin() + static_cast<long>(got),
                                         said.begin()));
  return {got, status};
}

}  // namespace

TEST(pieces_said_again_moved_left_out_or_of_elsewhere_open_nowhere) {
  using Pieces = std::deque<Bytes>;
  struct Attack {
    const char* name;
    std::size_t at;  // the first piece that is not what was sent
    void (*change)(Pieces& pieces, const Pieces& mirrored, const Pieces& elsewhere);
  };
  const Attack attacks[] = {
      {"again", 5, [](Pieces& p, const Pieces&, const Pieces&) { p.insert(p.begin() + 5, p[4]); }},
      {"again, later", 9,
       [](Pieces& p, const Pieces&, const Pieces&) { p.insert(p.begin() + 9, p[0]); }},
      {"exchanged", 4, [](Pieces& p, const Pieces&, const Pieces&) { std::swap(p[4], p[5]); }},
      {"left out", 3, [](Pieces& p, const Pieces&, const Pieces&) { p.erase(p.begin() + 3); }},
      {"the first left out", 0, [](Pieces& p, const Pieces&, const Pieces&) { p.pop_front(); }},
      {"mirrored", 0, [](Pieces& p, const Pieces& m, const Pieces&) { p[0] = m[0]; }},
      {"mirrored, in its place", 6, [](Pieces& p, const Pieces& m, const Pieces&) { p[6] = m[6]; }},
      {"of another lane", 0, [](Pieces& p, const Pieces&, const Pieces& e) { p[0] = e[0]; }},
      {"of another lane, later", 7,
       [](Pieces& p, const Pieces&, const Pieces& e) { p[7] = e[7]; }},
      {"the tail of another", 2,
       [](Pieces& p, const Pieces&, const Pieces&) {
         std::copy(p[5].end() - 16, p[5].end(), p[2].end() - 16);
       }},
      {"two made one", 1,
       [](Pieces& p, const Pieces&, const Pieces&) {
         std::uint32_t length = 0;
         std::memcpy(&length, p[1].data(), 4);
         length += static_cast<std::uint32_t>(p[2].size());
         std::memcpy(p[1].data(), &length, 4);
       }},
  };
  const Bytes said = noise(60'000, 4);
  for (const Kind kind : {Kind::pieces, Kind::rekeyed}) {
    for (const Attack& attack : attacks) {
      Tapped here = tapped(kind), there = tapped(kind);
      Pieces pieces = pieces_of(*here.two.near, here.tap.left.get(), said);
      const Pieces mirrored = pieces_of(*here.two.far, here.tap.right.get(), said);
      const Pieces elsewhere = pieces_of(*there.two.near, there.tap.left.get(), said);
      CHECK(pieces.size() > 10 && mirrored.size() > 10 && elsewhere.size() > 10);
      std::size_t before = 0;
      for (std::size_t i = 0; i < attack.at; ++i) before += pieces[i].size() - piece_overhead;
      attack.change(pieces, mirrored, elsewhere);
      const auto [got, status] = opened(*here.two.far, here.tap.right.get(), pieces, said);
      if (got == before && status == Status::protocol) continue;
      CHECK(!"it was opened, or ended otherwise");
      std::fprintf(stderr, "  %s: %zu bytes of %zu, status %d\n", attack.name, got, before,
                   static_cast<int>(status));
    }
    // And as they are, they open.
    Tapped here = tapped(kind);
    const Pieces pieces = pieces_of(*here.two.near, here.tap.left.get(), said);
    CHECK(opened(*here.two.far, here.tap.right.get(), pieces, said).first == said.size());
  }
}

TEST(ends_that_change_keys_at_different_places_part_and_believe_nothing_wrong) {
  const TlsMaterial one = authority().material(authority().issue());
  const TlsMaterial other = authority().material(authority().issue());
  auto [near, far] = connected();
  const TlsContext ours(one, {.pieces = true, .piece_bytes = 65536, .pieces_per_key = 3});
  const TlsContext theirs(other, {.pieces = true, .piece_bytes = 65536, .pieces_per_key = 4});
  const Two two{nullptr, nullptr, ours.dial(std::move(near), {}), theirs.accept(std::move(far))};
  CHECK(establish(*two.near, *two.far) == std::pair(Status::ok, Status::ok));
  CHECK(two.near->seal_in_bulk() == Status::ok && two.far->seal_in_bulk() == Status::ok);
  Flow there{*two.near, *two.far, noise(500'000, 5)};
  run(two, {&there}, 5);
  CHECK(there.ended == Status::protocol && there.got > 0 && there.got < there.in.size());
  CHECK(std::equal(there.out.begin(), there.out.begin() + static_cast<long>(there.got),
                   there.in.begin()));
}

TEST(a_sealing_that_would_wear_out_a_key_is_refused) {
  const TlsMaterial material = authority().material(authority().issue());
  for (const LaneSealing& wrong : {LaneSealing{true, 0, 1}, LaneSealing{true, 65536, 0},
                                   LaneSealing{true, 1 << 21, 1},
                                   LaneSealing{true, 65536, (std::uint64_t{1} << 20) + 1}}) {
    bool refused = false;
    try {
      const TlsContext context(material, wrong);
    } catch (const TlsUnusable&) {
      refused = true;
    }
    CHECK(refused);
  }
}
