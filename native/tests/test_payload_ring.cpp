// native/tests/test_payload_ring.cpp — payloads through memory: the ring alone, and lanes with it.
// Ownership: test values.
// Threads:   see fragile_world.hpp.
// Errors:    CHECKs.
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <numeric>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "fragile_world.hpp"
#include "pccl/payload_ring.hpp"

using namespace world;

namespace {

/// Both ends of one ring.
struct Ends {
  Ends() : out(PayloadRing::make()) {
    CHECK(out != nullptr);
    in = PayloadRing::open(out->name());
    CHECK(in != nullptr);
  }
  std::unique_ptr<PayloadRing> out;
  std::unique_ptr<PayloadRing> in;
};

bool write(PayloadRing& ring, std::size_t bytes, std::uint8_t value) {
  std::byte* room = ring.reserve(bytes);
  if (room == nullptr) return false;
  std::fill_n(room, bytes, std::byte{value});
  ring.produce(bytes);
  return true;
}

bool holds(const std::byte* data, std::size_t bytes, std::uint8_t value) {
  return data != nullptr && std::all_of(data, data + bytes, [&](std::byte byte) {
           return byte == std::byte{value};
         });
}

}  // namespace

TEST(payloads_of_any_size_come_out_as_they_went_in) {
  Ends ends;
  std::mt19937 random(7);
  std::vector<std::size_t> lengths;
  std::uint8_t written = 0, read = 0;
  for (int i = 0; i < 2000; ++i) {
    const std::size_t bytes = 1 + random() % (256 * 1024);
    while (!write(*ends.out, bytes, written)) {
      CHECK(!lengths.empty());
      CHECK(holds(ends.in->front(lengths.front()), lengths.front(), read++));
      (void)ends.in->consume(lengths.front());
      lengths.erase(lengths.begin());
    }
    ++written;
    lengths.push_back(bytes);
  }
  for (const std::size_t bytes : lengths) {
    CHECK(!ends.out->empty());
    CHECK(holds(ends.in->front(bytes), bytes, read++));
    (void)ends.in->consume(bytes);
  }
  CHECK(ends.out->empty() && ends.in->front(1) == nullptr);
}

TEST(who_waits_for_room_is_told_once_when_half_of_it_is_free) {
  Ends ends;
  constexpr std::size_t bytes = ring_bytes / 8;
  for (std::uint8_t i = 0; i < 8; ++i) CHECK(write(*ends.out, bytes, i));
  CHECK(ends.out->reserve(bytes) == nullptr);
  CHECK(ends.out->await_room(bytes));
  int told = 0;
  for (int i = 0; i < 8; ++i) {
    told += ends.in->consume(bytes) ? 1 : 0;
    CHECK(told == (i < 3 ? 0 : 1));
  }
  CHECK(!ends.out->await_room(bytes));  // there is room by now, and nobody is to tell
  CHECK(write(*ends.out, bytes, 9) && !ends.in->consume(bytes));
}

TEST(counters_that_the_other_side_invents_lead_nowhere_outside) {
  Ends ends;
  const std::string path = "/proc/self/fd/" + std::to_string(ends.out->name().descriptor);
  const Fd file(::open(path.c_str(), O_RDWR | O_CLOEXEC));
  void* mapped = ::mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, file.get(), 0);
  CHECK(mapped != MAP_FAILED);
  auto* counters = static_cast<std::uint64_t*>(mapped);
  CHECK(write(*ends.out, 1000, 1));
  constexpr auto most = ~std::uint64_t{0};
  for (const std::uint64_t taken : {std::uint64_t{5000}, most, most / 2}) {
    counters[128 / 8] = taken;
    CHECK(ends.out->reserve(1000) == nullptr);
  }
  counters[64 / 8] = ~std::uint64_t{0};
  for (int i = 0; i < 40; ++i) {
    const std::byte* data = ends.in->front(256 * 1024);
    CHECK(data != nullptr);
    CHECK(std::accumulate(data, data + 256 * 1024, 0u, [](unsigned sum, std::byte byte) {
            return sum + std::to_integer<unsigned>(byte);
          }) <= 1000u);
    (void)ends.in->consume(256 * 1024);
  }
  CHECK(ends.in->front(std::size_t{ring_bytes} + 1) == nullptr);
  ::munmap(mapped, 4096);
}

