// native/tests/bench_kernels.cpp — prints the speed of every kernel and hash on one core.
// Usage: bench_kernels [table] [dtype] — GB/s of elements of the dtype, for a 256 KiB tile, which
// stays in the second-level cache; the best of a few repeats of a few milliseconds each.
// Ownership: none.
// Threads:   one.
// Errors:    none: it measures, the tests check.

#include <chrono>
#include <cstdio>
#include <cstring>
#include <vector>

#include "../src/xxh3/absorb.hpp"
#include "pccl/kernels.hpp"
#include "pccl/xxh3.hpp"

namespace {

constexpr std::size_t tile_size = 256 * 1024;
constexpr const char* dtype_names[] = {"f64", "f32", "f16", "bf16", "i8",  "u8",  "i16",
                                       "u16", "i32", "u32", "i64",  "u64", "bool"};
constexpr const char* op_names[] = {"sum", "avg", "prod", "min", "max"};

/// Buffers of a tile of any dtype and of its widest accumulator (f64 for i8), zeroed: an average of
/// zeros stays a number, whatever the repeats.
struct Tiles {
  std::vector<unsigned char> in = std::vector<unsigned char>(tile_size);
  std::vector<unsigned char> other = std::vector<unsigned char>(8 * tile_size);
  std::vector<unsigned char> acc = std::vector<unsigned char>(8 * tile_size);
};

template <class F>
double gigabytes_per_second(std::size_t size, F&& run) {
  using Clock = std::chrono::steady_clock;
  double best = 0;
  for (int repeat = 0; repeat < 4; ++repeat) {
    int calls = 0;
    const Clock::time_point start = Clock::now();
    std::chrono::duration<double> taken{};
    do {
      for (int i = 0; i < 8; ++i) run();
      calls += 8;
      taken = Clock::now() - start;
    } while (taken.count() < 0.0015);
    const double speed = static_cast<double>(size) * calls / taken.count() * 1e-9;
    if (speed > best) best = speed;
  }
  return best;
}

void bench_op(const pccl::KernelTable& table, std::size_t dtype, std::size_t op, Tiles& tiles) {
  const pccl::Kernels& kernels = table.entries[dtype][op];
  if (kernels.lift == nullptr) return;
  const std::size_t count = tile_size / pccl::size_of(static_cast<pccl::Dtype>(dtype));
  void* const acc = tiles.acc.data();
  void* const in = tiles.in.data();
  void* const other = tiles.other.data();
  const auto bench = [&](auto&& run) { return gigabytes_per_second(tile_size, run); };
  std::printf("%-7s %-5s %-5s", table.name, dtype_names[dtype], op_names[op]);
  std::printf(" lift %6.1f", bench([&] { kernels.lift(acc, in, count, 2.0); }));
  std::printf(" fold %6.1f", bench([&] { kernels.fold(acc, in, count, 2.0); }));
  if (kernels.combine != nullptr)
    std::printf(" combine %6.1f", bench([&] { kernels.combine(acc, acc, in, count); }));
  std::printf(" merge %6.1f", bench([&] { kernels.merge(acc, other, count); }));
  std::printf(" lower %6.1f\n", bench([&] { kernels.lower(in, acc, count, 4.0); }));
}

void bench_hashes(Tiles& tiles) {
  const std::span<const std::byte> bytes(reinterpret_cast<const std::byte*>(tiles.in.data()),
                                         tile_size);
  volatile std::uint64_t sink = 0;
  const auto report = [&](const char* name, double speed) {
    std::printf("%-12s %6.1f\n", name, speed);
  };
  report("xxh3_64", gigabytes_per_second(tile_size, [&] { sink = pccl::xxh3_64(bytes); }));
  report("xxh3_128", gigabytes_per_second(tile_size, [&] { sink = pccl::xxh3_128(bytes).high; }));
  const pccl::Xxh3Absorbers absorbers = pccl::available_absorbers();
  for (std::size_t i = 0; i < absorbers.count; ++i) {
    std::uint64_t lanes[pccl::xxh3_lane_count] = {};
    std::printf("absorb[%zu]    %6.1f\n", i, gigabytes_per_second(tile_size, [&] {
                  absorbers.functions[i](lanes, tiles.in.data(), tile_size, tiles.other.data());
                }));
  }
}

}  // namespace

int main(int argc, char** argv) {
  Tiles tiles;
  bench_hashes(tiles);
  const pccl::KernelTables available = pccl::available_kernels();
  for (std::size_t i = 0; i < available.count; ++i) {
    const pccl::KernelTable& table = *available.tables[i];
    if (argc > 1 && std::strcmp(argv[1], table.name) != 0) continue;
    for (std::size_t dtype = 0; dtype < pccl::arithmetic_dtype_count; ++dtype) {
      if (argc > 2 && std::strcmp(argv[2], dtype_names[dtype]) != 0) continue;
      for (std::size_t op = 0; op < pccl::reduce_op_count; ++op) bench_op(table, dtype, op, tiles);
    }
  }
}
