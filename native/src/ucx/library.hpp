// native/src/ucx/library.hpp — libucp, loaded at run time.
// Ownership: never unloaded: it has threads and handlers of its own.
// Threads:   load from any, once per worker; the functions as UCX says.
// Errors:    null, and a text.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "ucx/ucp_abi.hpp"

namespace pccl {

struct UcpLibrary {
  void (*get_version)(unsigned*, unsigned*, unsigned*);
  ucp::Ucs (*config_read)(const char*, const char*, ucp::Config**);
  ucp::Ucs (*config_modify)(ucp::Config*, const char*, const char*);
  void (*config_release)(ucp::Config*);
  ucp::Ucs (*init_version)(unsigned, unsigned, const ucp::Params*, const ucp::Config*,
                           ucp::Context*);
  void (*cleanup)(ucp::Context);
  ucp::Ucs (*worker_create)(ucp::Context, const ucp::WorkerParams*, ucp::Worker*);
  void (*worker_destroy)(ucp::Worker);
  ucp::Ucs (*worker_query)(ucp::Worker, ucp::WorkerAttr*);
  void (*worker_release_address)(ucp::Worker, ucp::Address*);
  ucp::Ucs (*worker_get_efd)(ucp::Worker, int*);
  ucp::Ucs (*worker_arm)(ucp::Worker);
  unsigned (*worker_progress)(ucp::Worker);
  ucp::Ucs (*worker_set_am_recv_handler)(ucp::Worker, const ucp::HandlerParam*);
  ucp::Ucs (*ep_create)(ucp::Worker, const ucp::EndpointParams*, ucp::Endpoint*);
  ucp::Ucs (*ep_query)(ucp::Endpoint, ucp::EndpointAttr*);
  void* (*ep_close_nbx)(ucp::Endpoint, const ucp::RequestParam*);
  void* (*am_send_nbx)(ucp::Endpoint, unsigned, const void*, std::size_t, const void*,
                       std::size_t, const ucp::RequestParam*);
  void* (*am_recv_data_nbx)(ucp::Worker, void*, void*, std::size_t, const ucp::RequestParam*);
  void (*request_cancel)(ucp::Worker, void*);
  void (*request_free)(void*);
  ucp::Ucs (*mem_map)(ucp::Context, const ucp::MapParams*, ucp::Memory*);
  ucp::Ucs (*mem_unmap)(ucp::Context, ucp::Memory);
  std::string version;
  std::uint16_t major_version = 0;
  std::uint16_t minor_version = 0;

  static std::unique_ptr<UcpLibrary> load(std::span<const std::string> names,
                                          std::string& obstacle);
};

}  // namespace pccl
