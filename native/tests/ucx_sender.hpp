// native/tests/ucx_sender.hpp — a process that sends through UCX until it is killed.
//
// Whoever includes this has the test that such a process runs.
//
// Ownership: the caller waits for the process.
// Threads:   one.
// Errors:    CHECKs.
#pragma once

#include <spawn.h>
#include <unistd.h>

#include <array>
#include <cstdlib>
#include <string>

#include "conduit_rig.hpp"
#include "ucx_rig.hpp"

namespace pccl {

inline constexpr const char* sender_variable = "PCCL_TEST_UCX_SENDER";
inline constexpr int sender_fd = 100;

/// What it sends.
inline std::vector<std::byte> sent_by_sender() { return pattern(50'000'000, 8); }

/// A new one, since UCX has threads that a forked one would lack.
inline pid_t start_sender(Fd connected) {
  posix_spawn_file_actions_t actions;
  CHECK(::posix_spawn_file_actions_init(&actions) == 0);
  CHECK(::posix_spawn_file_actions_adddup2(&actions, connected.get(), sender_fd) == 0);
  std::string program = "/proc/self/exe";
  std::string test = "a_process_that_sends_until_it_is_killed";
  const std::array<char*, 3> arguments{program.data(), test.data(), nullptr};
  CHECK(::setenv(sender_variable, "1", 1) == 0);
  pid_t child = -1;
  CHECK(::posix_spawn(&child, program.c_str(), &actions, nullptr, arguments.data(), environ) == 0);
  CHECK(::unsetenv(sender_variable) == 0);
  (void)::posix_spawn_file_actions_destroy(&actions);
  return child;
}

}  // namespace pccl

// Only what start_sender starts runs it.
TEST(a_process_that_sends_until_it_is_killed) {
  using namespace pccl;
  if (std::getenv(sender_variable) == nullptr) return;
  ConduitEnd end;
  end.worker = ucx_worker();
  if (!end.worker) return;
  end.conduit = end.worker->conduit(make_socket_conduit(Fd(sender_fd)));
  end.begin();
  const auto bytes = sent_by_sender();
  std::vector<std::byte> none;
  std::size_t sent = 0;
  const double until_s = monotonic_s() + 2 * conduit_patience_s;
  while (!end.closed && monotonic_s() < until_s) {
    end.send(bytes, sent);
    end.turn(10);
    end.receive(none, 1000);  // a conduit hears the answer to its question here
  }
}
