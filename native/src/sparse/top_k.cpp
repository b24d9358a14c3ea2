// native/src/sparse/top_k.cpp — the selection itself; its inner loops are chosen by the CPU.
// Ownership: see top_k.hpp.
// Threads:   pure functions; the choice is made once.
// Errors:    std::bad_alloc.
#include "pccl/top_k.hpp"

#include <algorithm>
#include <cstring>
#include <limits>
#include <vector>

#include "loops.hpp"
#include "pccl/kernels.hpp"

namespace pccl {
namespace {

constexpr std::size_t block_size_max = 1 << 16;  // positions have 16 bits
constexpr std::int32_t first_stride = 1 << 21;   // a quarter of an octave
constexpr std::int32_t margin = 1 << 19;         // a sixteenth: of normal numbers a third more

/// As the arithmetic kernels were chosen, PCCL_KERNELS included.
const TopKLoops& active_loops() noexcept {
  static const TopKLoops& loops = *[] {
    const char* const name = active_kernels().name;
    const AvailableTopKLoops available = available_top_k_loops();
    std::size_t at = 0;
    if (std::strcmp(name, "avx2") == 0) at = 1;
    if (std::strcmp(name, "avx512") == 0) at = 2;
    return available.loops[std::min(at, available.count - 1)];
  }();
  return loops;
}

/// Works on one block after the other; holds what they share.
class Selector {
 public:
  Selector(std::size_t block_size, std::size_t k)
      : k_(k),
        enough_(k + k / 2 + 16),
        places_(block_size + Reached::slack),
        magnitudes_(block_size + Reached::slack) {}

  void select(const Tile& tile, std::uint16_t* positions) {
    const Reached reached{places_.data(), magnitudes_.data()};
    // Mostly the last block's limit does for this one, too.
    std::int32_t low = guess_;
    std::size_t count = loops_.gather(tile, low, reached);
    if (count < k_ || count > enough_) {
      low = limit(tile);
      count = loops_.gather(tile, low, reached);
    }
    std::int32_t largest = 0;
    for (std::size_t i = 0; i < count; ++i) largest = std::max(largest, magnitudes_[i]);
    const std::int32_t least = kth(count, low, largest);
    // All above it are in, and as many of its equals as there is room for.
    std::size_t equals = k_ - loops_.count_of(magnitudes_.data(), count, least + 1);
    for (std::size_t i = 0; i < count; ++i) {
      if (magnitudes_[i] < least || (magnitudes_[i] == least && equals == 0)) continue;
      equals -= magnitudes_[i] == least ? 1 : 0;
      *positions++ = places_[i];
    }
    guess_ = std::max(0, least - margin);
  }

 private:
  /// Returns a limit that at least k elements reach, and mostly not many more.
  std::int32_t limit(const Tile& tile) const noexcept {
    std::int32_t low = 0;  // reached by all
    std::int32_t high = std::numeric_limits<std::int32_t>::max();
    std::int32_t guess = guess_;
    std::int32_t stride = first_stride;
    bool too_low = false;
    bool too_high = false;
    while (low < high) {
      const std::size_t count = loops_.count(tile, guess);
      if (count >= k_ && count <= enough_) {
        low = guess;
        break;
      }
      if (count < k_) {
        too_high = true;
        high = guess - 1;
        guess = too_low ? low + (high - low + 1) / 2 : std::max(low, high - stride);
      } else {
        // Mostly zeros, as in rows that were not used.
        if (guess == 0 && loops_.count(tile, 1) < k_) break;
        too_low = true;
        low = guess;
        guess = too_high ? low + (high - low + 1) / 2 : (stride < high - low ? low + stride : high);
      }
      stride = stride > (1 << 28) ? stride : 2 * stride;
    }
    return low;
  }

  /// Returns what exactly k of the `count` magnitudes reach, all of which reach `low`; if there is
  /// no such limit because of equals, the k-th largest.
  std::int32_t kth(std::size_t count, std::int32_t low, std::int32_t high) const noexcept {
    while (low < high) {
      const std::int32_t middle = low + (high - low + 1) / 2;
      const std::size_t reached = loops_.count_of(magnitudes_.data(), count, middle);
      if (reached == k_) return middle;
      if (reached > k_) {
        low = middle;
      } else {
        high = middle - 1;
      }
    }
    return low;
  }

  const TopKLoops& loops_ = active_loops();
  std::size_t k_;
  std::size_t enough_;
  std::vector<std::uint16_t> places_;
  std::vector<std::int32_t> magnitudes_;
  std::int32_t guess_ = 0x3F000000;  // 0.5 at first; a little below what the last block came to
};

}  // namespace

AvailableTopKLoops available_top_k_loops() noexcept {
  AvailableTopKLoops available{};
  available.loops[available.count++] = &scalar_top_k_loops;
#if defined(__x86_64__)
  const KernelTables tables = available_kernels();
  if (tables.count > 1) available.loops[available.count++] = &avx2_top_k_loops;
  if (tables.count > 2) available.loops[available.count++] = &avx512_top_k_loops;
#endif
  return available;
}

bool BlockShape::sound() const noexcept {
  return block_rows > 0 && block_columns > 0 && rows % block_rows == 0 &&
         columns % block_columns == 0 && block_rows <= block_size_max &&
         block_columns <= block_size_max && block_size() <= block_size_max;
}

void top_k(const float* values, const BlockShape& shape, std::size_t k, std::uint16_t* positions) {
  Selector selector(shape.block_size(), k);
  for (std::size_t row = 0; row < shape.rows; row += shape.block_rows) {
    for (std::size_t column = 0; column < shape.columns; column += shape.block_columns) {
      const float* const first = values + row * shape.columns + column;
      selector.select({first, shape.block_rows, shape.block_columns, shape.columns}, positions);
      positions += k;
    }
  }
}

}  // namespace pccl
