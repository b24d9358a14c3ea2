// native/tests/ucx_rig.hpp — where the tests find a libucp; they are skipped, and say so, without.
// Ownership: values.
// Threads:   any.
// Errors:    none.
#pragma once

#include <sys/socket.h>

#include <array>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "check.hpp"
#include "pccl/fd.hpp"
#include "pccl/ucx.hpp"

namespace pccl {

inline std::vector<std::string> ucx_libraries() {
  const char* named = std::getenv("PCCL_UCX_LIB");
  if (named != nullptr && *named != '\0') return {named};
  return {"libucp.so.0"};
}

/// Null, with a word to whoever reads the log, where there is no UCX.
inline std::unique_ptr<UcxWorker> ucx_worker() {
  std::string obstacle;
  auto made = UcxWorker::make(ucx_libraries(), true, obstacle);
  if (!made) std::printf("skipped: %s\n", obstacle.c_str());
  return made;
}

inline std::array<Fd, 2> connection() {
  std::array<int, 2> ends{};
  constexpr int kind = SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC;
  CHECK(::socketpair(AF_UNIX, kind, 0, ends.data()) == 0);
  return {Fd(ends[0]), Fd(ends[1])};
}

}  // namespace pccl
