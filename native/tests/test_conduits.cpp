// native/tests/test_conduits.cpp — one suite that every conduit passes: a TCP socket, TLS records,
// sealed pieces, and UCX, where there is a libucp.
// Ownership: each test owns its pair.
// Threads:   one; both ends take turns.
// Errors:    CHECKs.
#include "conduit_kinds.hpp"

using namespace pccl;

TEST(bytes_of_all_sizes_come_out_as_they_went_in_both_ways_at_once) {
  for (const Kind kind : kinds()) {
    for (const std::size_t count : {std::size_t{1}, std::size_t{100}, std::size_t{65'537},
                                    std::size_t{check::sanitized ? 1'000'003 : 6'000'003}}) {
      const Two two = pair_of(kind);
      Flow there{*two.near, *two.far, noise(count, 1)};
      Flow back{*two.far, *two.near, noise(count + 5, 2)};
      run(two, {&there, &back}, static_cast<unsigned>(count));
      CHECK(there.got == there.in.size() && there.out == there.in);
      CHECK(back.got == back.in.size() && back.out == back.in);
    }
  }
}

TEST(both_directions_full_say_would_block_and_go_on_when_somebody_reads) {
  for (const Kind kind : kinds()) {
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
    run(two, {&there, &back}, 6);
    CHECK(there.out == there.in && back.out == back.in);
  }
}

TEST(an_end_in_the_middle_gives_a_prefix_and_then_an_error) {
  for (const Kind kind : kinds()) {
    Two two = pair_of(kind);
    Flow there{*two.near, *two.far, noise(3'000'000, 7)};
    std::mt19937 dice(8);
    while (there.sent < 700'000) {
      two.move();
      there.write(dice);
      there.read(dice);
    }
    two.near->shut();
    for (int i = 0; i < 10'000 && there.ended == Status::ok; ++i) {
      two.move();
      there.read(dice);
    }
    CHECK(there.ended == Status::closed || there.ended == Status::io_error);
    CHECK(there.got <= there.sent);
    CHECK(std::equal(there.out.begin(), there.out.begin() + static_cast<long>(there.got),
                     there.in.begin()));
  }
}

TEST(a_poller_tells_of_all_that_comes_and_of_room_again_and_then_of_the_end) {
  for (const Kind kind : kinds()) {
    Two two = pair_of(kind);
    ConduitEnd near{std::move(two.near_worker), std::move(two.near), {}};
    ConduitEnd far{std::move(two.far_worker), std::move(two.far), {}};
    near.begin();
    far.begin();
    for (const std::size_t size : {1u, 5'000u, 3'000'000u}) {
      exchange(near, far, pattern(size, size), pattern(size / 2 + 1, size + 1), 1 << 20);
    }
    exchange(near, far, pattern(100'000, 3), pattern(1, 4), 1000);
    far.conduit.reset();
    std::vector<std::byte> none;
    const double until_s = monotonic_s() + conduit_patience_s;
    while (!near.closed && monotonic_s() < until_s) {
      near.turn(10);
      if (far.worker) (void)far.worker->progress({}, monotonic_s());
      near.receive(none, 1000);
    }
    CHECK(near.closed && none.empty());
  }
}

TEST(what_nobody_receives_is_bounded_and_unread_and_what_is_received_is_acknowledged_in_the_end) {
  for (const Kind kind : kinds()) {
    const Two two = pair_of(kind);
    Flow there{*two.near, *two.far, noise(24'000'000, 12)};
    std::mt19937 dice(13);
    for (int i = 0; i < 3000; ++i) {
      there.write(dice);
      two.move();
    }
    CHECK(there.sent > 0 && there.sent < there.in.size());
    CHECK(two.far->unread());
    std::uint64_t before = two.near->acknowledged();
    for (int i = 0; i < 400'000 && !there.done(); ++i) {
      there.write(dice);
      two.move();
      there.read(dice);
      if (i % 100 != 0) continue;
      const std::uint64_t now = two.near->acknowledged();
      CHECK(now >= before);
      before = now;
    }
    CHECK(there.out == there.in);
    // A lane is looked at a few times a second; then it says what it has taken.
    for (int i = 0; i < 5000 && (two.near->acknowledged() == 0 || two.near->owing()); ++i) {
      CHECK(two.near->flush() == Status::ok);
      (void)two.far->acknowledged();
      two.move();
      if (i % 16 == 0) ::poll(nullptr, 0, 1);
    }
    CHECK(!two.near->owing() && !two.far->unread());
  }
}
