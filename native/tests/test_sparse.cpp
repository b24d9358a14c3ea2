// native/tests/test_sparse.cpp — top-k against sorting, with every table; the index code there and
// back, how long it is, and that no other bytes pass for one.
// Ownership: each test owns its arrays.
// Threads:   one.
// Errors:    CHECKs.
#include "pccl/sparse.hpp"

#include <algorithm>
#include <bit>
#include <chrono>
#include <cmath>
#include <numeric>
#include <vector>

#include "check.hpp"
#include "kernel_testing.hpp"

using namespace pccl;
using kernel_testing::for_each_table;
using kernel_testing::Random;

namespace {

using Places = std::vector<std::uint16_t>;

std::uint32_t key(float value) {
  return std::isnan(value) ? 0x7f800001u : std::bit_cast<std::uint32_t>(std::fabs(value));
}

Places by_sorting(const std::vector<float>& in, const Sparsity& sparsity) {
  Places all;
  for (std::size_t first = 0; first < in.size(); first += sparsity.block) {
    const std::size_t count = std::min<std::size_t>(sparsity.block, in.size() - first);
    Places places(count);
    std::iota(places.begin(), places.end(), std::uint16_t{0});
    std::stable_sort(places.begin(), places.end(), [&](std::uint16_t a, std::uint16_t b) {
      return key(in[first + a]) > key(in[first + b]);
    });
    places.resize(std::min<std::size_t>(sparsity.k, count));
    std::sort(places.begin(), places.end());
    all.insert(all.end(), places.begin(), places.end());
  }
  return all;
}

std::vector<float> drawn(Random& random, std::size_t count, int shape) {
  std::vector<float> data(count);
  for (float& element : data) {
    const std::uint64_t bits = random.next();
    switch (shape) {
      case 0: element = static_cast<float>(static_cast<double>(bits >> 11) * 0x1p-53 - 0.5); break;
      case 1: element = static_cast<float>(static_cast<int>(bits % 7) - 3); break;  // ties
      case 2: element = bits % 50 == 0 ? NAN : bits % 51 == 0 ? -INFINITY : 1.0f; break;
      case 3: element = bits % 1000 == 0 ? 1.0f : 0.0f; break;
      default: element = std::bit_cast<float>(static_cast<std::uint32_t>(bits)); break;
    }
  }
  if (shape == 0) std::sort(data.begin(), data.begin() + static_cast<long>(count / 2));
  return data;
}

Places selected(const std::vector<float>& in, const Sparsity& sparsity) {
  Places places(sparsity.kept(in.size()) + 1, 0xbeef);
  CHECK(top_k(in.data(), in.size(), sparsity, places.data()));
  CHECK(places.back() == 0xbeef);
  CHECK(are_places(places.data(), in.size(), sparsity));
  places.pop_back();
  return places;
}

std::vector<std::byte> coded(const Places& places, std::uint64_t count, const Sparsity& sparsity) {
  std::vector<std::byte> out(index_bytes_max(sparsity, count) + 1, std::byte{0x5a});
  const std::uint64_t bytes = encode_indices(places.data(), count, sparsity, out.data());
  CHECK(bytes < out.size() && out.back() == std::byte{0x5a});
  out.resize(bytes);
  return out;
}

constexpr Sparsity every_sparsity[] = {{4096, 64}, {4096, 1}, {4096, 4096}, {64, 1}, {64, 63},
                                       {1, 1},     {100, 7},  {65536, 600}, {32, 16}};

}  // namespace

