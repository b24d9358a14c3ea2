// native/tests/other_ucp.cpp — a library that says which UCX it is, and is none.
// Ownership: nothing.
// Threads:   any.
// Errors:    none.
#include <cstdio>
#include <cstdlib>

extern "C" __attribute__((visibility("default"))) void ucp_get_version(unsigned* major,
                                                                        unsigned* minor,
                                                                        unsigned* release) {
  const char* told = std::getenv("PCCL_TEST_UCP_VERSION");
  *major = *minor = *release = 0;
  if (told != nullptr) (void)std::sscanf(told, "%u.%u.%u", major, minor, release);
}