TEST(nothing_but_the_offered_file_is_opened_and_nobody_can_shrink_it) {
  const auto ring = PayloadRing::make();
  CHECK(::ftruncate(static_cast<int>(ring->name().descriptor), 0) != 0);
  RingName name = ring->name();
  name.token[3] ^= std::byte{1};
  CHECK(PayloadRing::open(name) == nullptr);
  name = ring->name();
  name.descriptor = 0;
  CHECK(PayloadRing::open(name) == nullptr);
  name = ring->name();
  name.process = 1;
  CHECK(PayloadRing::open(name) == nullptr);
  name = ring->name();
  name.bytes /= 2;
  CHECK(PayloadRing::open(name) == nullptr);
  CHECK(PayloadRing::open(ring->name()) != nullptr);
  ring->opened();
  CHECK(PayloadRing::open(ring->name()) == nullptr);  // the descriptor is closed: it is over
}

TEST(a_file_of_the_right_name_and_size_that_could_be_shrunk_is_not_opened) {
  const std::string called = "pccl-ring-" + std::string(32, '0');
  for (const bool sealed : {false, true}) {
    const Fd file(::memfd_create(called.c_str(), MFD_CLOEXEC | MFD_ALLOW_SEALING));
    CHECK(::ftruncate(file.get(), 4096 + ring_bytes) == 0);
    if (sealed) {
      CHECK(::fcntl(file.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) == 0);
    }
    RingName name;
    name.process = static_cast<std::uint32_t>(::getpid());
    name.descriptor = static_cast<std::uint32_t>(file.get());
    name.bytes = ring_bytes;
    CHECK((PayloadRing::open(name) != nullptr) == sealed);
  }
}

namespace {

std::uint64_t by_memory(World& world) {
  std::uint64_t bytes = 0;
  for (const auto& engine : world.engines) bytes += engine->stats().executor.bytes_by_memory;
  return bytes;
}

/// Some steps of a large sum; whether all results are exact.
bool sums(World& world, std::size_t count, int steps, Algorithm algorithm) {
  std::vector<std::uint8_t> right(world.engines.size(), 0);
  World::all(world.everybody(), [&](std::size_t rank) {
    std::vector<float> data(count);
    bool exact = true;
    for (int step = 0; step < steps; ++step) {
      for (std::size_t i = 0; i < count; ++i) data[i] = static_cast<float>(i % 7 + rank);
      exact = sum_step(*world.engines[rank], data, algorithm) && exact;
      const auto size = static_cast<float>(world.engines.size());
      for (std::size_t i = 0; i < count; ++i) {
        const float wanted = size * static_cast<float>(i % 7) + size * (size - 1) / 2;
        exact = exact && data[i] == wanted;
      }
    }
    right[rank] = exact ? 1 : 0;
  });
  return std::all_of(right.begin(), right.end(), [](std::uint8_t one) { return one == 1; });
}

}  // namespace

TEST(large_payloads_go_through_memory_and_results_are_exact) {
  for (const Algorithm algorithm : {Algorithm::direct, Algorithm::ring, Algorithm::exchange}) {
    for (const std::size_t size : {std::size_t{2}, std::size_t{3}}) {
      World world(size, 2);
      world.install(1, world.everybody());
      CHECK(sums(world, 1u << 20, 3, algorithm));
      CHECK(by_memory(world) > std::uint64_t{4} << 20);
    }
  }
}

TEST(one_side_that_does_without_memory_is_enough_to_do_without) {
  World world(2);
  EngineConfig config;
  config.peer_id = peer_id(1);
  config.spin_us = 0;
  config.shared_memory = false;
  world.engines[1] = std::make_unique<Engine>(config);
  Secret secret = world.members[1].endpoint.secret;
  world.engines[1]->admit({{}, 2, secret, 1}, {"127.0.0.1", 9, 1.0});
  world.members[1].endpoint.port = world.engines[1]->port();
  world.install(1, world.everybody());
  CHECK(sums(world, 1u << 20, 2, Algorithm::direct));
  CHECK(by_memory(world) == 0);
}

TEST(lanes_that_are_cut_lose_nothing_that_was_in_their_rings) {
  FragileWorld world(2, 2, 9, true);
  std::atomic<bool> over{false};
  std::thread cutter([&] {
    while (!over) {
      std::this_thread::sleep_for(std::chrono::milliseconds(30));
      for (const auto& proxy : world.proxies) proxy->cut();
    }
  });
  CHECK(sums(world, 4u << 20, check::sanitized ? 3 : 20, Algorithm::direct));
  over = true;
  cutter.join();
  CHECK(world.cuts() > 0 && by_memory(world) > 0);
}
