// native/include/pccl/quiet_thread.hpp — threads that leave the host's signals alone.
// Ownership: the caller owns the thread.
// Threads:   any.
// Errors:    std::system_error if there can be no further thread.
#pragma once

#include <pthread.h>
#include <signal.h>

#include <thread>
#include <utility>

namespace pccl {

/// A thread with every signal blocked: handlers belong on the host's own threads.
template <class Body>
std::thread quiet_thread(Body body) {
  sigset_t all;
  sigset_t before;
  ::sigfillset(&all);
  ::pthread_sigmask(SIG_SETMASK, &all, &before);
  struct Restore {
    const sigset_t& mask;
    ~Restore() { ::pthread_sigmask(SIG_SETMASK, &mask, nullptr); }
  } const restore{before};
  return std::thread(std::move(body));
}

}  // namespace pccl
