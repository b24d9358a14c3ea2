// native/src/lane/payload_ring.cpp — a sealed memory file, and two counters in it.
// Ownership: see payload_ring.hpp.
// Threads:   under the engine's turn; counters are released by one process, acquired by the other.
// Errors:    null.
#include "pccl/payload_ring.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <linux/magic.h>

#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <new>
#include <utility>

namespace pccl {
namespace {

using namespace ring_layout;

// Who has waited for room is told when there is room for several payloads, not for each.
constexpr std::uint64_t room_told = ring_bytes / 2;
constexpr std::size_t file_bytes = payloads_at + ring_bytes;
constexpr int seals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;
using FileName = std::array<char, 64>;
using Path = std::array<char, 64>;

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

Path path_of(int file) noexcept {
  Path path{};
  std::snprintf(path.data(), path.size(), "/proc/self/fd/%d", file);
  return path;
}

/// Says of a file that is held, not opened, whether it is a memory file of that name and size.
bool is_offered(int held, const RingName& name) noexcept {
  std::array<char, 128> called{};
  std::array<char, 128> wanted{};
  std::snprintf(wanted.data(), wanted.size(), "/memfd:%s (deleted)", file_name(name).data());
  struct stat status {};
  struct statfs system {};
  return ::readlink(path_of(held).data(), called.data(), called.size() - 1) > 0 &&
         called == wanted && ::fstat(held, &status) == 0 && S_ISREG(status.st_mode) &&
         static_cast<std::size_t>(status.st_size) == file_bytes && ::fstatfs(held, &system) == 0 &&
         system.f_type == TMPFS_MAGIC;
}

/// A new memory file; where the system can, one that can never be executed.
Fd memory_file(const char* name) noexcept {
#ifdef MFD_NOEXEC_SEAL
  constexpr unsigned never_executed = MFD_NOEXEC_SEAL;
#else
  constexpr unsigned never_executed = 8;
#endif
  const int file = ::memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING | never_executed);
  if (file >= 0 || errno != EINVAL) return Fd(file);
  return Fd(::memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING));  // before Linux 6.3
}

bool allocate(int file, std::size_t bytes) noexcept {
  int error = 0;
  do {
    error = ::posix_fallocate(file, 0, static_cast<off_t>(bytes));
  } while (error == EINTR);
  return error == 0;
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
  Fd file = memory_file(file_name(name).data());
  // Allocated now: a page that cannot be had later would be a signal in the middle of a copy.
  if (!file || !allocate(file.get(), file_bytes) ||
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
  // The number may be another process's here, and what it names may change: the file is held by a
  // descriptor that does nothing else, looked at, and only then opened.
  std::array<char, 64> path{};
  std::snprintf(path.data(), path.size(), "/proc/%u/fd/%u", name.process, name.descriptor);
  const Fd found(::open(path.data(), O_PATH | O_CLOEXEC));
  if (!found || !is_offered(found.get(), name)) return nullptr;
  const Path held = path_of(found.get());
  const Fd file(::open(held.data(), O_RDWR | O_CLOEXEC | O_NOCTTY | O_NONBLOCK));
  const int has = file ? ::fcntl(file.get(), F_GET_SEALS) : -1;
  if (has < 0 || (has & seals) != seals) return nullptr;
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
      counter(memory_, consumed_at).load(std::memory_order_seq_cst);  // see await_room
  // A counter that cannot be is a ring without room.
  const std::uint64_t held = begin + bytes - consumed;
  if (consumed > position_ || held > ring_bytes) return nullptr;
  return memory_ + payloads_at + begin % ring_bytes;
}

bool PayloadRing::await_room(std::size_t bytes) noexcept {
  // In one order on both sides: either the reader sees that we wait, or we see what it has taken.
  counter(memory_, waits_at).store(1, std::memory_order_seq_cst);
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
  const std::uint64_t produced = counter(memory_, produced_at).load(std::memory_order_acquire);
  const bool some = produced - position_ <= ring_bytes - room_told;
  return some && counter(memory_, waits_at).load(std::memory_order_seq_cst) != 0 &&
         counter(memory_, waits_at).exchange(0, std::memory_order_seq_cst) != 0;
}

}  // namespace pccl
