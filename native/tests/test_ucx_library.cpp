// native/tests/test_ucx_library.cpp — which libucp is taken, and which is refused and why; no UCX
// is needed.
// Ownership: values.
// Threads:   one.
// Errors:    CHECKs.
#include <array>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "check.hpp"
#include "ucx/worker.hpp"

using namespace pccl;

namespace {

/// Why the library that calls itself that is not taken.
std::string refused(const char* version) {
  CHECK(::setenv("PCCL_TEST_UCP_VERSION", version, 1) == 0);
  std::string obstacle;
  const std::vector<std::string> names{OTHER_UCP};
  CHECK(UcxWorker::make(names, true, obstacle) == nullptr);
  CHECK(::unsetenv("PCCL_TEST_UCP_VERSION") == 0);
  return obstacle;
}

bool says(const std::string& text, const std::string& what) {
  if (text.find(what) != std::string::npos) return true;
  std::fprintf(stderr, "%s\n", text.c_str());
  return false;
}

int here = 0;  // any address
std::array<std::byte, 40> address{};
void (*query)(ucp::WorkerAttr&) = nullptr;

/// A UCX that does nothing but tell of its worker, as `query` does.
std::unique_ptr<UcpLibrary> pretended() {
  auto made = std::make_unique<UcpLibrary>();
  made->version = "1.99.0";
  made->config_read = [](const char*, const char*, ucp::Config** out) {
    *out = &here;
    return ucp::Ucs::ok;
  };
  made->config_modify = [](ucp::Config*, const char*, const char*) { return ucp::Ucs::ok; };
  made->config_release = [](ucp::Config*) {};
  made->init_version = [](unsigned, unsigned, const ucp::Params*, const ucp::Config*,
                          ucp::Context* out) {
    *out = &here;
    return ucp::Ucs::ok;
  };
  made->cleanup = [](ucp::Context) {};
  made->worker_create = [](ucp::Context, const ucp::WorkerParams*, ucp::Worker* out) {
    *out = &here;
    return ucp::Ucs::ok;
  };
  made->worker_destroy = [](ucp::Worker) {};
  made->worker_get_efd = [](ucp::Worker, int* out) {
    *out = -1;
    return ucp::Ucs::ok;
  };
  made->worker_set_am_recv_handler = [](ucp::Worker, const ucp::HandlerParam*) {
    return ucp::Ucs::ok;
  };
  made->worker_release_address = [](ucp::Worker, ucp::Address*) {};
  made->worker_query = [](ucp::Worker, ucp::WorkerAttr* attr) {
    query(*attr);
    return ucp::Ucs::ok;
  };
  return made;
}

std::string opened(void (*as)(ucp::WorkerAttr&)) {
  query = as;
  UcxWorkerImpl worker(pretended());
  std::string obstacle;
  return worker.open(true, obstacle) ? "" : obstacle;
}

void as_it_should(ucp::WorkerAttr& attr) {
  attr.address = address.data();
  attr.address_length = address.size();
  attr.max_am_header = 8000;
}

}  // namespace

TEST(another_version_of_ucx_is_refused_and_the_text_says_which_it_is_and_which_would_do) {
  for (const char* version : {"1.12.1", "0.13.0", "2.0.0", "11.13.0"}) {
    CHECK(says(refused(version), std::string(" is UCX ") + version +
                                     ", and 1.13 or a later 1.x is needed"));
  }
  CHECK(says(refused("1.13.0"), " lacks functions of UCX 1.13"));
}

TEST(of_several_libraries_that_will_not_do_each_is_told) {
  CHECK(::setenv("PCCL_TEST_UCP_VERSION", "1.9.0", 1) == 0);
  std::string obstacle;
  const std::vector<std::string> names{"no-such-libucp.so", OTHER_UCP};
  CHECK(UcxWorker::make(names, true, obstacle) == nullptr);
  CHECK(says(obstacle, "no-such-libucp.so") && says(obstacle, "; ") &&
        says(obstacle, "is UCX 1.9.0"));
  CHECK(::unsetenv("PCCL_TEST_UCP_VERSION") == 0);
}

TEST(a_library_with_other_structures_is_found_out_before_it_is_trusted) {
  const std::string other = "UCX 1.99.0 has other structures";
  CHECK(opened(as_it_should).empty());
  CHECK(says(opened([](ucp::WorkerAttr&) {}), other));
  CHECK(says(opened([](ucp::WorkerAttr& attr) {  // one word further on
          as_it_should(attr);
          std::array<std::byte, sizeof attr> moved;
          std::memcpy(moved.data(), &attr, sizeof attr);
          constexpr std::size_t from = offsetof(ucp::WorkerAttr, address);
          std::memcpy(reinterpret_cast<std::byte*>(&attr) + from + 8, moved.data() + from,
                      sizeof attr - from - 8);
        }), other));
  CHECK(says(opened([](ucp::WorkerAttr& attr) {
          as_it_should(attr);
          attr.name[0] = 'x';  // what nobody has asked for
        }), other));
  CHECK(says(opened([](ucp::WorkerAttr& attr) {
          as_it_should(attr);
          attr.max_am_header = 8;  // ours have 16 bytes
        }), other));
  CHECK(says(opened([](ucp::WorkerAttr& attr) {
          as_it_should(attr);
          attr.address = nullptr;
        }), other));
}
