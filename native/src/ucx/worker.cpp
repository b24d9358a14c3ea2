// native/src/ucx/worker.cpp — UCX's context and worker: opening, arming, moving.
// Ownership: see worker.hpp.
// Threads:   see worker.hpp.
// Errors:    see worker.hpp.
#include "ucx/worker.hpp"

#include <sys/random.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <string>
#include <string_view>
#include <utility>

#include "pccl/clock.hpp"

namespace pccl {
namespace {

// Each round of UCX's moves a few messages of each endpoint; then others may have the turn.
constexpr int rounds_max = 16;
// When a worker closes, what its peers' machines have to say to that is waited for so long.
constexpr double close_s = 0.2;

// A whole message with its headers, so that it goes by few system calls and without a rendezvous;
// with UCX's own 8 KiB an all-reduce takes twice the processor time (measured).
constexpr const char* segment = "320k";
static_assert(UcxStream::message_bytes + 4096 <= 320 * 1024);

/// Sets what the user of the process has not set.
ucp::Ucs prefer(const UcpLibrary& library, ucp::Config* config, const std::string& variable,
                const char* value) {
  if (std::getenv(variable.c_str()) != nullptr) return ucp::Ucs::ok;
  return library.config_modify(config, variable.c_str() + std::string_view("UCX_").size(), value);
}

// Far above what UCX says of itself: a few hundred bytes, and some tens of thousands.
constexpr std::size_t address_bytes_max = 1 << 20;
constexpr std::size_t am_header_bytes_max = 0xffffffff;

std::string failure(const UcpLibrary& library, const char* call, ucp::Ucs status) {
  return "UCX " + library.version + ": " + call + " failed with status " +
         std::to_string(static_cast<int>(status)) +
         " (UCX_TLS and UCX_NET_DEVICES choose among its transports)";
}

// Then others are asked again for each lane.
constexpr std::size_t out_of_reach_max = 1024;

std::uint64_t random_name() noexcept {
  std::uint64_t name = 0;
  while (name == 0) {
    if (::getrandom(&name, sizeof name, 0) != static_cast<ssize_t>(sizeof name)) name = 0;
  }
  return name;
}

}  // namespace

std::unique_ptr<UcxWorker> UcxWorker::make(std::span<const std::string> libraries, bool loopback,
                                           std::string& obstacle) {
  auto library = UcpLibrary::load(libraries, obstacle);
  if (!library) return nullptr;
  auto worker = std::make_unique<UcxWorkerImpl>(std::move(library));
  if (!worker->open(loopback, obstacle)) return nullptr;
  return worker;
}

bool UcxWorkerImpl::open(bool loopback, std::string& obstacle) {
  using ucp::Ucs;
  const auto fails = [&](const char* call, Ucs status) {
    if (status == Ucs::ok) return false;
    obstacle = failure(*library_, call, status);
    return true;
  };
  ucp::Config* config = nullptr;
  if (fails("ucp_config_read", library_->config_read(nullptr, nullptr, &config))) return false;
  // How fast its TCP is; an older UCX may not know them.
  for (const char* name : {"UCX_TCP_TX_SEG_SIZE", "UCX_TCP_RX_SEG_SIZE"}) {
    (void)prefer(*library_, config, name, segment);
  }
  // Otherwise an endpoint to where packets are dropped holds the reactor in connect() for minutes.
  (void)prefer(*library_, config, "UCX_TCP_CONN_NB", "y");
  if (loopback && fails("ucp_config_modify", prefer(*library_, config, "UCX_NET_DEVICES", "lo"))) {
    library_->config_release(config);
    return false;
  }
  ucp::Params params{};
  params.field_mask = ucp::Params::has_features;
  params.features = ucp::Params::feature_active_messages | ucp::Params::feature_wakeup;
  const Ucs opened = library_->init_version(ucp::api_major, ucp::api_minor, &params, config,
                                            &ucp_.context);
  library_->config_release(config);
  if (fails("ucp_init", opened)) return false;
  ucp::WorkerParams worker{};
  worker.field_mask = ucp::WorkerParams::has_thread_mode;
  worker.thread_mode = ucp::WorkerParams::serialized;
  if (fails("ucp_worker_create",
            library_->worker_create(ucp_.context, &worker, &ucp_.worker)) ||
      fails("ucp_worker_get_efd", library_->worker_get_efd(ucp_.worker, &event_fd_))) {
    return false;
  }
  if (!handle(UcxStream::data_id, &UcxWorkerImpl::on_data) ||
      !handle(UcxStream::taken_id, &UcxWorkerImpl::on_taken)) {
    obstacle = "UCX " + library_->version + " takes no handlers of active messages";
    return false;
  }
  return learn_address(obstacle);
}

/// How others reach it.  The first that UCX writes by itself into a structure of ours: one whose
/// structures are others is found out here, before it is trusted with memory.
bool UcxWorkerImpl::learn_address(std::string& obstacle) {
  using ucp::WorkerAttr;
  constexpr int untouched = 0x5a;
  WorkerAttr attr;
  std::memset(&attr, untouched, sizeof attr);
  WorkerAttr before;
  std::memcpy(&before, &attr, sizeof attr);
  attr.field_mask = WorkerAttr::has_address | WorkerAttr::has_address_flags |
                    WorkerAttr::has_max_am_header;
  attr.address_flags = WorkerAttr::net_only;
  const ucp::Ucs status = library_->worker_query(ucp_.worker, &attr);
  if (status != ucp::Ucs::ok) {
    obstacle = failure(*library_, "ucp_worker_query", status);
    return false;
  }
  const bool asked = attr.address != before.address && attr.address != nullptr &&
                     attr.address_length > 0 && attr.address_length <= address_bytes_max &&
                     attr.max_am_header >= sizeof(UcxStream::Header) &&
                     attr.max_am_header <= am_header_bytes_max;
  // What was not asked for is as it was.
  before.field_mask = attr.field_mask;
  before.address_flags = attr.address_flags;
  before.address = attr.address;
  before.address_length = attr.address_length;
  before.max_am_header = attr.max_am_header;
  if (!asked || std::memcmp(&attr, &before, sizeof attr) != 0) {
    obstacle = "UCX " + library_->version + " has other structures than those of UCX 1.13";
    return false;
  }
  const auto* bytes = static_cast<const std::byte*>(attr.address);
  address_.assign(bytes, bytes + attr.address_length);
  library_->worker_release_address(ucp_.worker, attr.address);
  return true;
}

bool UcxWorkerImpl::handle(unsigned id, ucp::Received callback) noexcept {
  ucp::HandlerParam param{};
  param.field_mask = ucp::HandlerParam::has_id | ucp::HandlerParam::has_flags |
                     ucp::HandlerParam::has_callback | ucp::HandlerParam::has_arg;
  param.id = id;
  param.flags = ucp::HandlerParam::whole_message;
  param.callback = callback;
  param.arg = this;
  return library_->worker_set_am_recv_handler(ucp_.worker, &param) == ucp::Ucs::ok;
}

UcxWorkerImpl::~UcxWorkerImpl() {
  for (auto& [name, stream] : streams_) {
    stream->end();
    ending_.push_back(std::move(stream));
  }
  streams_.clear();
  const double until_s = monotonic_s() + close_s;
  while (!ending_.empty() && monotonic_s() < until_s) {
    (void)library_->worker_progress(ucp_.worker);
    reap();
  }
  if (ending_.empty()) {
    if (ucp_.worker != nullptr) library_->worker_destroy(ucp_.worker);
    if (ucp_.context != nullptr) library_->cleanup(ucp_.context);
    return;
  }
  // What UCX has not let go of by now it may write to later: nothing of it is freed.
  for (auto& stream : ending_) (void)stream.release();
  (void)library_.release();
}

bool UcxWorkerImpl::arm() noexcept {
  for (int i = 0; i < rounds_max; ++i) {
    // Each time: UCX calls back also in rounds that it counts as none.
    if (any_ready()) return false;
    if (library_->worker_arm(ucp_.worker) == ucp::Ucs::ok) return true;
    // It moved something before it could be armed: whoever asked looks what that was.
    if (library_->worker_progress(ucp_.worker) != 0) return false;
  }
  return false;
}

bool UcxWorkerImpl::any_ready() const noexcept {
  return std::any_of(streams_.begin(), streams_.end(), [](const auto& entry) {
    return entry.second->ready_bits() != 0;
  });
}

void UcxWorkerImpl::look() noexcept {
  for (int i = 0; i < rounds_max && library_->worker_progress(ucp_.worker) != 0; ++i) {
  }
}

std::size_t UcxWorkerImpl::progress(std::span<Poller::Event> events, double now_s) noexcept {
  look();
  std::size_t count = 0;
  const std::size_t size = streams_.size();
  const std::size_t first = size == 0 ? 0 : first_ % size;
  auto at = std::next(streams_.begin(), static_cast<std::ptrdiff_t>(first));
  bool full = false;
  for (std::size_t i = 0; i < size; ++i) {
    UcxStream& stream = *at->second;
    if (++at == streams_.end()) at = streams_.begin();
    stream.tell_if_due();
    stream.wait(now_s);
    if (stream.settled()) settle(stream);
    const std::uint32_t bits = stream.ready_bits();
    if (bits == 0) continue;
    if (count < events.size()) {
      events[count++] = {.token = stream.token, .bits = bits};
    } else if (!std::exchange(full, true)) {
      first_ = first + i;  // those that found no room come first in the next round
    }
  }
  if (!ending_.empty()) reap();
  return count;
}

void UcxWorkerImpl::settle(UcxStream& stream) noexcept {
  try {
    bool rdma = false;
    const std::string chosen = stream.transports(rdma);
    const std::string known = "; " + transports_ + "; ";
    if (chosen.empty() || known.find("; " + chosen + "; ") != std::string::npos) return;
    rdma_ = rdma && (rdma_ || transports_.empty());
    if (!transports_.empty()) transports_ += "; ";
    transports_ += chosen;
    changed_ = true;
  } catch (...) {  // no memory for a text that nobody may ask for
    transports_.clear();
  }
}

void UcxWorkerImpl::reap() noexcept {
  std::erase_if(ending_, [](const auto& stream) { return stream->over(); });
}

bool UcxWorkerImpl::busy() const noexcept {
  return std::any_of(streams_.begin(), streams_.end(),
                     [](const auto& entry) { return entry.second->requests() > 0; });
}

UcxStream* UcxWorkerImpl::open_stream() {
  const std::uint64_t name = random_name();
  auto stream = UcxStream::make(ucp_, name);
  if (!stream) throw std::bad_alloc();
  ending_.reserve(ending_.size() + streams_.size() + 1);  // give_back must not fail
  return streams_.emplace(name, std::move(stream)).first->second.get();
}

void UcxWorkerImpl::give_back(UcxStream* stream) noexcept {
  const auto found = streams_.find(stream->name);
  stream->end();
  if (!stream->over()) ending_.push_back(std::move(found->second));
  streams_.erase(found);
}

ucp::Ucs UcxWorkerImpl::on_data(void* worker, const void* header, std::size_t header_size,
                                void* data, std::size_t bytes,
                                const ucp::ReceivedParam* param) noexcept {
  return static_cast<UcxWorkerImpl*>(worker)->hear(UcxStream::data_id, header, header_size, data,
                                                   bytes, param);
}

ucp::Ucs UcxWorkerImpl::on_taken(void* worker, const void* header, std::size_t header_size,
                                 void* data, std::size_t bytes,
                                 const ucp::ReceivedParam* param) noexcept {
  return static_cast<UcxWorkerImpl*>(worker)->hear(UcxStream::taken_id, header, header_size, data,
                                                   bytes, param);
}

/// Anybody on the network may reach a worker of UCX's: only who knows a stream's name is heard.
ucp::Ucs UcxWorkerImpl::hear(unsigned id, const void* header, std::size_t header_size, void* data,
                             std::size_t bytes, const ucp::ReceivedParam* param) noexcept {
  UcxStream::Header said;
  if (header_size != sizeof said) return ucp::Ucs::ok;
  std::memcpy(&said, header, sizeof said);
  const auto found = streams_.find(said.stream);
  if (found == streams_.end()) return ucp::Ucs::ok;
  const bool rendezvous = (param->attributes & ucp::ReceivedParam::rendezvous) != 0;
  return found->second->hear(id, said, data, bytes, rendezvous);
}

void UcxWorkerImpl::give_up(const std::string& machine) noexcept {
  try {
    if (gave_up(machine) || out_of_reach_.size() >= out_of_reach_max) return;
    out_of_reach_.push_back(machine);
  } catch (...) {  // no memory: it is asked again
  }
}

bool UcxWorkerImpl::gave_up(const std::string& machine) const noexcept {
  return std::find(out_of_reach_.begin(), out_of_reach_.end(), machine) != out_of_reach_.end();
}

UcxReport UcxWorkerImpl::report() const {
  UcxReport report{library_->version, transports_, through_ucx_, declined_,
                   streams_.size() + ending_.size(), 0, rdma_};
  for (const auto& [name, stream] : streams_) report.requests += stream->requests();
  for (const auto& stream : ending_) report.requests += stream->requests();
  return report;
}

}  // namespace pccl
