// native/tests/test_ucx.cpp — conduits through UCX; skipped without it (PCCL_UCX_LIB, the system).
// Ownership: each test owns both ends.
// Threads:   one.
// Errors:    CHECKs.
#include <sys/wait.h>

#include <algorithm>
#include <csignal>
#include <set>

#include "conduit_rig.hpp"
#include "ucx_sender.hpp"

using namespace pccl;

namespace {

/// Two ends in one process, each with a worker of its own.
struct Pair {
  Pair() {
    a.worker = ucx_worker();
    if (!a.worker) return;
    b.worker = ucx_worker();
    auto ends = connection();
    a.conduit = a.worker->conduit(make_socket_conduit(std::move(ends[0])));
    b.conduit = b.worker->conduit(make_socket_conduit(std::move(ends[1])));
    a.begin();
    b.begin();
  }
  explicit operator bool() const { return a.conduit != nullptr; }
  ConduitEnd a;
  ConduitEnd b;
};

}  // namespace

TEST(bytes_come_out_in_the_order_in_which_they_went_in_both_ways_at_once) {
  Pair pair;
  if (!pair) return;
  for (const std::size_t size : {1u, 64u, 5'000u, 300'000u, 9'000'000u}) {
    exchange(pair.a, pair.b, pattern(size, size), pattern(size / 2 + 1, size + 1), 1 << 20);
  }
  exchange(pair.a, pair.b, pattern(500'000, 3), pattern(1, 4), 1000);
  const UcxReport report = pair.a.worker->report();
  CHECK(report.through_ucx == 1 && report.declined == 0 && report.streams == 1);
  CHECK(!report.transports.empty());
}

TEST(a_receiver_that_takes_nothing_bounds_what_the_sender_gets_rid_of) {
  Pair pair;
  if (!pair) return;
  exchange(pair.a, pair.b, pattern(1, 1), pattern(1, 2), 10);
  const auto bytes = pattern(30'000'000, 5);
  std::size_t sent = 0;
  for (int i = 0; i < 200; ++i) {
    pair.a.send(bytes, sent);
    pair.a.turn(1);
    pair.b.turn(1);
  }
  CHECK(sent > 1'000'000 && sent <= 8 * 260 * 1024);
  CHECK(pair.b.conduit->unread());
  CHECK(pair.a.conduit->acknowledged() < sent && pair.a.conduit->owing());
  std::vector<std::byte> there;
  const double until_s = monotonic_s() + conduit_patience_s;
  while (there.size() < bytes.size() && monotonic_s() < until_s) {
    pair.a.send(bytes, sent);
    pair.a.turn(0);
    pair.b.turn(0);
    pair.b.receive(there, 1 << 20);
  }
  CHECK(there == bytes);
  while (pair.a.conduit->owing() && monotonic_s() < until_s) {
    (void)pair.b.conduit->acknowledged();  // a lane is looked at a few times a second
    pair.b.turn(0);
    pair.a.turn(0);
    (void)pair.a.conduit->acknowledged();
  }
  CHECK(!pair.a.conduit->owing());
}

TEST(an_end_that_goes_away_closes_the_other_and_leaves_no_request_behind) {
  Pair pair;
  if (!pair) return;
  exchange(pair.a, pair.b, pattern(100, 1), pattern(100, 2), 1000);
  const auto bytes = pattern(10'000'000, 6);
  std::size_t sent = 0;
  for (int i = 0; i < 20; ++i) {
    pair.a.send(bytes, sent);
    pair.a.turn(0);
    pair.b.turn(0);
  }
  pair.b.conduit.reset();  // amid a message
  std::vector<std::byte> none;
  const double until_s = monotonic_s() + conduit_patience_s;
  while (!pair.a.closed && monotonic_s() < until_s) {
    pair.a.turn(1);
    pair.b.turn(0);
    pair.a.receive(none, 1000);
  }
  CHECK(pair.a.closed && none.empty());
  pair.a.conduit.reset();
  while (pair.a.worker->report().streams + pair.b.worker->report().streams > 0 &&
         monotonic_s() < until_s) {
    pair.a.turn(1);
    pair.b.turn(1);
  }
  CHECK(pair.a.worker->report().requests == 0 && pair.a.worker->report().streams == 0);
  CHECK(pair.b.worker->report().requests == 0 && pair.b.worker->report().streams == 0);
}

TEST(more_ready_conduits_than_events_have_their_turns_one_after_another) {
  constexpr std::uint64_t count = 12;
  ConduitEnd near;
  ConduitEnd far;
  near.worker = ucx_worker();
  if (!near.worker) return;
  far.worker = ucx_worker();
  std::vector<std::unique_ptr<Conduit>> here;
  std::vector<std::unique_ptr<Conduit>> there;
  for (std::uint64_t token = 1; token <= count; ++token) {
    auto ends = connection();
    here.push_back(near.worker->conduit(make_socket_conduit(std::move(ends[0]))));
    there.push_back(far.worker->conduit(make_socket_conduit(std::move(ends[1]))));
    CHECK(here.back()->watch(near.poller, token) == Status::ok);
  }
  std::byte byte{};
  const iovec part{&byte, 1};
  std::size_t moved = 0;
  bool drained = false;
  for (std::uint64_t i = 0; i < count; ++i) {
    CHECK(there[i]->receive({&part, 1}, moved, drained) == Status::would_block);
    CHECK(here[i]->receive({&part, 1}, moved, drained) == Status::would_block);
    CHECK(there[i]->send({&part, 1}, moved) == Status::ok);
  }
  const double until_s = monotonic_s() + conduit_patience_s;
  while (monotonic_s() < until_s &&
         !std::all_of(here.begin(), here.end(), [](const auto& it) { return it->unread(); })) {
    far.turn(1);
    near.turn(1);
  }
  std::set<std::uint64_t> told;  // nobody takes anything, so all stay ready
  for (std::uint64_t round = 0; round < count / 4; ++round) {
    std::array<Poller::Event, 4> events;
    CHECK(near.worker->progress(events, monotonic_s()) == events.size());
    for (const auto& event : events) told.insert(event.token);
  }
  CHECK(told.size() == count);
}

TEST(a_process_that_is_killed_amid_a_message_closes_the_other_end_within_a_second) {
  ConduitEnd end;
  end.worker = ucx_worker();
  if (!end.worker) return;
  auto ends = connection();
  const pid_t child = start_sender(std::move(ends[1]));
  end.conduit = end.worker->conduit(make_socket_conduit(std::move(ends[0])));
  end.begin();
  std::vector<std::byte> there;
  const double until_s = monotonic_s() + conduit_patience_s;
  while (!end.closed && there.size() < 3'000'000 && monotonic_s() < until_s) {
    end.turn(10);
    end.receive(there, 100'000);
  }
  CHECK(there.size() >= 3'000'000);
  CHECK(::kill(child, SIGKILL) == 0);
  const double killed_s = monotonic_s();
  while (!end.closed && monotonic_s() < until_s) {
    end.turn(10);
    end.receive(there, 1 << 20);
  }
  CHECK(end.closed && monotonic_s() - killed_s < 1.0);
  const auto whole = sent_by_sender();
  CHECK(there.size() < whole.size() && std::equal(there.begin(), there.end(), whole.begin()));
  end.conduit.reset();
  while (end.worker->report().streams > 0 && monotonic_s() < until_s) end.turn(1);
  CHECK(end.worker->report().requests == 0 && end.worker->report().streams == 0);
  int status = 0;
  CHECK(::waitpid(child, &status, 0) == child && WIFSIGNALED(status));
}
