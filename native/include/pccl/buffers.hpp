// native/include/pccl/buffers.hpp — memory of the data path: pooled tiles, and the undo arena.
//
// Tiles hold slices in flight (256 KiB fits an L2 cache); the undo arena holds what in-place
// results
// overwrote, one block per operation, laid out like the caller's buffer.  Both keep what was given
// back, up to a bound, because fresh pages cost more than the copy into them.
//
// Ownership: a Buffer or UndoBlock belongs to its holder and goes back to its pool when it goes;
//            the
//            pool outlives it.
// Threads:   pools and what came from them are used under one lock (the engine's turn).
// Errors:    allocation failure gives an empty Buffer or block; callers check.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace pccl {

class BufferPool;

class Buffer {
 public:
  Buffer() noexcept = default;
  Buffer(Buffer&& other) noexcept { swap(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    Buffer moved(std::move(other));
    swap(moved);
    return *this;
  }
  ~Buffer();
  [[nodiscard]] std::byte* data() const noexcept { return data_; }
  explicit operator bool() const noexcept { return data_ != nullptr; }

 private:
  friend class BufferPool;
  void swap(Buffer& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_class_, other.size_class_);
    std::swap(pool_, other.pool_);
  }
  std::byte* data_ = nullptr;
  std::size_t size_class_ = 0;
  BufferPool* pool_ = nullptr;
};

class BufferPool {
 public:
  BufferPool() = default;
  ~BufferPool();
  BufferPool(const BufferPool&) = delete;
  BufferPool& operator=(const BufferPool&) = delete;
  /// At least `bytes` (<= 256 KiB), 64-byte aligned; empty if there is no memory.
  Buffer take(std::size_t bytes) noexcept;
  [[nodiscard]] std::size_t bytes_in_use() const noexcept { return in_use_; }

 private:
  friend class Buffer;
  static constexpr std::array<std::size_t, 4> class_bytes{2048, 16384, 65536, 262144};
  static constexpr std::size_t cached_bytes_max = 16u << 20;
  void give(std::byte* data, std::size_t size_class) noexcept;
  std::array<std::vector<std::byte*>, class_bytes.size()> free_;
  std::size_t cached_ = 0;
  std::size_t in_use_ = 0;
};

class UndoArena;

class UndoBlock {
 public:
  UndoBlock() noexcept = default;
  UndoBlock(UndoBlock&& other) noexcept { swap(other); }
  UndoBlock& operator=(UndoBlock&& other) noexcept {
    UndoBlock moved(std::move(other));
    swap(moved);
    return *this;
  }
  ~UndoBlock();
  [[nodiscard]] std::byte* data() const noexcept { return data_; }
  explicit operator bool() const noexcept { return data_ != nullptr; }

 private:
  friend class UndoArena;
  void swap(UndoBlock& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    std::swap(arena_, other.arena_);
  }
  std::byte* data_ = nullptr;
  std::size_t bytes_ = 0;
  UndoArena* arena_ = nullptr;
};

class UndoArena {
 public:
  UndoArena() = default;
  ~UndoArena();
  UndoArena(const UndoArena&) = delete;
  UndoArena& operator=(const UndoArena&) = delete;
  /// A block of at least `bytes`; pages are touched only where they are written.
  UndoBlock take(std::size_t bytes) noexcept;
  /// Copies past the cache: an undo copy is hardly ever read again.
  static void save(std::byte* to, const std::byte* from, std::size_t bytes) noexcept;
  [[nodiscard]] std::size_t bytes_held() const noexcept { return cached_ + in_use_; }

 private:
  friend class UndoBlock;
  struct Free {
    std::byte* data;
    std::size_t bytes;
  };
  void give(std::byte* data, std::size_t bytes) noexcept;
  std::vector<Free> free_;
  std::size_t cached_ = 0;
  std::size_t in_use_ = 0;
  std::size_t peak_ = 0;      // of bytes in use, over the last `window` blocks
  std::uint32_t given_ = 0;
};

}  // namespace pccl
