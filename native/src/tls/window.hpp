// native/src/tls/window.hpp — bytes on their way between a socket and a cipher, in a bounded block.
// Ownership: owns its block.
// Threads:   one at a time.
// Errors:    reserve() says false where there is no memory; what is held stays.
#pragma once

#include <cstddef>
#include <cstring>
#include <memory>
#include <new>
#include <span>

namespace pccl {

class Window {
 public:
  /// Room for `bytes` behind what is held; what is held moves to the front if that is needed.
  bool reserve(std::size_t bytes) noexcept {
    if (size_ - end_ >= bytes) return true;
    if (begin_ > 0) {
      if (end_ > begin_) std::memmove(block_.get(), block_.get() + begin_, held());
      end_ -= begin_;
      begin_ = 0;
      if (size_ - end_ >= bytes) return true;
    }
    const std::size_t size = end_ + bytes;
    std::unique_ptr<std::byte[]> block(new (std::nothrow) std::byte[size]);
    if (!block) return false;
    if (end_ > 0) std::memcpy(block.get(), block_.get(), end_);
    block_ = std::move(block);
    size_ = size;
    return true;
  }
  [[nodiscard]] std::size_t held() const noexcept { return end_ - begin_; }
  [[nodiscard]] std::size_t room() const noexcept { return size_ - end_; }
  [[nodiscard]] std::byte* front() noexcept { return block_.get() + begin_; }
  [[nodiscard]] const std::byte* front() const noexcept { return block_.get() + begin_; }
  [[nodiscard]] std::byte* back() noexcept { return block_.get() + end_; }
  void grow(std::size_t bytes) noexcept { end_ += bytes; }
  void drop(std::size_t bytes) noexcept {
    begin_ += bytes;
    if (begin_ == end_) begin_ = end_ = 0;
  }

 private:
  std::unique_ptr<std::byte[]> block_;
  std::size_t size_ = 0;
  std::size_t begin_ = 0;
  std::size_t end_ = 0;
};

}  // namespace pccl
