// native/tests/test_conduits_sealed.cpp — what only conduits that seal must refuse: bits turned,
// ends in the middle, keys and names of others.
// Ownership: each test owns its pair.
// Threads:   one; both ends take turns.
// Errors:    CHECKs.
#include "conduit_tap.hpp"

using namespace pccl;

namespace {

constexpr std::size_t body = 20'000;

}  // namespace

TEST(a_bit_turned_anywhere_ends_the_stream_and_what_came_before_is_true) {
  for (const Kind kind : {Kind::records, Kind::pieces, Kind::rekeyed}) {
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
  for (const Kind kind : {Kind::records, Kind::pieces, Kind::rekeyed}) {
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
