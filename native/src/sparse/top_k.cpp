// native/src/sparse/top_k.cpp — exact top-k by magnitude, at memory speed.
//
// Theory: cut a block into columns, at least k of them, and take each column's largest element.
// These are k elements or more, so the least of the k largest among them bounds the answer from
// below, and few others reach it: for 64 of 4096 about 260 candidates, from which k are chosen.
// The bound costs one pass of maxima and the candidates one pass of comparisons, both by kernels.
//
// Ownership: scratch memory of its own, per call.
// Threads:   pure function.
// Errors:    false without memory.
#include <algorithm>
#include <cstring>
#include <new>
#include <vector>

#include "pccl/kernels.hpp"
#include "pccl/sparse.hpp"

namespace pccl {
namespace {

constexpr std::uint32_t magnitude_mask = 0x7fffffffU;
constexpr std::uint32_t nan_key = 0x7f800001U;

/// Larger for larger magnitudes; every NaN has the largest.
std::uint32_t key_of(const std::byte* element) noexcept {
  std::uint32_t bits;
  std::memcpy(&bits, element, sizeof bits);
  return std::min(bits & magnitude_mask, nan_key);
}

struct Scratch {
  std::vector<std::uint32_t> maxima;
  std::vector<std::uint32_t> places;
  std::vector<std::uint32_t> keys;    // of those places
  std::vector<std::uint32_t> chosen;  // among them
};

/// What parts the k largest of `keys` from the others: those that reach `key` are k, or more where
/// several equal it.  No key is below `low` or above `high`.  Halving the range of answers and
/// counting, which vectors do, is faster here than moving elements about.
struct Divide {
  std::uint32_t key;
  std::size_t reach;
};
Divide divide(const std::uint32_t* keys, std::size_t count, std::uint32_t k, std::uint32_t low,
              std::uint32_t high) noexcept {
  Divide found{low, count};
  while (found.reach != k && found.key < high) {
    const std::uint32_t middle = high - (high - found.key) / 2;
    const std::size_t reach = active_kernels().count_magnitudes(keys, count, middle);
    if (reach >= k) {
      found = {middle, reach};
    } else {
      high = middle - 1;
    }
  }
  return found;
}

/// All keys of a block that could be among its largest: at least k reach `low`, none is above.
struct Range { std::uint32_t low, high; };
Range range_of(const std::byte* in, std::uint32_t count, std::uint32_t k, Scratch& scratch) {
  // Columns are a whole number of vectors; a block of too few rows has no use for them.
  const std::uint32_t columns = (k + 15) / 16 * 16;
  if (columns > count / 2) return {0, nan_key};
  scratch.maxima.assign(columns, 0);
  active_kernels().column_maxima(scratch.maxima.data(), columns, in, count / columns);
  Range range{nan_key, 0};
  for (std::uint32_t& most : scratch.maxima) {
    most = std::min(most, nan_key);
    range = {std::min(range.low, most), std::max(range.high, most)};
  }
  if (columns != k) {
    range.low = divide(scratch.maxima.data(), columns, k, range.low, range.high).key;
  }
  if (count % columns != 0) range.high = nan_key;  // of the last row nothing is known
  return range;
}

void top_k_of_block(const std::byte* in, std::uint32_t count, std::uint32_t k,
                    std::uint16_t* places, Scratch& scratch) {
  if (k >= count) {
    for (std::uint32_t i = 0; i < count; ++i) places[i] = static_cast<std::uint16_t>(i);
    return;
  }
  const Range range = range_of(in, count, k, scratch);
  const std::size_t found =
      active_kernels().find_magnitudes(scratch.places.data(), in, count, range.low);
  for (std::size_t i = 0; i < found; ++i) {
    scratch.keys[i] = key_of(in + std::size_t{scratch.places[i]} * sizeof(float));
  }
  const Divide last = divide(scratch.keys.data(), found, k, range.low, range.high);
  // Where more than k reach it, all that are too many equal it, and the last of them go.
  std::size_t surplus = last.reach - k;
  if (surplus == 0) {
    active_kernels().find_magnitudes(scratch.chosen.data(), scratch.keys.data(), found, last.key);
    for (std::uint32_t i = 0; i < k; ++i) {
      places[i] = static_cast<std::uint16_t>(scratch.places[scratch.chosen[i]]);
    }
    return;
  }
  std::uint32_t left = k;
  for (std::size_t i = found; i-- > 0;) {
    if (scratch.keys[i] < last.key) continue;
    if (scratch.keys[i] == last.key && surplus > 0) {
      --surplus;
      continue;
    }
    places[--left] = static_cast<std::uint16_t>(scratch.places[i]);
  }
}

}  // namespace

bool top_k(const void* in, std::uint64_t count, const Sparsity& sparsity,
           std::uint16_t* places) noexcept {
  try {
    Scratch scratch;
    scratch.places.resize(std::size_t{sparsity.block} + 16);  // room for a last whole vector
    scratch.keys.resize(sparsity.block);
    scratch.chosen.resize(scratch.places.size());
    const auto* at = static_cast<const std::byte*>(in);
    while (count > 0) {
      const auto here = static_cast<std::uint32_t>(std::min<std::uint64_t>(count, sparsity.block));
      const std::uint32_t k = std::min(sparsity.k, here);
      top_k_of_block(at, here, k, places, scratch);
      places += k;
      at += std::uint64_t{here} * sizeof(float);
      count -= here;
    }
    return true;
  } catch (const std::bad_alloc&) {
    return false;
  }
}

}  // namespace pccl
