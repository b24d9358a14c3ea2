// native/include/pccl/collective.hpp — which collectives there are, and what sets them apart.
// Ownership: plain values.
// Threads:   any.
// Errors:    none.
#pragma once

#include <cstdint>

namespace pccl {

// Wire numbers: never reused.
enum class Collective : std::uint8_t {
  all_reduce = 0, reduce_scatter = 1, all_gather = 2, broadcast = 3, reduce = 4,
  gather = 5, scatter = 6, all_to_all = 7, barrier = 8,
};
inline constexpr std::uint8_t collective_count = 9;

/// Contributions become one value; the others move elements as they are.
constexpr bool reduces(Collective kind) noexcept {
  return kind == Collective::all_reduce || kind == Collective::reduce_scatter ||
         kind == Collective::reduce;
}
/// One rank is not like the others.
constexpr bool rooted(Collective kind) noexcept {
  return kind == Collective::broadcast || kind == Collective::reduce ||
         kind == Collective::gather || kind == Collective::scatter;
}
/// Its shapes depend on the view: it means nothing under another one.
constexpr bool bound(Collective kind) noexcept {
  return kind == Collective::reduce_scatter || kind == Collective::all_gather ||
         kind == Collective::gather || kind == Collective::scatter ||
         kind == Collective::all_to_all;
}
/// All ranks end with the same elements, and say so by equal digests.
constexpr bool same_result(Collective kind) noexcept {
  return kind == Collective::all_reduce || kind == Collective::all_gather ||
         kind == Collective::broadcast || kind == Collective::barrier;
}
/// The parts of a rank's input, one for each rank, are different shares of the operation.
constexpr bool input_in_parts(Collective kind) noexcept {
  return kind == Collective::reduce_scatter || kind == Collective::scatter ||
         kind == Collective::all_to_all;
}
constexpr bool output_in_parts(Collective kind) noexcept {
  return kind == Collective::all_gather || kind == Collective::gather ||
         kind == Collective::all_to_all;
}
/// Parts may differ in size.
constexpr bool may_be_uneven(Collective kind) noexcept {
  return input_in_parts(kind) || output_in_parts(kind);
}
/// Who has an input, and who an output.
constexpr bool has_input(Collective kind, bool is_root) noexcept {
  if (kind == Collective::barrier) return false;
  return is_root || (kind != Collective::broadcast && kind != Collective::scatter);
}
constexpr bool has_output(Collective kind, bool is_root) noexcept {
  if (kind == Collective::barrier) return false;
  return is_root || (kind != Collective::reduce && kind != Collective::gather);
}

}  // namespace pccl
