// native/tests/test_ucx_answers.cpp — how conduits through UCX begin, if they do.
//
// Skipped without UCX (PCCL_UCX_LIB, the system).
//
// Ownership: each test owns both ends.
// Threads:   one.
// Errors:    CHECKs.
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <string>

#include "conduit_rig.hpp"
#include "pccl/wire.hpp"
#include "ucx_rig.hpp"

using namespace pccl;

namespace {

std::vector<std::byte> question(const WorkerBody& of) {
  const std::vector<std::byte> body = worker_body(of);
  FrameHeader header;
  header.type = FrameType::worker;
  sign(header, body);
  std::vector<std::byte> bytes(header_bytes);
  encode(header, std::span<std::byte, header_bytes>(bytes.data(), header_bytes));
  bytes.insert(bytes.end(), body.begin(), body.end());
  return bytes;
}

/// Two ends whose words on their connections pass through the test's hands: b has been told of a.
struct Held {
  explicit Held(std::vector<std::byte> (*told_b)(const std::vector<std::byte>&) = nullptr) {
    a.worker = ucx_worker();
    if (!a.worker) return;
    b.worker = ucx_worker();
    auto near = connection();
    auto far = connection();
    a.conduit = a.worker->conduit(make_socket_conduit(std::move(near[0])));
    b.conduit = b.worker->conduit(make_socket_conduit(std::move(far[0])));
    to_a = std::move(near[1]);
    to_b = std::move(far[1]);
    of_a = question_at(to_a);
    of_b = question_at(to_b);
    a.begin();
    b.begin();
    write_all(to_b, told_b != nullptr ? told_b(of_a) : of_a);
    std::vector<std::byte> none;
    b.turn(1000);
    b.receive(none, 1);
    CHECK(none.empty());
  }
  explicit operator bool() const { return a.conduit != nullptr; }
  void answer_a(const std::vector<std::byte>& with) const { write_all(to_a, with); }

  static std::vector<std::byte> question_at(const Fd& end) {
    std::vector<std::byte> bytes(header_bytes + worker_bytes_max);
    const ssize_t count = ::read(end.get(), bytes.data(), bytes.size());
    CHECK(count > static_cast<ssize_t>(header_bytes));
    bytes.resize(static_cast<std::size_t>(count));
    return bytes;
  }
  static void write_all(const Fd& end, const std::vector<std::byte>& bytes) {
    CHECK(::write(end.get(), bytes.data(), bytes.size()) == static_cast<ssize_t>(bytes.size()));
  }
  ConduitEnd a;
  ConduitEnd b;
  Fd to_a;
  Fd to_b;
  std::vector<std::byte> of_a;
  std::vector<std::byte> of_b;
};

}  // namespace

TEST(an_end_without_ucx_is_heard_as_it_is_and_what_it_said_first_is_not_lost) {
  auto ends = connection();
  ConduitEnd end;
  end.worker = ucx_worker();
  if (!end.worker) return;
  end.conduit = end.worker->conduit(make_socket_conduit(std::move(ends[0])));
  end.begin();
  FrameHeader header;
  header.type = FrameType::ask;
  std::array<std::byte, header_bytes> first{};
  encode(header, first);
  CHECK(::write(ends[1].get(), first.data(), 30) == 30);
  std::vector<std::byte> there;
  end.turn(100);
  end.receive(there, 1000);
  CHECK(there.empty() && !end.closed);
  CHECK(::write(ends[1].get(), first.data() + 30, header_bytes - 30) == header_bytes - 30);
  CHECK(::write(ends[1].get(), "tail", 4) == 4);
  for (int i = 0; i < 3; ++i) {
    end.turn(100);
    end.receive(there, 1000);
  }
  CHECK(there.size() == header_bytes + 4);
  CHECK(std::memcmp(there.data(), first.data(), header_bytes) == 0);
  CHECK(end.worker->report().declined == 1 && end.worker->report().through_ucx == 0);
  std::size_t sent = 0;
  end.writable = true;
  end.send(pattern(10, 1), sent);
  CHECK(sent == 10);
}

