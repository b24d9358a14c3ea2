// native/src/memory/buffers.cpp — tile pool and undo arena.
// Ownership: see buffers.hpp.
// Threads:   under the engine's turn.
// Errors:    no memory: empty handles.
#include "pccl/buffers.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>
#if defined(__x86_64__)
#include <emmintrin.h>
#endif

namespace pccl {
namespace {

constexpr std::size_t page = 4096;
// An undo block that may be twice as large as asked for is reused; beyond that it is waste.
constexpr std::size_t waste_factor = 2;
constexpr std::uint32_t peak_window = 64;

/// False where there is no memory even for the list: the piece is then given back to the system.
template <class Item>
bool remember(std::vector<Item>& list, Item item) noexcept {
  try {
    list.push_back(item);
    return true;
  } catch (const std::bad_alloc&) {
    return false;
  }
}

}  // namespace

Buffer::~Buffer() {
  if (data_ != nullptr) pool_->give(data_, size_class_);
}

BufferPool::~BufferPool() {
  for (auto& list : free_) {
    for (std::byte* data : list) std::free(data);
  }
}

Buffer BufferPool::take(std::size_t bytes) noexcept {
  std::size_t size_class = 0;
  while (size_class < class_bytes.size() && class_bytes[size_class] < bytes) ++size_class;
  Buffer buffer;
  if (size_class == class_bytes.size()) return buffer;
  auto& list = free_[size_class];
  if (!list.empty()) {
    buffer.data_ = list.back();
    list.pop_back();
    cached_ -= class_bytes[size_class];
  } else {
    buffer.data_ = static_cast<std::byte*>(std::aligned_alloc(64, class_bytes[size_class]));
    if (buffer.data_ == nullptr) return buffer;
  }
  buffer.size_class_ = size_class;
  buffer.pool_ = this;
  in_use_ += class_bytes[size_class];
  return buffer;
}

void BufferPool::give(std::byte* data, std::size_t size_class) noexcept {
  const std::size_t bytes = class_bytes[size_class];
  in_use_ -= bytes;
  if (cached_ + bytes > cached_bytes_max || !remember(free_[size_class], data)) {
    std::free(data);
    return;
  }
  cached_ += bytes;
}

UndoBlock::~UndoBlock() {
  if (data_ != nullptr) arena_->give(data_, bytes_);
}

UndoArena::~UndoArena() {
  for (const Free& block : free_) ::munmap(block.data, block.bytes);
}

UndoBlock UndoArena::take(std::size_t bytes) noexcept {
  bytes = (std::max<std::size_t>(bytes, 1) + page - 1) / page * page;
  UndoBlock block;
  block.arena_ = this;
  const auto fits = [&](const Free& candidate) {
    return candidate.bytes >= bytes && candidate.bytes <= bytes * waste_factor;
  };
  const auto found = std::find_if(free_.begin(), free_.end(), fits);
  if (found != free_.end()) {
    block.data_ = found->data;
    block.bytes_ = found->bytes;
    cached_ -= found->bytes;
    free_.erase(found);
  } else {
    void* memory = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) return {};
    // Fewer faults while the first reduction fills it; harmless where huge pages are off.
    ::madvise(memory, bytes, MADV_HUGEPAGE);
    block.data_ = static_cast<std::byte*>(memory);
    block.bytes_ = bytes;
  }
  in_use_ += block.bytes_;
  peak_ = std::max(peak_, in_use_);
  return block;
}

void UndoArena::give(std::byte* data, std::size_t bytes) noexcept {
  in_use_ -= bytes;
  if (++given_ % peak_window == 0) peak_ = in_use_ + bytes;
  // Keep what the recent past used at once and no more, so memory follows the workload down.
  if (!remember(free_, Free{data, bytes})) {
    ::munmap(data, bytes);
    return;
  }
  cached_ += bytes;
  while (cached_ + in_use_ > peak_ && free_.size() > 1) {
    ::munmap(free_.front().data, free_.front().bytes);
    cached_ -= free_.front().bytes;
    free_.erase(free_.begin());
  }
}

void UndoArena::save(std::byte* to, const std::byte* from, std::size_t bytes) noexcept {
#if defined(__x86_64__)
  // Streaming stores need aligned targets; blocks are page aligned and slices 64-byte aligned
  // except where a caller's tensor starts a shard at an odd element.
  std::size_t head = (16 - (reinterpret_cast<std::uintptr_t>(to) & 15)) & 15;
  head = std::min(head, bytes);
  std::memcpy(to, from, head);
  std::size_t i = head;
  for (; i + 64 <= bytes; i += 64) {
    const auto* source = reinterpret_cast<const __m128i*>(from + i);
    auto* target = reinterpret_cast<__m128i*>(to + i);
    const __m128i a = _mm_loadu_si128(source);
    const __m128i b = _mm_loadu_si128(source + 1);
    const __m128i c = _mm_loadu_si128(source + 2);
    const __m128i d = _mm_loadu_si128(source + 3);
    _mm_stream_si128(target, a);
    _mm_stream_si128(target + 1, b);
    _mm_stream_si128(target + 2, c);
    _mm_stream_si128(target + 3, d);
  }
  std::memcpy(to + i, from + i, bytes - i);
  _mm_sfence();
#else
  std::memcpy(to, from, bytes);
#endif
}

}  // namespace pccl
