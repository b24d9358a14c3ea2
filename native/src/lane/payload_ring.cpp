// native/src/lane/payload_ring.cpp — a sealed memory file, and two counters in it.
// Ownership: see payload_ring.hpp.
// Threads:   under the engine's turn; counters are released by one process, acquired by the other.
// Errors:    null.
#include "pccl/payload_ring.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstring>
#include <new>
#include <utility>

namespace pccl {
namespace {

constexpr std::size_t token_at = 0;
constexpr std::size_t produced_at = 64;
constexpr std::size_t consumed_at = 128;
constexpr std::size_t waits_at = 192;
constexpr std::size_t payloads_at = 4096;
// Who has waited for room is told when there is room for several payloads, not for each.
constexpr std::uint64_t room_told = ring_bytes / 2;
constexpr std::size_t file_bytes = payloads_at + ring_bytes;
constexpr int seals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;
using FileName = std::array<char, 64>;

/// What the file is called; the reader opens nothing that is called otherwise.
FileName file_name(const RingName& name) noexcept {
  FileName text{};
  std::size_t at = static_cast<std::size_t>(std::snprintf(text.data(), text.size(), "pccl-ring-"));
  for (const std::byte byte : name.token) {
    std::snprintf(text.data() + at, text.size() - at, "%02x", std::to_integer<unsigned>(byte));
    at += 2;
  }
  return text;
}

std::byte* map(int file) noexcept {
  void* memory = ::mmap(nullptr, file_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  return memory == MAP_FAILED ? nullptr : static_cast<std::byte*>(memory);
}

std::atomic_ref<std::uint64_t> counter(std::byte* memory, std::size_t at) noexcept {
  static_assert(std::atomic_ref<std::uint64_t>::is_always_lock_free);
  return std::atomic_ref<std::uint64_t>(*reinterpret_cast<std::uint64_t*>(memory + at));
}

}  // namespace

PayloadRing::PayloadRing(std::byte* memory, const RingName& name, Fd file) noexcept
    : memory_(memory), name_(name), file_(std::move(file)) {}

PayloadRing::~PayloadRing() { ::munmap(memory_, file_bytes); }

std::unique_ptr<PayloadRing> PayloadRing::make() noexcept {
  RingName name;
  if (::getrandom(name.token.data(), name.token.size(), 0) !=
      static_cast<ssize_t>(name.token.size())) {
    return nullptr;
  }
  Fd file(::memfd_create(file_name(name).data(), MFD_CLOEXEC | MFD_ALLOW_SEALING));
  // Allocated now: a page that cannot be had later would be a signal in the middle of a copy.
  if (!file || ::posix_fallocate(file.get(), 0, file_bytes) != 0 ||
      ::fcntl(file.get(), F_ADD_SEALS, seals) != 0) {
    return nullptr;
  }
  std::byte* memory = map(file.get());
  if (memory == nullptr) return nullptr;
  name.process = static_cast<std::uint32_t>(::getpid());
  name.descriptor = static_cast<std::uint32_t>(file.get());
  name.bytes = ring_bytes;
  std::memcpy(memory + token_at, name.token.data(), name.token.size());
  std::unique_ptr<PayloadRing> ring(new (std::nothrow) PayloadRing(memory, name, std::move(file)));
  if (!ring) ::munmap(memory, file_bytes);
  return ring;
}

std::unique_ptr<PayloadRing> PayloadRing::open(const RingName& name) noexcept {
  if (name.bytes != ring_bytes) return nullptr;
  std::array<char, 64> path{};
  std::snprintf(path.data(), path.size(), "/proc/%u/fd/%u", name.process, name.descriptor);
  // The number may be another process's here; what is opened must be what was offered.
  std::array<char, 128> found{};
  std::array<char, 128> wanted{};
  std::snprintf(wanted.data(), wanted.size(), "/memfd:%s (deleted)", file_name(name).data());
  if (::readlink(path.data(), found.data(), found.size() - 1) < 0 || found != wanted) {
    return nullptr;
  }
  Fd file(::open(path.data(), O_RDWR | O_CLOEXEC));
  struct stat status {};
  if (!file || ::fstat(file.get(), &status) != 0 ||
      static_cast<std::size_t>(status.st_size) != file_bytes ||
      (::fcntl(file.get(), F_GET_SEALS) & seals) != seals) {
    return nullptr;
  }
  std::byte* memory = map(file.get());
  if (memory == nullptr) return nullptr;
  const bool same = std::memcmp(memory + token_at, name.token.data(), name.token.size()) == 0;
  std::unique_ptr<PayloadRing> ring(
      same ? new (std::nothrow) PayloadRing(memory, name, Fd()) : nullptr);
  if (!ring) ::munmap(memory, file_bytes);
  return ring;
}

void PayloadRing::opened() noexcept {
  ready_ = true;
  file_.reset();
}

std::uint64_t PayloadRing::begin_of(std::uint64_t position, std::size_t bytes) noexcept {
  const std::uint64_t offset = position % ring_bytes;
  return offset + bytes <= ring_bytes ? position : position + (ring_bytes - offset);
}

std::byte* PayloadRing::reserve(std::size_t bytes) noexcept {
  const std::uint64_t begin = begin_of(position_, bytes);
  const std::uint64_t consumed =
      counter(memory_, consumed_at).load(std::memory_order_acquire);
  // A counter that cannot be is a ring without room.
  const std::uint64_t held = begin + bytes - consumed;
  if (consumed > position_ || held > ring_bytes) return nullptr;
  return memory_ + payloads_at + begin % ring_bytes;
}

bool PayloadRing::await_room(std::size_t bytes) noexcept {
  // In one order on both sides: either the reader sees that we wait, or we see what it has taken.
  counter(memory_, waits_at).store(1, std::memory_order_seq_cst);
  std::atomic_thread_fence(std::memory_order_seq_cst);
  if (reserve(bytes) == nullptr) return true;
  counter(memory_, waits_at).store(0, std::memory_order_seq_cst);
  return false;
}

std::uint64_t PayloadRing::taken() const noexcept {
  return counter(memory_, consumed_at).load(std::memory_order_acquire);
}

void PayloadRing::produce(std::size_t bytes) noexcept {
  position_ = begin_of(position_, bytes) + bytes;
  counter(memory_, produced_at).store(position_, std::memory_order_release);
}

const std::byte* PayloadRing::front(std::size_t bytes) const noexcept {
  if (bytes > ring_bytes) return nullptr;
  const std::uint64_t begin = begin_of(position_, bytes);
  const std::uint64_t produced =
      counter(memory_, produced_at).load(std::memory_order_acquire);
  if (produced < begin + bytes) return nullptr;
  return memory_ + payloads_at + begin % ring_bytes;
}

bool PayloadRing::consume(std::size_t bytes) noexcept {
  position_ = begin_of(position_, bytes) + bytes;
  counter(memory_, consumed_at).store(position_, std::memory_order_seq_cst);
  std::atomic_thread_fence(std::memory_order_seq_cst);
  const std::uint64_t produced = counter(memory_, produced_at).load(std::memory_order_acquire);
  const bool some = produced - position_ <= ring_bytes - room_told;
  return some && counter(memory_, waits_at).load(std::memory_order_seq_cst) != 0 &&
         counter(memory_, waits_at).exchange(0, std::memory_order_seq_cst) != 0;
}

}  // namespace pccl