TEST(an_end_with_another_version_of_ucx_is_served_as_it_is_and_its_address_not_touched) {
  Held held;
  if (!held) return;
  WorkerBody body;
  CHECK(decode(std::span(held.of_b).subspan(header_bytes), body) == Status::ok);
  CHECK(body.ucx_major == 1 && body.ucx_minor >= 13);
  const std::array garbage{std::byte{0xff}, std::byte{0xff}, std::byte{0xff}};
  body.address = garbage;  // whoever hands it to UCX is punished
  ++body.ucx_minor;
  held.answer_a(question(body));
  Held::write_all(held.to_a, pattern(30, 3));
  std::vector<std::byte> there;
  const double until_s = monotonic_s() + conduit_patience_s;
  while (there.size() < 30 && !held.a.closed && monotonic_s() < until_s) {
    held.a.turn(10);
    held.a.receive(there, 100);
  }
  CHECK(there == pattern(30, 3));
  std::size_t sent = 0;
  held.a.writable = true;
  held.a.send(pattern(20, 4), sent);
  std::array<std::byte, 100> back{};
  CHECK(sent == 20 && ::read(held.to_a.get(), back.data(), back.size()) == 20);
  CHECK(held.a.worker->report().declined == 1 && held.a.worker->report().through_ucx == 0);
}