TEST(top_k_is_what_sorting_gives) {
  Random random{3};
  for (const Sparsity& sparsity : every_sparsity) {
    for (int shape = 0; shape < 5; ++shape) {
      for (const std::size_t count : {0u, 1u, 63u, 64u, 65u, 4096u, 10'001u}) {
        const std::vector<float> in = drawn(random, count, shape);
        CHECK(selected(in, sparsity) == by_sorting(in, sparsity));
      }
    }
  }
}

TEST(every_table_makes_the_same_passes) {
  Random random{4};
  for (int shape = 0; shape < 5; ++shape) {
    const std::vector<float> in = drawn(random, 5003, shape);
    for (const std::size_t columns : {16u, 64u, 80u, 208u}) {
      std::vector<std::uint32_t> expected(columns, 5);
      scalar_kernels().column_maxima(expected.data(), columns, in.data(), in.size() / columns);
      for_each_table([&](const KernelTable& table) {
        std::vector<std::uint32_t> maxima(columns, 5);
        table.column_maxima(maxima.data(), columns, in.data(), in.size() / columns);
        CHECK(maxima == expected);
      });
    }
    for (const std::uint32_t least : {0u, 0x3e000000u, 0x3f800000u, 0x7f800001u}) {
      std::vector<std::uint32_t> expected;
      for (std::uint32_t i = 0; i < in.size(); ++i) {
        if ((std::bit_cast<std::uint32_t>(in[i]) & 0x7fffffffu) >= least) expected.push_back(i);
      }
      for_each_table([&](const KernelTable& table) {
        std::vector<std::uint32_t> places(in.size() + 16);
        places.resize(table.find_magnitudes(places.data(), in.data(), in.size(), least));
        CHECK(places == expected);
        CHECK(table.count_magnitudes(in.data(), in.size(), least) == expected.size());
      });
    }
  }
}

TEST(places_survive_their_code) {
  Random random{5};
  for (const Sparsity& sparsity : every_sparsity) {
    for (int shape = 0; shape < 5; ++shape) {
      for (const std::size_t count : {0u, 1u, 63u, 64u, 65u, 4096u, 10'001u, 70'000u}) {
        const Places places = selected(drawn(random, count, shape), sparsity);
        const auto bytes = coded(places, count, sparsity);
        Places back(places.size());
        CHECK(decode_indices(bytes, count, sparsity, back.data()));
        CHECK(back == places);
      }
    }
  }
}

TEST(at_the_defaults_a_place_takes_seven_and_a_half_bits) {
  Random random{6};
  const Sparsity sparsity{};
  const std::size_t count = 1u << 22;
  const Places places = selected(drawn(random, count, 4), sparsity);
  const double bits = static_cast<double>(coded(places, count, sparsity).size()) * 8;
  const double each = bits / static_cast<double>(places.size());
  std::printf("  %.3f bits a place; with 2-bit values %.1f times less than f32\n", each,
              4096.0 * 32 / (64 * (each + 2)));
  CHECK(rice_bits(sparsity) == 5);
  CHECK(each > 7.36 && each < 7.6);
}

TEST(places_out_of_order_or_bounds_are_none) {
  const Sparsity sparsity{8, 2};
  const auto are = [&](Places places) { return are_places(places.data(), 11, sparsity); };
  CHECK(are({0, 7, 1, 2}));
  CHECK(!are({0, 8, 1, 2}));
  CHECK(!are({7, 7, 1, 2}));
  CHECK(!are({7, 0, 1, 2}));
  CHECK(!are({0, 7, 1, 3}));
}

TEST(no_other_bytes_pass_for_a_code) {
  Random random{7};
  const Sparsity sparsity{256, 9};
  const std::size_t count = 1000;
  const Places places = selected(drawn(random, count, 4), sparsity);
  const auto good = coded(places, count, sparsity);
  Places back(places.size());
  for (std::size_t bytes = 0; bytes < good.size(); ++bytes) {
    CHECK(!decode_indices(std::span(good).first(bytes), count, sparsity, back.data()));
  }
  auto longer = good;
  longer.push_back(std::byte{0});
  CHECK(!decode_indices(longer, count, sparsity, back.data()));
  for (int round = 0; round < 20'000; ++round) {
    auto bad = good;
    if (round % 2 == 0) {
      bad[random.next() % bad.size()] ^= static_cast<std::byte>(1u << (random.next() % 8));
    } else {
      for (std::byte& byte : bad) byte = static_cast<std::byte>(random.next());
    }
    // What passes is places, in order and inside, and codes to these very bytes.
    if (!decode_indices(bad, count, sparsity, back.data())) continue;
    CHECK(coded(back, count, sparsity) == bad);
    std::size_t at = 0;
    for (std::size_t first = 0; first < count; first += sparsity.block) {
      const std::size_t length = std::min<std::size_t>(sparsity.block, count - first);
      for (std::size_t i = 0; i < sparsity.k; ++i, ++at) {
        CHECK(back[at] < length && (i == 0 || back[at] > back[at - 1]));
      }
    }
  }
}
