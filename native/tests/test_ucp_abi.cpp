// native/tests/test_ucp_abi.cpp — what ucp_abi.hpp says of UCX's structures against UCX's headers.
//
// Compared as this is compiled, where the build has found headers (PCCL_UCX_HEADERS, the system's);
// skipped, and says so, without.  That they are of the library that is loaded is looked at as it
// runs.
//
// Ownership: values.
// Threads:   one.
// Errors:    static_asserts, CHECKs.
#include <array>
#include <cstddef>
#include <cstdio>
#include <string>
#include <type_traits>

#include "check.hpp"
#include "ucx/library.hpp"
#include "ucx_rig.hpp"

#if __has_include(<ucp/api/ucp.h>)
#include <ucp/api/ucp.h>

namespace {

using namespace pccl;

// One member, in the same place and as wide.
#define SAME(theirs, their_member, ours, our_member)                                       \
  static_assert(offsetof(theirs, their_member) == offsetof(ours, our_member) &&            \
                    sizeof(theirs::their_member) == sizeof(ours::our_member),              \
                #theirs "." #their_member)
// UCX's may have grown at their ends since.
#define WITHIN(theirs, ours) static_assert(sizeof(ours) <= sizeof(theirs), #theirs)
#define VALUE(theirs, ours) \
  static_assert(static_cast<long long>(theirs) == static_cast<long long>(ours), #theirs)

static_assert(sizeof(ucs_status_t) == sizeof(ucp::Ucs));
VALUE(UCS_OK, ucp::Ucs::ok);
VALUE(UCS_INPROGRESS, ucp::Ucs::in_progress);
VALUE(UCS_ERR_BUSY, ucp::Ucs::busy);
VALUE(UCS_ERR_CANCELED, ucp::Ucs::canceled);
VALUE(UCS_ERR_LAST, ucp::status_last);

WITHIN(ucp_params_t, ucp::Params);
SAME(ucp_params_t, field_mask, ucp::Params, field_mask);
SAME(ucp_params_t, features, ucp::Params, features);
SAME(ucp_params_t, request_size, ucp::Params, request_size);
SAME(ucp_params_t, request_init, ucp::Params, request_init);
SAME(ucp_params_t, request_cleanup, ucp::Params, request_cleanup);
SAME(ucp_params_t, tag_sender_mask, ucp::Params, tag_sender_mask);
SAME(ucp_params_t, mt_workers_shared, ucp::Params, mt_workers_shared);
SAME(ucp_params_t, estimated_num_eps, ucp::Params, estimated_num_eps);
SAME(ucp_params_t, estimated_num_ppn, ucp::Params, estimated_num_ppn);
SAME(ucp_params_t, name, ucp::Params, name);
VALUE(UCP_PARAM_FIELD_FEATURES, ucp::Params::has_features);
VALUE(UCP_FEATURE_WAKEUP, ucp::Params::feature_wakeup);
VALUE(UCP_FEATURE_AM, ucp::Params::feature_active_messages);

WITHIN(ucp_worker_params_t, ucp::WorkerParams);
SAME(ucp_worker_params_t, field_mask, ucp::WorkerParams, field_mask);
SAME(ucp_worker_params_t, thread_mode, ucp::WorkerParams, thread_mode);
SAME(ucp_worker_params_t, cpu_mask, ucp::WorkerParams, cpu_mask);
SAME(ucp_worker_params_t, events, ucp::WorkerParams, events);
SAME(ucp_worker_params_t, user_data, ucp::WorkerParams, user_data);
SAME(ucp_worker_params_t, event_fd, ucp::WorkerParams, event_fd);
SAME(ucp_worker_params_t, flags, ucp::WorkerParams, flags);
SAME(ucp_worker_params_t, name, ucp::WorkerParams, name);
SAME(ucp_worker_params_t, am_alignment, ucp::WorkerParams, am_alignment);
SAME(ucp_worker_params_t, client_id, ucp::WorkerParams, client_id);
VALUE(UCP_WORKER_PARAM_FIELD_THREAD_MODE, ucp::WorkerParams::has_thread_mode);
VALUE(UCS_THREAD_MODE_SERIALIZED, ucp::WorkerParams::serialized);

WITHIN(ucp_worker_attr_t, ucp::WorkerAttr);
SAME(ucp_worker_attr_t, field_mask, ucp::WorkerAttr, field_mask);
SAME(ucp_worker_attr_t, thread_mode, ucp::WorkerAttr, thread_mode);
SAME(ucp_worker_attr_t, address_flags, ucp::WorkerAttr, address_flags);
SAME(ucp_worker_attr_t, address, ucp::WorkerAttr, address);
SAME(ucp_worker_attr_t, address_length, ucp::WorkerAttr, address_length);
SAME(ucp_worker_attr_t, max_am_header, ucp::WorkerAttr, max_am_header);
SAME(ucp_worker_attr_t, name, ucp::WorkerAttr, name);
SAME(ucp_worker_attr_t, max_debug_string, ucp::WorkerAttr, max_debug_string);
VALUE(UCP_WORKER_ATTR_FIELD_ADDRESS, ucp::WorkerAttr::has_address);
VALUE(UCP_WORKER_ATTR_FIELD_ADDRESS_FLAGS, ucp::WorkerAttr::has_address_flags);
VALUE(UCP_WORKER_ATTR_FIELD_MAX_AM_HEADER, ucp::WorkerAttr::has_max_am_header);
VALUE(UCP_WORKER_ADDRESS_FLAG_NET_ONLY, ucp::WorkerAttr::net_only);

WITHIN(ucp_ep_params_t, ucp::EndpointParams);
SAME(ucp_ep_params_t, field_mask, ucp::EndpointParams, field_mask);
SAME(ucp_ep_params_t, address, ucp::EndpointParams, address);
SAME(ucp_ep_params_t, err_mode, ucp::EndpointParams, error_mode);
SAME(ucp_ep_params_t, err_handler, ucp::EndpointParams, error_handler);
SAME(ucp_err_handler_t, cb, ucp::ErrorHandler, call);
SAME(ucp_err_handler_t, arg, ucp::ErrorHandler, arg);
SAME(ucp_ep_params_t, user_data, ucp::EndpointParams, user_data);
SAME(ucp_ep_params_t, flags, ucp::EndpointParams, flags);
SAME(ucp_ep_params_t, sockaddr, ucp::EndpointParams, socket_address);
SAME(ucp_ep_params_t, conn_request, ucp::EndpointParams, connection_request);
SAME(ucp_ep_params_t, name, ucp::EndpointParams, name);
SAME(ucp_ep_params_t, local_sockaddr, ucp::EndpointParams, local_socket_address);
VALUE(UCP_EP_PARAM_FIELD_REMOTE_ADDRESS, ucp::EndpointParams::has_address);
VALUE(UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE, ucp::EndpointParams::has_error_mode);
VALUE(UCP_EP_PARAM_FIELD_ERR_HANDLER, ucp::EndpointParams::has_error_handler);
VALUE(UCP_ERR_HANDLING_MODE_PEER, ucp::EndpointParams::error_mode_peer);

WITHIN(ucp_ep_attr_t, ucp::EndpointAttr);
SAME(ucp_ep_attr_t, field_mask, ucp::EndpointAttr, field_mask);
SAME(ucp_ep_attr_t, name, ucp::EndpointAttr, name);
SAME(ucp_ep_attr_t, local_sockaddr, ucp::EndpointAttr, local);
SAME(ucp_ep_attr_t, remote_sockaddr, ucp::EndpointAttr, remote);
SAME(ucp_ep_attr_t, transports, ucp::EndpointAttr, transports);
SAME(ucp_ep_attr_t, user_data, ucp::EndpointAttr, user_data);
VALUE(UCP_EP_ATTR_FIELD_TRANSPORTS, ucp::EndpointAttr::has_transports);
using Transports = decltype(ucp::EndpointAttr::transports);
SAME(ucp_transports_t, entries, Transports, entries);
SAME(ucp_transports_t, num_entries, Transports, count);
SAME(ucp_transports_t, entry_size, Transports, entry_bytes);
WITHIN(ucp_transport_entry_t, ucp::TransportEntry);
SAME(ucp_transport_entry_t, transport_name, ucp::TransportEntry, transport);
SAME(ucp_transport_entry_t, device_name, ucp::TransportEntry, device);

WITHIN(ucp_mem_map_params_t, ucp::MapParams);
SAME(ucp_mem_map_params_t, field_mask, ucp::MapParams, field_mask);
SAME(ucp_mem_map_params_t, address, ucp::MapParams, address);
SAME(ucp_mem_map_params_t, length, ucp::MapParams, length);
SAME(ucp_mem_map_params_t, flags, ucp::MapParams, flags);
SAME(ucp_mem_map_params_t, prot, ucp::MapParams, protection);
SAME(ucp_mem_map_params_t, memory_type, ucp::MapParams, memory_type);
VALUE(UCP_MEM_MAP_PARAM_FIELD_ADDRESS, ucp::MapParams::has_address);
VALUE(UCP_MEM_MAP_PARAM_FIELD_LENGTH, ucp::MapParams::has_length);

WITHIN(ucp_request_param_t, ucp::RequestParam);
SAME(ucp_request_param_t, op_attr_mask, ucp::RequestParam, mask);
SAME(ucp_request_param_t, flags, ucp::RequestParam, flags);
SAME(ucp_request_param_t, request, ucp::RequestParam, request);
SAME(ucp_request_param_t, cb, ucp::RequestParam, callback);
SAME(ucp_request_param_t, datatype, ucp::RequestParam, datatype);
SAME(ucp_request_param_t, user_data, ucp::RequestParam, user_data);
SAME(ucp_request_param_t, reply_buffer, ucp::RequestParam, reply_buffer);
SAME(ucp_request_param_t, memory_type, ucp::RequestParam, memory_type);
SAME(ucp_request_param_t, recv_info, ucp::RequestParam, receive_info);
SAME(ucp_request_param_t, memh, ucp::RequestParam, memory);
VALUE(UCP_OP_ATTR_FIELD_CALLBACK, ucp::RequestParam::has_callback);
VALUE(UCP_OP_ATTR_FIELD_USER_DATA, ucp::RequestParam::has_user_data);
VALUE(UCP_OP_ATTR_FIELD_FLAGS, ucp::RequestParam::has_flags);
VALUE(UCP_OP_ATTR_FIELD_MEMH, ucp::RequestParam::has_memory);
VALUE(UCP_OP_ATTR_FLAG_NO_IMM_CMPL, ucp::RequestParam::never_immediate);
VALUE(UCP_EP_CLOSE_FLAG_FORCE, ucp::RequestParam::close_force);
VALUE(UCP_AM_SEND_FLAG_EAGER, ucp::RequestParam::send_eager);
VALUE(UCP_AM_SEND_FLAG_RNDV, ucp::RequestParam::send_rendezvous);

WITHIN(ucp_am_recv_param_t, ucp::ReceivedParam);
SAME(ucp_am_recv_param_t, recv_attr, ucp::ReceivedParam, attributes);
SAME(ucp_am_recv_param_t, reply_ep, ucp::ReceivedParam, reply);
VALUE(UCP_AM_RECV_ATTR_FLAG_DATA, ucp::ReceivedParam::kept);
VALUE(UCP_AM_RECV_ATTR_FLAG_RNDV, ucp::ReceivedParam::rendezvous);

WITHIN(ucp_am_handler_param_t, ucp::HandlerParam);
SAME(ucp_am_handler_param_t, field_mask, ucp::HandlerParam, field_mask);
SAME(ucp_am_handler_param_t, id, ucp::HandlerParam, id);
SAME(ucp_am_handler_param_t, flags, ucp::HandlerParam, flags);
SAME(ucp_am_handler_param_t, cb, ucp::HandlerParam, callback);
SAME(ucp_am_handler_param_t, arg, ucp::HandlerParam, arg);
VALUE(UCP_AM_HANDLER_PARAM_FIELD_ID, ucp::HandlerParam::has_id);
VALUE(UCP_AM_HANDLER_PARAM_FIELD_FLAGS, ucp::HandlerParam::has_flags);
VALUE(UCP_AM_HANDLER_PARAM_FIELD_CB, ucp::HandlerParam::has_callback);
VALUE(UCP_AM_HANDLER_PARAM_FIELD_ARG, ucp::HandlerParam::has_arg);
VALUE(UCP_AM_FLAG_WHOLE_MSG, ucp::HandlerParam::whole_message);

// As many arguments, each as wide: a pointer to one is a pointer to the other but for its names.
template <class Type>
struct Shape;
template <class Result, class... Args>
struct Shape<Result (*)(Args...)> {
  static constexpr std::size_t count = sizeof...(Args);
  static constexpr std::array<std::size_t, count + 1> widths() {
    if constexpr (std::is_void_v<Result>) {
      return {0, sizeof(Args)...};
    } else {
      return {sizeof(Result), sizeof(Args)...};
    }
  }
};
#define CALL(theirs, ours)                                                                  \
  static_assert(Shape<decltype(&theirs)>::widths() == Shape<decltype(UcpLibrary::ours)>::widths(), \
                #theirs)
CALL(ucp_get_version, get_version);
CALL(ucp_config_read, config_read);
CALL(ucp_config_modify, config_modify);
CALL(ucp_config_release, config_release);
CALL(ucp_init_version, init_version);
CALL(ucp_cleanup, cleanup);
CALL(ucp_worker_create, worker_create);
CALL(ucp_worker_destroy, worker_destroy);
CALL(ucp_worker_query, worker_query);
CALL(ucp_worker_release_address, worker_release_address);
CALL(ucp_worker_get_efd, worker_get_efd);
CALL(ucp_worker_arm, worker_arm);
CALL(ucp_worker_progress, worker_progress);
CALL(ucp_worker_set_am_recv_handler, worker_set_am_recv_handler);
CALL(ucp_ep_create, ep_create);
CALL(ucp_ep_query, ep_query);
CALL(ucp_ep_close_nbx, ep_close_nbx);
CALL(ucp_am_send_nbx, am_send_nbx);
CALL(ucp_am_recv_data_nbx, am_recv_data_nbx);
CALL(ucp_request_cancel, request_cancel);
CALL(ucp_request_free, request_free);
CALL(ucp_mem_map, mem_map);
CALL(ucp_mem_unmap, mem_unmap);

}  // namespace

TEST(the_headers_that_were_compared_are_of_the_library_that_is_loaded) {
  static_assert(UCP_API_MAJOR == ucp::api_major && UCP_API_MINOR >= ucp::api_minor);
  std::string obstacle;
  const auto library = UcpLibrary::load(ucx_libraries(), obstacle);
  if (!library) {
    std::printf("compared with headers of %d.%d; no library: %s\n", UCP_API_MAJOR, UCP_API_MINOR,
                obstacle.c_str());
    return;
  }
  std::printf("compared with headers of %d.%d; loaded %s\n", UCP_API_MAJOR, UCP_API_MINOR,
              library->version.c_str());
  // Structures only grow: an older library has no more than what these headers say.
  CHECK(library->major_version == UCP_API_MAJOR);
}

#else

TEST(there_are_no_headers_of_ucx_to_compare_with) { std::printf("skipped: no ucp/api/ucp.h\n"); }

#endif