TEST(messages_that_overtake_the_answer_wait_for_it_and_the_reactor_sleeps) {
  Held held;
  if (!held) return;
  CHECK(held.a.worker->report().through_ucx == 0 && held.b.worker->report().through_ucx == 1);
  std::size_t sent = 0;
  held.b.send(pattern(1000, 1), sent);
  CHECK(sent == 1000);
  bool slept = false;
  for (int i = 0; i < 50; ++i) {
    held.b.turn(1);
    slept = held.a.worker->arm();
    std::array<Poller::Event, 4> events;
    CHECK(held.a.worker->progress(events, monotonic_s()) == 0);
  }
  CHECK(slept);
  held.answer_a(held.of_b);
  std::vector<std::byte> there;
  const double until_s = monotonic_s() + conduit_patience_s;
  while (there.size() < 1000 && monotonic_s() < until_s) {
    held.b.turn(0);
    held.a.turn(1);
    held.a.receive(there, 10'000);
  }
  CHECK(there == pattern(1000, 1));
}

namespace {

/// `a` has failed with what it was told, and the next connection to there stays as it is.
void check_given_up(Held& held) {
  CHECK(held.a.worker->report().through_ucx == 1 && held.a.worker->report().declined == 0);
  held.a.conduit->shut();
  auto next = connection();
  auto bare = held.a.worker->conduit(make_socket_conduit(std::move(next[0])));
  std::byte byte{};
  CHECK(::read(next[1].get(), &byte, 1) == -1 && errno == EAGAIN);  // asks nothing
  CHECK(held.a.worker->report().declined == 1);
}

void hear_answer(Held& held) {
  std::vector<std::byte> none;
  held.a.turn(1000);
  held.a.receive(none, 1);
  CHECK(none.empty() && !held.a.closed && held.a.worker->report().through_ucx == 1);
}

/// Time passes for a, while UCX moves as it can.
void pass(Held& held, double& now_s, double seconds) {
  for (const double until_s = now_s + seconds; now_s < until_s; now_s += 0.1) {
    std::array<Poller::Event, 4> events;
    if (held.a.worker->progress(events, now_s) > 0) held.a.readable = true;
    held.b.turn(0);
  }
}

/// Without what comes from b, as if nothing came through: a word for a stream of another name.
std::vector<std::byte> with_another_name(const std::vector<std::byte>& asked) {
  WorkerBody body;
  CHECK(decode(std::span(asked).subspan(header_bytes), body) == Status::ok);
  ++body.name;
  return question(body);
}

}  // namespace

TEST(a_way_of_ucx_on_which_nothing_is_ever_heard_fails_in_2_s_and_is_not_taken_again) {
  Held held(with_another_name);
  if (!held) return;
  held.answer_a(with_another_name(held.of_b));
  hear_answer(held);
  double now_s = 100;
  pass(held, now_s, 10);
  CHECK(!held.a.readable);  // it owes nothing
  std::size_t sent = 0;
  held.a.writable = true;
  held.a.send(pattern(1000, 1), sent);
  CHECK(sent == 1000);
  pass(held, now_s, 1.5);
  now_s += 1000;  // this side stood still
  pass(held, now_s, 0.1);
  CHECK(!held.a.readable);
  pass(held, now_s, 0.5);
  CHECK(held.a.readable);
  std::vector<std::byte> none;
  held.a.receive(none, 10);
  CHECK(held.a.closed && none.empty());
  check_given_up(held);
}

TEST(a_lane_that_ends_while_ucx_has_long_been_silent_is_followed_by_one_without_it) {
  Held held(with_another_name);
  if (!held) return;
  held.answer_a(with_another_name(held.of_b));
  hear_answer(held);
  double now_s = 100;
  std::size_t sent = 0;
  held.a.writable = true;
  held.a.send(pattern(1000, 1), sent);
  pass(held, now_s, 1);
  check_given_up(held);
}

TEST(a_way_of_ucx_that_is_cut_before_a_word_came_is_not_taken_again) {
  Held held(with_another_name);
  if (!held) return;
  held.answer_a(held.of_b);
  hear_answer(held);
  held.b.conduit.reset();
  held.b.worker.reset();  // UCX's connections are gone, this side's own stands
  std::vector<std::byte> none;
  const double until_s = monotonic_s() + conduit_patience_s;
  while (!held.a.closed && monotonic_s() < until_s) {
    held.a.turn(10);
    held.a.receive(none, 10);
  }
  CHECK(held.a.closed && none.empty());
  check_given_up(held);
}

TEST(an_end_that_dies_before_a_word_of_it_came_through_ucx_says_nothing_against_ucx) {
  Held held(with_another_name);
  if (!held) return;
  held.answer_a(with_another_name(held.of_b));
  hear_answer(held);
  double now_s = 100;
  std::size_t sent = 0;
  held.a.writable = true;
  held.a.send(pattern(1000, 1), sent);
  pass(held, now_s, 1);
  held.to_a = Fd();
  held.a.readable = true;
  std::vector<std::byte> none;
  held.a.receive(none, 10);
  CHECK(held.a.closed);
  held.a.conduit.reset();
  auto next = connection();
  auto asking = held.a.worker->conduit(make_socket_conduit(std::move(next[0])));
  CHECK(!Held::question_at(next[1]).empty() && held.a.worker->report().declined == 0);
}

TEST(a_first_word_is_heard_where_nobody_sends_or_takes_anything) {
  Held held;
  if (!held) return;
  held.answer_a(held.of_b);
  hear_answer(held);
  const double until_s = monotonic_s() + conduit_patience_s;
  while ((held.a.worker->report().transports.empty() ||
          held.b.worker->report().transports.empty()) && monotonic_s() < until_s) {
    held.a.turn(1);
    held.b.turn(1);
  }
  std::size_t sent = 0;
  held.a.writable = true;
  held.a.send(pattern(1000, 1), sent);
  double now_s = 100;
  for (; now_s < 110; now_s += 0.1) (void)held.a.worker->progress({}, now_s);
  std::vector<std::byte> none;
  held.a.readable = true;
  held.a.receive(none, 10);
  CHECK(!held.a.closed);  // b took nothing all that time
}

TEST(a_machine_that_ucx_does_not_reach_is_asked_once_and_then_served_as_it_is) {
  ConduitEnd a;
  ConduitEnd b;
  a.worker = ucx_worker();
  if (!a.worker) return;
  const char* before = std::getenv("UCX_TLS");
  const std::string kept = before != nullptr ? before : "";
  CHECK(::setenv("UCX_TLS", "self", 1) == 0);  // nobody else reaches this one
  b.worker = ucx_worker();
  CHECK((before != nullptr ? ::setenv("UCX_TLS", kept.c_str(), 1) : ::unsetenv("UCX_TLS")) == 0);
  if (!b.worker) return;
  auto ends = connection();
  a.conduit = a.worker->conduit(make_socket_conduit(std::move(ends[0])));
  b.conduit = b.worker->conduit(make_socket_conduit(std::move(ends[1])));
  a.begin();
  b.begin();
  std::vector<std::byte> none;
  const double until_s = monotonic_s() + conduit_patience_s;
  while (!(a.closed && b.closed) && monotonic_s() < until_s) {
    for (ConduitEnd* end : {&a, &b}) {
      end->turn(5);
      end->receive(none, 10);
      if (end->closed) end->conduit->shut();
    }
  }
  CHECK(a.closed && b.closed && none.empty());
  auto next = connection();
  ConduitEnd c;
  ConduitEnd d;
  c.conduit = a.worker->conduit(make_socket_conduit(std::move(next[0])));
  d.conduit = b.worker->conduit(make_socket_conduit(std::move(next[1])));
  c.begin();
  d.begin();
  exchange(c, d, pattern(100'000, 1), pattern(50'000, 2), 1 << 20);
  CHECK(a.worker->report().declined == 1 && a.worker->report().through_ucx == 0);
}
