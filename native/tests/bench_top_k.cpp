// native/tests/bench_top_k.cpp — prints the speed of top_k beside that of reading memory.
// Usage: bench_top_k — GB/s of a matrix of 256 MB, 64 of each 64 x 64; best of five.
// Ownership: none.
// Threads:   one.
// Errors:    none: it measures, the tests check.
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <random>
#include <span>
#include <vector>

#include "pccl/top_k.hpp"

namespace {

/// Processor time: on a busy machine a long measurement is interrupted and a short one is not.
double processor_s() {
  timespec now{};
  ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) * 1e-9;
}

template <class F>
double best_gigabytes_per_second(std::size_t size, F&& run) {
  double best = 0;
  for (int repeat = 0; repeat < 5; ++repeat) {
    const double start_s = processor_s();
    run();
    best = std::max(best, static_cast<double>(size) / (processor_s() - start_s) * 1e-9);
  }
  return best;
}

}  // namespace

int main() {
  constexpr std::size_t side = 8192;
  struct alignas(64) CacheLine { float words[16]; };  // as torch aligns its tensors
  std::vector<CacheLine> memory(side * side / 16);
  const std::span<float> values(memory.data()->words, side * side);
  std::mt19937 dice(1);
  std::normal_distribution<float> normal;
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = normal(dice);
  const pccl::BlockShape shape{side, side, 64, 64};
  std::vector<std::uint16_t> positions(shape.blocks() * 64);
  const std::size_t size = values.size() * sizeof(float);
  std::uint64_t sum = 0;
  const double read = best_gigabytes_per_second(size, [&] {
    std::uint64_t lanes[8] = {};
    for (std::size_t i = 0; i < values.size(); i += 16) {
      std::uint64_t words[8];
      std::memcpy(words, values.data() + i, sizeof words);
      for (int lane = 0; lane < 8; ++lane) lanes[lane] += words[lane];
    }
    for (const std::uint64_t lane : lanes) sum += lane;
  });
  const double selected = best_gigabytes_per_second(
      size, [&] { pccl::top_k(values.data(), shape, 64, positions.data()); });
  std::printf("read %.1f GB/s, top_k %.1f GB/s, ratio %.2f (sum %llu)\n", read, selected,
              selected / read, static_cast<unsigned long long>(sum));
}
