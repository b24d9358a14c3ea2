// native/src/kernels/dispatch.cpp — which table this CPU runs.
// Ownership: none.
// Threads:   any; the choice is made once, at the first call.
// Errors:    an unknown or impossible PCCL_KERNELS is as if it were not set.

#include <cstdlib>
#include <cstring>

#include "tables.hpp"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace pccl {
namespace {

#if defined(__x86_64__)
// __builtin_cpu_supports also asks whether the operating system saves the registers; it does not
// know F16C in every compiler, but that uses the registers of AVX, so the bare flag is enough.
bool has_avx2() noexcept {
  unsigned a = 0;
  unsigned b = 0;
  unsigned c = 0;
  unsigned d = 0;
  const bool has_f16c = __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_F16C) != 0;
  return has_f16c && __builtin_cpu_supports("avx2") != 0;
}

bool has_avx512() noexcept {
  return has_avx2() && __builtin_cpu_supports("avx512f") != 0 &&
         __builtin_cpu_supports("avx512bw") != 0 && __builtin_cpu_supports("avx512vl") != 0 &&
         __builtin_cpu_supports("avx512dq") != 0;
}
#endif

const KernelTable& choose() noexcept {
  const KernelTables available = available_kernels();
  const char* const forced = std::getenv("PCCL_KERNELS");
  for (std::size_t i = 0; forced != nullptr && i < available.count; ++i)
    if (std::strcmp(forced, available.tables[i]->name) == 0) return *available.tables[i];
  return *available.tables[available.count - 1];
}

}  // namespace

const KernelTable& scalar_kernels() noexcept { return scalar_table; }

KernelTables available_kernels() noexcept {
  KernelTables available{};
  available.tables[available.count++] = &scalar_table;
#if defined(__x86_64__)
  if (has_avx2()) available.tables[available.count++] = &avx2_table;
  if (has_avx512()) available.tables[available.count++] = &avx512_table;
#endif
  return available;
}

const KernelTable& active_kernels() noexcept {
  static const KernelTable& table = choose();
  return table;
}

}  // namespace pccl
