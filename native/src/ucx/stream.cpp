// native/src/ucx/stream.cpp — messages between two places of registered memory.
// Ownership: see stream.hpp.
// Threads:   see stream.hpp.
// Errors:    see stream.hpp.
#include "ucx/stream.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <new>
#include <string_view>
#include <utility>

#include "pccl/poller.hpp"

namespace pccl {
namespace {

constexpr std::size_t memory_bytes = 2 * UcxStream::messages_max * UcxStream::message_bytes;
constexpr std::uint32_t told_after = UcxStream::messages_max / 2;
constexpr unsigned transports_max = 16;
// A first word takes UCX a few round trips, and a busy machine some tenths of a second.
constexpr double patience_s = 2.0;
constexpr double doubted_s = 0.5;     // by then, if the lane ends for another reason
constexpr double wait_counts_s = 0.25;  // more between two looks: this side itself stood still

// Names that UCX gives to transports of InfiniBand, RoCE and EFA.
constexpr std::array<std::string_view, 6> rdma_names{"rc", "dc", "ud", "ib", "srd", "gga"};

}  // namespace

std::unique_ptr<UcxStream> UcxStream::make(const UcpContext& ucp, std::uint64_t name) noexcept {
  void* memory = ::mmap(nullptr, memory_bytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) return nullptr;
  ucp::MapParams params{};
  params.field_mask = ucp::MapParams::has_address | ucp::MapParams::has_length;
  params.address = memory;
  params.length = memory_bytes;
  ucp::Memory registered = nullptr;
  // Without it UCX registers what it must by itself, time and again.
  if (ucp.library.mem_map(ucp.context, &params, &registered) != ucp::Ucs::ok) registered = nullptr;
  auto* stream = new (std::nothrow)
      UcxStream(ucp, name, static_cast<std::byte*>(memory), registered);
  if (stream == nullptr) {
    if (registered != nullptr) (void)ucp.library.mem_unmap(ucp.context, registered);
    ::munmap(memory, memory_bytes);
  }
  return std::unique_ptr<UcxStream>(stream);
}

UcxStream::UcxStream(const UcpContext& ucp, std::uint64_t its_name, std::byte* memory,
                     ucp::Memory registered) noexcept
    : name(its_name), ucp_(ucp), memory_(memory), registered_(registered) {
  std::byte* next = memory;
  for (auto* places : {&in_, &out_}) {
    for (Place& place : *places) {
      place.stream = this;
      place.memory = next;
      next += message_bytes;
    }
  }
  word_.stream = this;
}

UcxStream::~UcxStream() {
  if (registered_ != nullptr) (void)ucp_.library.mem_unmap(ucp_.context, registered_);
  ::munmap(memory_, memory_bytes);
}

bool UcxStream::connect(std::uint64_t other, const void* address) noexcept {
  ucp::EndpointParams params{};
  params.field_mask = ucp::EndpointParams::has_address | ucp::EndpointParams::has_error_mode |
                      ucp::EndpointParams::has_error_handler;
  params.address = address;
  params.error_mode = ucp::EndpointParams::error_mode_peer;
  params.error_handler = {&UcxStream::on_error, this};
  other_ = other;
  if (ucp_.library.ep_create(ucp_.worker, &params, &endpoint_) != ucp::Ucs::ok) {
    endpoint_ = nullptr;
    failed_ = true;
    return false;
  }
  start(taken_id, word_);
  return true;
}

void UcxStream::wait(double now_s) noexcept {
  const double passed_s = std::clamp(now_s - std::exchange(looked_s_, now_s), 0.0, wait_counts_s);
  if (heard_ || endpoint_ == nullptr || sent_bytes_ == 0) return;
  silent_s_ += passed_s;
  failed_ = failed_ || silent_s_ >= patience_s;
}

bool UcxStream::doubtful() const noexcept { return failed_ || silent_s_ >= doubted_s; }

bool UcxStream::readable() const noexcept {
  return in_[taken_ % messages_max].state == State::here;
}

bool UcxStream::writable() const noexcept {
  return endpoint_ != nullptr && !failed_ && sent_ - other_took_ < messages_max &&
         out_[sent_ % messages_max].state == State::free;
}

std::uint32_t UcxStream::ready_bits() const noexcept {
  if (!watched || endpoint_ == nullptr) return 0;
  std::uint32_t bits = 0;
  if (readable() || failed_) bits |= ready::read;
  if (wants_write && writable()) bits |= ready::write;
  return bits;
}

Status UcxStream::send(std::span<const iovec> parts, std::size_t& sent) noexcept {
  if (failed_) return Status::closed;
  if (!writable()) return Status::would_block;
  Place& place = out_[sent_ % messages_max];
  place.length = 0;
  for (const iovec& part : parts) {
    const std::size_t bytes = std::min(part.iov_len, message_bytes - place.length);
    std::memcpy(place.memory + place.length, part.iov_base, bytes);
    place.length += bytes;
    if (bytes < part.iov_len) break;
  }
  sent = place.length;
  sent_bytes_ += sent;
  place.header.sequence = sent_++;
  start(data_id, place);
  return failed_ ? Status::closed : Status::ok;
}

/// Gives a message to UCX, which reads place and header until on_sent.
void UcxStream::start(unsigned id, Place& place) noexcept {
  place.header.stream = other_;
  place.header.taken = told_ = taken_;
  place.state = State::coming;
  ucp::RequestParam param{};
  param.mask = ucp::RequestParam::has_callback | ucp::RequestParam::has_user_data;
  if (registered_ != nullptr && place.memory != nullptr) {
    param.mask |= ucp::RequestParam::has_memory;
    param.memory = registered_;
  }
  param.callback.send = &UcxStream::on_sent;
  param.user_data = &place;
  ++requests_;
  void* outcome = ucp_.library.am_send_nbx(endpoint_, id, &place.header, sizeof place.header,
                                           place.memory, place.length, &param);
  if (outcome != nullptr && !ucp::is_error(outcome)) return;
  --requests_;
  place.state = State::free;
  failed_ = failed_ || outcome != nullptr;
}

void UcxStream::on_sent(void* request, ucp::Ucs status, void* place) noexcept {
  Place& sent = *static_cast<Place*>(place);
  UcxStream& stream = *sent.stream;
  --stream.requests_;
  sent.state = State::free;
  stream.failed_ = stream.failed_ || status != ucp::Ucs::ok;
  stream.ucp_.library.request_free(request);
}

Status UcxStream::receive(std::span<const iovec> parts, std::size_t& got,
                          bool& drained) noexcept {
  got = 0;
  for (const iovec& part : parts) {
    std::size_t filled = 0;
    while (filled < part.iov_len && readable()) {
      Place& place = in_[taken_ % messages_max];
      const std::size_t bytes = std::min(part.iov_len - filled, place.length - read_);
      std::memcpy(static_cast<std::byte*>(part.iov_base) + filled, place.memory + read_, bytes);
      filled += bytes;
      read_ += bytes;
      if (read_ < place.length) continue;
      read_ = 0;
      place.state = State::free;
      ++taken_;
    }
    got += filled;
  }
  drained = !readable();
  tell_if_due();
  if (got > 0) return Status::ok;
  return failed_ ? Status::closed : Status::would_block;
}

void UcxStream::tell_if_due() noexcept {
  if (taken_ - told_ >= told_after) tell_taken();
}

void UcxStream::tell_taken() noexcept {
  const bool free = word_.state == State::free;
  if (taken_ == told_ || !free || endpoint_ == nullptr || failed_ || ended_) return;
  start(taken_id, word_);
}

ucp::Ucs UcxStream::hear(unsigned id, const Header& header, void* data, std::size_t bytes,
                         bool rendezvous) noexcept {
  if (ended_ || failed_) return ucp::Ucs::ok;
  heard_ = true;
  // Both count on and wrap around; what cannot be is the other end's fault.
  if (header.taken - other_took_ > sent_ - other_took_) {
    failed_ = static_cast<std::int32_t>(header.taken - other_took_) > 0;
  } else {
    for (; other_took_ != header.taken; ++other_took_) {
      taken_bytes_ += out_[other_took_ % messages_max].length;
    }
  }
  if (failed_ || id != data_id) return ucp::Ucs::ok;
  Place& place = in_[header.sequence % messages_max];
  failed_ = header.sequence - taken_ >= messages_max || place.state != State::free ||
            bytes == 0 || bytes > message_bytes;
  return failed_ ? ucp::Ucs::ok : take_in(place, data, bytes, rendezvous);
}

ucp::Ucs UcxStream::take_in(Place& place, void* data, std::size_t bytes,
                            bool rendezvous) noexcept {
  place.length = bytes;
  if (!rendezvous) {
    std::memcpy(place.memory, data, bytes);
    place.state = State::here;
    return ucp::Ucs::ok;
  }
  ucp::RequestParam param{};
  param.mask = ucp::RequestParam::has_callback | ucp::RequestParam::has_user_data |
               ucp::RequestParam::never_immediate;
  if (registered_ != nullptr) {
    param.mask |= ucp::RequestParam::has_memory;
    param.memory = registered_;
  }
  param.callback.receive = &UcxStream::on_received;
  param.user_data = &place;
  place.state = State::coming;
  ++requests_;
  void* outcome = ucp_.library.am_recv_data_nbx(ucp_.worker, data, place.memory, bytes, &param);
  if (outcome == nullptr || ucp::is_error(outcome)) {
    --requests_;
    failed_ = true;
  } else if (place.state == State::coming) {
    place.request = outcome;  // else it is complete already, and freed
  }
  return ucp::Ucs::in_progress;
}

void UcxStream::on_received(void* request, ucp::Ucs status, std::size_t length,
                            void* place) noexcept {
  Place& received = *static_cast<Place*>(place);
  UcxStream& stream = *received.stream;
  --stream.requests_;
  received.request = nullptr;
  received.state = State::here;
  stream.failed_ = stream.failed_ || status != ucp::Ucs::ok || length != received.length;
  if (status != ucp::Ucs::ok || length != received.length) received.state = State::free;
  stream.ucp_.library.request_free(request);
}

bool UcxStream::settled() noexcept {
  if (settled_ || !heard_ || endpoint_ == nullptr) return false;
  settled_ = true;
  return true;
}

std::string UcxStream::transports(bool& rdma) const {
  std::array<ucp::TransportEntry, transports_max> entries{};
  ucp::EndpointAttr attr{};
  attr.field_mask = ucp::EndpointAttr::has_transports;
  attr.transports.entries = entries.data();
  attr.transports.count = transports_max;
  attr.transports.entry_bytes = sizeof(ucp::TransportEntry);
  rdma = false;
  std::string text;
  if (endpoint_ == nullptr || ucp_.library.ep_query(endpoint_, &attr) != ucp::Ucs::ok) return text;
  const unsigned count = std::min(attr.transports.count, transports_max);
  for (unsigned i = 0; i < count; ++i) {
    if (entries[i].transport == nullptr || entries[i].device == nullptr) continue;
    const std::string_view kind = entries[i].transport;
    rdma = rdma || std::any_of(rdma_names.begin(), rdma_names.end(), [&](std::string_view known) {
      return kind.substr(0, known.size()) == known;
    });
    if (!text.empty()) text += ", ";
    text.append(kind).append("/").append(entries[i].device);
  }
  return text;
}

void UcxStream::end() noexcept {
  if (ended_) return;
  ended_ = true;
  for (Place& place : in_) {
    if (place.request != nullptr) ucp_.library.request_cancel(ucp_.worker, place.request);
  }
  if (endpoint_ == nullptr) return;
  ucp::RequestParam param{};
  param.mask = ucp::RequestParam::has_flags | ucp::RequestParam::has_callback |
               ucp::RequestParam::has_user_data;
  param.flags = ucp::RequestParam::close_force;
  param.callback.send = &UcxStream::on_closed;
  param.user_data = this;
  ++requests_;
  void* outcome = ucp_.library.ep_close_nbx(endpoint_, &param);
  if (outcome == nullptr || ucp::is_error(outcome)) --requests_;
  endpoint_ = nullptr;
}

void UcxStream::on_closed(void* request, ucp::Ucs, void* stream) noexcept {
  UcxStream& closed = *static_cast<UcxStream*>(stream);
  --closed.requests_;
  closed.ucp_.library.request_free(request);
}

void UcxStream::on_error(void* stream, ucp::Endpoint, ucp::Ucs) noexcept {
  static_cast<UcxStream*>(stream)->failed_ = true;
}

}  // namespace pccl
