// native/tests/test_ucx.cpp — conduits through UCX; without UCX (PCCL_UCX_LIB, the system's) skipped.
// Ownership: each test owns both ends.
// Threads:   one; a second process where one is to die.
// Errors:    CHECKs.
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <string>

#include "conduit_rig.hpp"

using namespace pccl;

namespace {

std::vector<std::string> libraries() {
  const char* named = std::getenv("PCCL_UCX_LIB");
  if (named != nullptr && *named != '\0') return {named};
  return {"libucp.so.0"};
}

/// Null, with a word to whoever reads the log, where there is no UCX.
std::unique_ptr<UcxWorker> worker() {
  std::string obstacle;
  auto made = UcxWorker::make(libraries(), obstacle);
  if (!made) std::printf("skipped: %s\n", obstacle.c_str());
  return made;
}

std::array<Fd, 2> connection() {
  std::array<int, 2> ends{};
  CHECK(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, ends.data()) == 0);
  return {Fd(ends[0]), Fd(ends[1])};
}

/// Two ends in one process, each with a worker of its own.
struct Pair {
  Pair() {
    a.worker = worker();
    if (!a.worker) return;
    b.worker = worker();
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

/// Moves both ways until all is there, `most` bytes a turn at the receiving side.
void exchange(ConduitEnd& a, ConduitEnd& b, const std::vector<std::byte>& there,
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
