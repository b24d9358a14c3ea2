// native/tests/test_top_k.cpp — top_k against a sort, on data that is nasty to thresholds.
// Ownership: none.
// Threads:   one.
// Errors:    checks.
#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>
#include <utility>
#include <vector>

#include "check.hpp"
#include "pccl/top_k.hpp"
#include "sparse/loops.hpp"

namespace {

using Values = std::vector<float>;
using Positions = std::vector<std::uint16_t>;

std::uint32_t magnitude(float value) { return std::bit_cast<std::uint32_t>(value) & 0x7FFFFFFF; }

/// By a stable sort of every block.
Positions expected(const Values& values, const pccl::BlockShape& shape, std::size_t k) {
  Positions all;
  for (std::size_t row = 0; row < shape.rows; row += shape.block_rows) {
    for (std::size_t column = 0; column < shape.columns; column += shape.block_columns) {
      std::vector<std::uint16_t> order(shape.block_size());
      std::iota(order.begin(), order.end(), std::uint16_t{0});
      const auto of = [&](std::uint16_t at) {
        return magnitude(values[(row + at / shape.block_columns) * shape.columns + column +
                                at % shape.block_columns]);
      };
      std::stable_sort(order.begin(), order.end(),
                       [&](auto a, auto b) { return of(a) > of(b); });
      order.resize(k);
      std::sort(order.begin(), order.end());
      all.insert(all.end(), order.begin(), order.end());
    }
  }
  return all;
}

void compare(const Values& values, const pccl::BlockShape& shape, std::size_t k) {
  Positions found(shape.blocks() * k, 0xFFFF);
  pccl::top_k(values.data(), shape, k, found.data());
  CHECK(found == expected(values, shape, k));
}

template <class Make>
void compare_all(Make&& make) {
  constexpr pccl::BlockShape shapes[] = {
      {64, 64, 64, 64}, {128, 192, 64, 64}, {1, 64, 1, 64}, {6, 10, 3, 5}, {1, 1, 1, 1},
      {3, 7, 1, 7},     {256, 256, 256, 256}};
  for (const pccl::BlockShape& shape : shapes) {
    Values values(shape.rows * shape.columns);
    for (std::size_t i = 0; i < values.size(); ++i) values[i] = make(i);
    for (const std::size_t k : {std::size_t{1}, std::size_t{2}, std::size_t{64},
                                shape.block_size() / 2, shape.block_size()})
      if (k >= 1 && k <= shape.block_size()) compare(values, shape, k);
  }
}

}  // namespace

TEST(random_data_of_every_scale) {
  std::mt19937 dice(7);
  std::normal_distribution<float> normal;
  std::cauchy_distribution<float> heavy;
  for (const float scale : {1e-40f, 1e-12f, 1.0f, 1e30f}) {
    compare_all([&](std::size_t) { return scale * normal(dice); });
    compare_all([&](std::size_t) { return scale * heavy(dice); });
  }
}

TEST(a_scale_that_jumps_from_block_to_block) {
  std::mt19937 dice(8);
  std::normal_distribution<float> normal;
  compare_all([&](std::size_t i) {
    return normal(dice) * std::ldexp(1.0f, static_cast<int>((i / 64) * 37 % 200) - 100);
  });
}

TEST(equal_magnitudes_go_to_the_first_positions) {
  compare_all([](std::size_t) { return 0.0f; });
  compare_all([](std::size_t i) { return i % 2 == 0 ? -0.0f : 0.0f; });
  compare_all([](std::size_t i) { return i % 3 == 0 ? -1.5f : 1.5f; });
  compare_all([](std::size_t i) { return static_cast<float>(i % 5); });
  compare_all([](std::size_t i) { return i % 97 == 5 ? 2.0f : 0.0f; });
}

TEST(infinities_and_nans_are_the_largest) {
  std::mt19937 dice(9);
  std::normal_distribution<float> normal;
  constexpr float infinity = std::numeric_limits<float>::infinity();
  compare_all([&](std::size_t i) {
    if (i % 31 == 3) return -infinity;
    if (i % 53 == 7) return std::numeric_limits<float>::quiet_NaN();
    return normal(dice);
  });
}

TEST(all_loops_agree) {
  std::mt19937 dice(10);
  std::normal_distribution<float> normal;
  Values values(61 * 100);
  for (float& value : values) value = normal(dice);
  const pccl::AvailableTopKLoops available = pccl::available_top_k_loops();
  const pccl::TopKLoops& reference = *available.loops[0];
  for (const std::size_t width : {1u, 7u, 16u, 39u, 64u, 100u}) {
    const pccl::Tile tile{values.data(), 61, width, 100};
    for (const std::int32_t limit : {0, 0x3F000000, 0x40000000, 0x7F800000}) {
      const auto gathered = [&](const pccl::TopKLoops& loops) {
        Positions places(61 * width + pccl::Reached::slack);
        std::vector<std::int32_t> bits(places.size());
        const std::size_t count = loops.gather(tile, limit, {places.data(), bits.data()});
        CHECK(loops.count(tile, limit) == count);
        CHECK(loops.count_of(bits.data(), count, limit) == count);
        places.resize(count);
        bits.resize(count);
        return std::make_pair(places, bits);
      };
      for (std::size_t i = 1; i < available.count; ++i)
        CHECK(gathered(*available.loops[i]) == gathered(reference));
    }
  }
}

TEST(what_is_not_filled_by_blocks_is_not_sound) {
  CHECK((pccl::BlockShape{64, 64, 64, 64}.sound()));
  CHECK((!pccl::BlockShape{64, 65, 64, 64}.sound()));
  CHECK((!pccl::BlockShape{64, 64, 0, 64}.sound()));
  CHECK((!pccl::BlockShape{1, 1 << 17, 1, 1 << 17}.sound()));
  CHECK((!pccl::BlockShape{512, 512, 512, 512}.sound()));
  CHECK((pccl::BlockShape{0, 64, 64, 64}.sound() && pccl::BlockShape{0, 64, 64, 64}.blocks() == 0));
}
