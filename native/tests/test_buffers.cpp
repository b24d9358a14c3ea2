// native/tests/test_buffers.cpp — tile pool and undo arena: what goes out comes back, and no more.
// Ownership: values of each test.
// Threads:   the main thread.
// Errors:    CHECKs.
#include <cstring>
#include <random>
#include <vector>

#include "check.hpp"
#include "pccl/buffers.hpp"

using namespace pccl;

namespace {

std::vector<std::byte> noise(std::size_t bytes, unsigned seed) {
  std::mt19937 dice(seed);
  std::vector<std::byte> data(bytes);
  for (std::byte& byte : data) byte = static_cast<std::byte>(dice());
  return data;
}

}  // namespace

TEST(a_tile_is_as_large_as_asked_for_and_aligned_for_any_vector) {
  BufferPool pool;
  for (const std::size_t bytes : {0u, 1u, 2048u, 2049u, 16384u, 65536u, 65537u, 262144u}) {
    const Buffer tile = pool.take(bytes);
    CHECK(static_cast<bool>(tile));
    CHECK(reinterpret_cast<std::uintptr_t>(tile.data()) % 64 == 0);
    if (bytes > 0) std::memset(tile.data(), 0x5a, bytes);  // the sanitizer looks on
    CHECK(pool.bytes_in_use() >= bytes);
  }
  CHECK(pool.bytes_in_use() == 0);
}

TEST(nothing_larger_than_a_slice_is_a_tile) {
  BufferPool pool;
  CHECK(!pool.take(262145));
  CHECK(!pool.take(~std::size_t{0}));
  CHECK(pool.bytes_in_use() == 0);
}

TEST(tiles_move_without_being_given_back_twice) {
  BufferPool pool;
  Buffer first = pool.take(100);
  std::byte* const data = first.data();
  Buffer second = std::move(first);
  CHECK(second.data() == data && !first);
  Buffer third = pool.take(100);
  CHECK(third.data() != data);
  const std::size_t both = pool.bytes_in_use();
  third = std::move(second);  // gives its own back
  CHECK(third.data() == data);
  CHECK(pool.bytes_in_use() == both / 2);
  third = Buffer{};
  CHECK(pool.bytes_in_use() == 0);
  const Buffer again = pool.take(100);
  CHECK(again.data() == data);  // the cached page that was used last
}

TEST(a_pool_under_load_never_hands_out_memory_that_somebody_holds) {
  BufferPool pool;
  std::mt19937 dice(7);
  struct Held { Buffer tile; std::size_t bytes; std::byte fill; };
  std::vector<Held> held;
  const auto intact = [](const Held& one) {
    for (std::size_t i = 0; i < one.bytes; i += 97) {
      if (one.tile.data()[i] != one.fill) return false;
    }
    return true;
  };
  for (int round = 0; round < 4000; ++round) {
    if (held.size() < 120 && dice() % 5 < 3) {
      const std::size_t bytes = 1 + dice() % (dice() % 4 == 0 ? 262144 : 5000);
      held.push_back({pool.take(bytes), bytes, static_cast<std::byte>(round)});
      std::memset(held.back().tile.data(), round & 255, bytes);
    } else if (!held.empty()) {
      std::swap(held[dice() % held.size()], held.back());
      CHECK(intact(held.back()));
      held.pop_back();
    }
  }
  for (const Held& one : held) CHECK(intact(one));
  held.clear();
  CHECK(pool.bytes_in_use() == 0);
}

TEST(undo_copies_are_exact_at_every_alignment_and_length) {
  UndoArena arena;
  const std::vector<std::byte> source = noise(4096, 1);
  const UndoBlock block = arena.take(8192);
  for (std::size_t to = 0; to < 20; ++to) {
    for (std::size_t from = 0; from < 20; from += 3) {
      for (const std::size_t bytes : {0u, 1u, 7u, 15u, 16u, 63u, 64u, 65u, 129u, 1000u, 2047u}) {
        std::memset(block.data(), 0x77, 2500);
        UndoArena::save(block.data() + 32 + to, source.data() + from, bytes);
        CHECK(std::memcmp(block.data() + 32 + to, source.data() + from, bytes) == 0);
        CHECK(block.data()[31 + to] == std::byte{0x77});
        CHECK(block.data()[32 + to + bytes] == std::byte{0x77});
      }
    }
  }
}

TEST(an_undo_block_is_reused_by_an_operation_of_about_its_size) {
  UndoArena arena;
  std::byte* data = nullptr;
  {
    const UndoBlock block = arena.take(1 << 20);
    data = block.data();
    data[0] = data[(1 << 20) - 1] = std::byte{1};
  }
  {
    const UndoBlock block = arena.take(900'000);
    CHECK(block.data() == data);
  }
  const UndoBlock small = arena.take(1000);
  CHECK(small.data() != data);  // a small operation does not sit on a large block
}

TEST(blocks_that_are_out_at_once_do_not_overlap) {
  UndoArena arena;
  std::vector<UndoBlock> blocks;
  for (int i = 0; i < 20; ++i) {
    blocks.push_back(arena.take(100'000));
    std::memset(blocks.back().data(), i, 100'000);
  }
  for (int i = 0; i < 20; ++i) {
    const std::byte* data = blocks[static_cast<std::size_t>(i)].data();
    CHECK(data[0] == static_cast<std::byte>(i) && data[99'999] == static_cast<std::byte>(i));
  }
}

TEST(an_arena_shrinks_to_what_the_recent_past_used) {
  UndoArena arena;
  {
    std::vector<UndoBlock> large;
    for (int i = 0; i < 8; ++i) large.push_back(arena.take(8u << 20));
    CHECK(arena.bytes_held() == 8 * (8u << 20));
  }
  CHECK(arena.bytes_held() <= 8 * (8u << 20));
  // A smaller job follows: what only the larger one needed goes back to the system.
  for (int i = 0; i < 300; ++i) {
    const UndoBlock block = arena.take(1u << 20);
    CHECK(static_cast<bool>(block));
  }
  CHECK(arena.bytes_held() <= 2 * (1u << 20));
}

TEST(an_empty_operation_has_an_undo_block_too) {
  UndoArena arena;
  const UndoBlock block = arena.take(0);
  CHECK(static_cast<bool>(block));
}
