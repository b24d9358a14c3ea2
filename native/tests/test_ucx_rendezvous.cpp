// native/tests/test_ucx_rendezvous.cpp — a peer that dies or stops while UCX fetches its messages.
//
// Every message goes by rendezvous here: UCX holds memory of both ends for as long as it lasts.
// Memory that a stream gives back is filled with poison and kept: a write that comes later shows.
// Skipped without UCX (PCCL_UCX_LIB, the system).
//
// Ownership: each test owns its end.
// Threads:   one, and UCX's.
// Errors:    CHECKs.
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <algorithm>
#include <csignal>

#include "ucx/stream.hpp"
#include "ucx_sender.hpp"

using namespace pccl;

namespace {

constexpr std::byte poison{0xA5};
constexpr std::size_t stream_bytes = 2 * UcxStream::messages_max * UcxStream::message_bytes;
std::vector<std::span<std::byte>> given_back;  // of streams that are over

bool all_poison() {
  return std::all_of(given_back.begin(), given_back.end(), [](std::span<std::byte> memory) {
    return std::all_of(memory.begin(), memory.end(), [](std::byte x) { return x == poison; });
  });
}

}  // namespace

extern "C" int munmap(void* memory, std::size_t bytes) noexcept {
  if (bytes != stream_bytes) return static_cast<int>(::syscall(SYS_munmap, memory, bytes));
  const std::span<std::byte> whole(static_cast<std::byte*>(memory), bytes);
  std::fill(whole.begin(), whole.end(), poison);
  given_back.push_back(whole);
  return 0;
}

namespace {

/// Receives until some messages are being fetched, and stops the sender there; false: no UCX.
bool stop_amid_rendezvous(ConduitEnd& end, pid_t& child, int signal) {
  CHECK(::setenv("UCX_RNDV_THRESH", "1024", 1) == 0);
  end.worker = ucx_worker();
  if (!end.worker) return false;
  auto ends = connection();
  child = start_sender(std::move(ends[1]));
  end.conduit = end.worker->conduit(make_socket_conduit(std::move(ends[0])));
  end.begin();
  std::vector<std::byte> there;
  const double until_s = monotonic_s() + conduit_patience_s;
  // What this end itself sends is one word at a time.
  const auto amid = [&] { return there.size() >= 500'000 && end.worker->report().requests >= 3; };
  while (!end.closed && !amid() && monotonic_s() < until_s) {
    end.turn(10);
    if (!amid()) end.receive(there, 100'000);
  }
  CHECK(amid());
  CHECK(::kill(child, signal) == 0);
  if (signal == SIGSTOP) {
    int status = 0;
    CHECK(::waitpid(child, &status, WUNTRACED) == child && WIFSTOPPED(status));
  }
  const auto whole = sent_by_sender();
  CHECK(there.size() < whole.size() && std::equal(there.begin(), there.end(), whole.begin()));
  return true;
}

/// What a fence does with a lane that is lost; then UCX lets go of all of it within a second.
double let_go(ConduitEnd& end) {
  const double began_s = monotonic_s();
  const std::size_t before = given_back.size();
  end.conduit.reset();
  while (end.worker->report().streams > 0 && monotonic_s() < began_s + conduit_patience_s) {
    end.turn(1);
  }
  CHECK(end.worker->report().streams == 0 && end.worker->report().requests == 0);
  CHECK(given_back.size() == before + 1);
  return monotonic_s() - began_s;
}

void turn_for(ConduitEnd& end, double seconds) {
  const double until_s = monotonic_s() + seconds;
  while (monotonic_s() < until_s) end.turn(1);
}

void check_slowest(std::vector<double> took_s, const char* what) {
  if (took_s.empty()) return;
  std::sort(took_s.begin(), took_s.end());
  std::printf("%s: slowest of %zu %.1f ms\n", what, took_s.size(), 1e3 * took_s.back());
  CHECK(took_s.back() < (check::sanitized ? 5.0 : 1.0));
}

constexpr int rounds = check::sanitized ? 2 : 8;

}  // namespace

TEST(what_is_fetched_from_a_killed_process_is_let_go_and_its_memory_not_written) {
  std::vector<double> took_s;
  for (int i = 0; i < rounds; ++i) {
    ConduitEnd end;
    pid_t child = -1;
    if (!stop_amid_rendezvous(end, child, SIGKILL)) return;
    const double killed_s = monotonic_s();
    std::vector<std::byte> rest;
    while (!end.closed && monotonic_s() < killed_s + conduit_patience_s) {
      end.turn(10);
      end.receive(rest, 1 << 20);
    }
    CHECK(end.closed);
    (void)let_go(end);
    took_s.push_back(monotonic_s() - killed_s);
    turn_for(end, 0.05);
    CHECK(all_poison());
    CHECK(::waitpid(child, nullptr, 0) == child);
  }
  check_slowest(took_s, "SIGKILL to nothing left");
}

TEST(what_is_fetched_from_a_stopped_process_is_let_go_and_what_comes_later_not_written) {
  std::vector<double> took_s;
  for (int i = 0; i < rounds; ++i) {
    ConduitEnd end;
    pid_t child = -1;
    if (!stop_amid_rendezvous(end, child, SIGSTOP)) return;
    // Some of it is in this machine's sockets: what has come may go on coming.
    turn_for(end, 0.02);
    took_s.push_back(let_go(end));
    CHECK(::kill(child, SIGCONT) == 0);  // it goes on sending what it was about to
    turn_for(end, 0.1);
    CHECK(all_poison());
    CHECK(::kill(child, SIGKILL) == 0);
    CHECK(::waitpid(child, nullptr, 0) == child);
    turn_for(end, 0.05);
    CHECK(all_poison());
  }
  check_slowest(took_s, "from the lane's end to nothing left");
}
