// native/tests/test_ucx_answers.cpp — how conduits through UCX begin, if they do.
//
// Skipped without UCX (PCCL_UCX_LIB, the system).
//
// Ownership: each test owns both ends.
// Threads:   one.
// Errors:    CHECKs.
#include <sys/socket.h>
#include <unistd.h>

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
  Held() {
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
    write_all(to_b, of_a);
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
    CHECK(held.a.worker->progress(events) == 0);
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
