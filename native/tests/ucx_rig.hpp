// native/tests/ucx_rig.hpp — where the tests find a libucp; they are skipped, and say so, without.
// Ownership: values.
// Threads:   any.
// Errors:    none.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

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

}  // namespace pccl
