// native/src/ucx/ucp_abi.hpp — what pccl uses of UCX's C interface (libucp.so.0), as of API 1.13.
//
// Declared here so that building needs no UCX.  The library's structures grow only at their ends
// and say by masks which fields are meant, so later 1.x versions understand these.  Names are UCX's
// own in this project's spelling; values and layouts are those of its binary interface.
//
// Ownership: plain values.
// Threads:   declarations only.
// Errors:    Ucs; negative is an error.
#pragma once

#include <sys/socket.h>

#include <cstddef>
#include <cstdint>

namespace pccl::ucp {

inline constexpr unsigned api_major = 1;
inline constexpr unsigned api_minor = 13;

/// One byte wide in the library, too: wider, its upper bytes would be undefined.
enum class Ucs : std::int8_t { ok = 0, in_progress = 1, busy = -15, canceled = -16 };

using Context = void*;
using Worker = void*;
using Endpoint = void*;
using Memory = void*;
using Config = void;
using Address = void;

/// A request, or a status in its place.
constexpr std::intptr_t status_last = -100;
inline bool is_error(const void* outcome) noexcept {
  return reinterpret_cast<std::uintptr_t>(outcome) >= static_cast<std::uintptr_t>(status_last);
}

struct Params {
  enum : std::uint64_t { has_features = 1 };
  enum : std::uint64_t { feature_wakeup = 1U << 4U, feature_active_messages = 1U << 6U };
  std::uint64_t field_mask;
  std::uint64_t features;
  std::size_t request_size;
  void* request_init;
  void* request_cleanup;
  std::uint64_t tag_sender_mask;
  int mt_workers_shared;
  std::size_t estimated_num_eps;
  std::size_t estimated_num_ppn;
  const char* name;
};

struct WorkerParams {
  enum : std::uint64_t { has_thread_mode = 1 };
  enum : int { serialized = 1 };
  std::uint64_t field_mask;
  int thread_mode;
  unsigned long cpu_mask[16];
  unsigned events;
  void* user_data;
  int event_fd;
  std::uint64_t flags;
  const char* name;
  std::size_t am_alignment;
  std::uint64_t client_id;
};

struct WorkerAttr {
  enum : std::uint64_t { has_address = 2, has_address_flags = 4, has_max_am_header = 8 };
  enum : std::uint32_t { net_only = 1 };
  std::uint64_t field_mask;
  int thread_mode;
  std::uint32_t address_flags;
  Address* address;
  std::size_t address_length;
  std::size_t max_am_header;
  char name[32];
  std::size_t max_debug_string;
};

struct SocketAddress {
  const sockaddr* address;
  socklen_t length;
};

struct ErrorHandler {
  void (*call)(void* arg, Endpoint endpoint, Ucs status);
  void* arg;
};

struct EndpointParams {
  enum : std::uint64_t { has_address = 1, has_error_mode = 2, has_error_handler = 4 };
  enum : int { error_mode_peer = 1 };
  std::uint64_t field_mask;
  const Address* address;
  int error_mode;
  ErrorHandler error_handler;
  void* user_data;
  unsigned flags;
  SocketAddress socket_address;
  void* connection_request;
  const char* name;
  SocketAddress local_socket_address;
};

struct TransportEntry {
  const char* transport;
  const char* device;
};

struct EndpointAttr {
  enum : std::uint64_t { has_transports = 8 };
  std::uint64_t field_mask;
  char name[32];
  sockaddr_storage local;
  sockaddr_storage remote;
  struct {
    TransportEntry* entries;
    unsigned count;
    std::size_t entry_bytes;
  } transports;
  void* user_data;
};

struct MapParams {
  enum : std::uint64_t { has_address = 1, has_length = 2 };
  std::uint64_t field_mask;
  void* address;
  std::size_t length;
  unsigned flags;
  unsigned protection;
  int memory_type;
  const void* exported;
};

using SendDone = void (*)(void* request, Ucs status, void* user_data);
using ReceiveDone = void (*)(void* request, Ucs status, std::size_t length, void* user_data);

struct RequestParam {
  enum : std::uint32_t {
    has_callback = 1U << 1U,
    has_user_data = 1U << 2U,
    has_flags = 1U << 4U,
    has_memory = 1U << 8U,
    never_immediate = 1U << 16U,
  };
  enum : std::uint32_t { close_force = 1, send_eager = 2, send_rendezvous = 4 };
  std::uint32_t mask;
  std::uint32_t flags;
  void* request;
  union {
    SendDone send;
    ReceiveDone receive;
  } callback;
  std::uint64_t datatype;
  void* user_data;
  void* reply_buffer;
  int memory_type;
  void* receive_info;
  Memory memory;
};

struct ReceivedParam {
  enum : std::uint64_t { kept = 1ULL << 16U, rendezvous = 1ULL << 17U };
  std::uint64_t attributes;
  Endpoint reply;
};

using Received = Ucs (*)(void* arg, const void* header, std::size_t header_bytes, void* data,
                         std::size_t bytes, const ReceivedParam* param);

struct HandlerParam {
  enum : std::uint64_t { has_id = 1, has_flags = 2, has_callback = 4, has_arg = 8 };
  enum : std::uint32_t { whole_message = 1 };
  std::uint64_t field_mask;
  unsigned id;
  std::uint32_t flags;
  Received callback;
  void* arg;
};

}  // namespace pccl::ucp
