// native/src/ucx/library.cpp — finding libucp and its functions.
// Ownership: see library.hpp.
// Threads:   see library.hpp.
// Errors:    see library.hpp.
#include "ucx/library.hpp"

#include <dlfcn.h>

#include <array>
#include <csignal>
#include <cstdlib>

namespace pccl {
namespace {

// UCX puts handlers of its own behind these when it is loaded; they are the host process's.
constexpr std::array error_signals{SIGILL, SIGBUS, SIGFPE, SIGSEGV};

class KeptSignals {
 public:
  KeptSignals() noexcept {
    for (std::size_t i = 0; i < error_signals.size(); ++i) {
      (void)::sigaction(error_signals[i], nullptr, &before_[i]);
    }
  }
  ~KeptSignals() {
    for (std::size_t i = 0; i < error_signals.size(); ++i) {
      (void)::sigaction(error_signals[i], &before_[i], nullptr);
    }
  }
  KeptSignals(const KeptSignals&) = delete;
  KeptSignals& operator=(const KeptSignals&) = delete;

 private:
  std::array<struct sigaction, error_signals.size()> before_{};
};

/// UCX writes its log to the process's standard output: a library has no business there.
void silence(void* handle) noexcept {
  if (std::getenv("UCX_LOG_LEVEL") != nullptr) return;
  using Set = ucp::Ucs (*)(const char*, const char*);
  if (const auto set = reinterpret_cast<Set>(::dlsym(handle, "ucs_global_opts_set_value"))) {
    (void)set("LOG_LEVEL", "fatal");
  }
}

template <class Function>
bool find(void* handle, const char* name, Function& function) noexcept {
  function = reinterpret_cast<Function>(::dlsym(handle, name));
  return function != nullptr;
}

bool find_all(void* handle, UcpLibrary& out) noexcept {
  return find(handle, "ucp_get_version", out.get_version) &&
         find(handle, "ucp_config_read", out.config_read) &&
         find(handle, "ucp_config_modify", out.config_modify) &&
         find(handle, "ucp_config_release", out.config_release) &&
         find(handle, "ucp_init_version", out.init_version) &&
         find(handle, "ucp_cleanup", out.cleanup) &&
         find(handle, "ucp_worker_create", out.worker_create) &&
         find(handle, "ucp_worker_destroy", out.worker_destroy) &&
         find(handle, "ucp_worker_query", out.worker_query) &&
         find(handle, "ucp_worker_release_address", out.worker_release_address) &&
         find(handle, "ucp_worker_get_efd", out.worker_get_efd) &&
         find(handle, "ucp_worker_arm", out.worker_arm) &&
         find(handle, "ucp_worker_progress", out.worker_progress) &&
         find(handle, "ucp_worker_set_am_recv_handler", out.worker_set_am_recv_handler) &&
         find(handle, "ucp_ep_create", out.ep_create) &&
         find(handle, "ucp_ep_query", out.ep_query) &&
         find(handle, "ucp_ep_close_nbx", out.ep_close_nbx) &&
         find(handle, "ucp_am_send_nbx", out.am_send_nbx) &&
         find(handle, "ucp_am_recv_data_nbx", out.am_recv_data_nbx) &&
         find(handle, "ucp_request_cancel", out.request_cancel) &&
         find(handle, "ucp_request_free", out.request_free) &&
         find(handle, "ucp_mem_map", out.mem_map) && find(handle, "ucp_mem_unmap", out.mem_unmap);
}

bool known(UcpLibrary& library) {
  unsigned major = 0;
  unsigned minor = 0;
  unsigned release = 0;
  library.get_version(&major, &minor, &release);
  library.version =
      std::to_string(major) + "." + std::to_string(minor) + "." + std::to_string(release);
  library.major_version = static_cast<std::uint16_t>(major);
  library.minor_version = static_cast<std::uint16_t>(minor);
  return major == ucp::api_major && minor >= ucp::api_minor;
}

}  // namespace

std::unique_ptr<UcpLibrary> UcpLibrary::load(std::span<const std::string> names,
                                             std::string& obstacle) {
  obstacle.clear();
  const KeptSignals kept;
  for (const std::string& name : names) {
    if (!obstacle.empty()) obstacle += "; ";
    void* handle = ::dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (handle == nullptr) {
      const char* why = ::dlerror();
      obstacle += why != nullptr ? why : name;
      continue;
    }
    auto library = std::make_unique<UcpLibrary>();
    if (find(handle, "ucp_get_version", library->get_version) && !known(*library)) {
      obstacle += name + " is UCX " + library->version + ", and 1.13 or a later 1.x is needed";
      continue;
    }
    if (!find_all(handle, *library)) {
      obstacle += name + " lacks functions of UCX 1.13";
      continue;
    }
    silence(handle);
    return library;
  }
  return nullptr;
}

}  // namespace pccl
