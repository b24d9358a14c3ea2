// native/tests/test_memory.cpp — allocations that fail, one after the other, in running engines.
// Ownership: each test owns its world.
// Threads:   the test's, one per rank, and the engines' own.
// Errors:    CHECKs; std::terminate would fail the program.
#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <new>

#include "collective_world.hpp"

namespace {

std::atomic<long> allowed{-1};  // allocations that still succeed; below 0: all do
std::atomic<long> refused{0};
thread_local bool exempt = false;

bool refuse() noexcept {
  if (exempt || allowed.load(std::memory_order_relaxed) < 0) return false;
  if (allowed.fetch_sub(1) > 0) return false;
  allowed.store(-1);  // one failure: what follows shows whether all is in order
  ++refused;
  return true;
}

// Out of line, as is release(): where only one of them is inlined, the compiler sees new paired
// with free, or malloc with delete, and warns.
[[gnu::noinline]] void* take_or_not(std::size_t bytes) noexcept {
  return refuse() ? nullptr : std::malloc(bytes == 0 ? 1 : bytes);
}

[[gnu::noinline]] void* take(std::size_t bytes) {
  void* memory = take_or_not(bytes);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}

[[gnu::noinline]] void release(void* memory) noexcept { std::free(memory); }

}  // namespace

void* operator new(std::size_t bytes) { return take(bytes); }
void* operator new[](std::size_t bytes) { return take(bytes); }
void* operator new(std::size_t bytes, const std::nothrow_t&) noexcept { return take_or_not(bytes); }
void operator delete(void* memory, const std::nothrow_t&) noexcept { release(memory); }
void operator delete(void* memory) noexcept { release(memory); }
void operator delete[](void* memory) noexcept { release(memory); }
void operator delete(void* memory, std::size_t) noexcept { release(memory); }
void operator delete[](void* memory, std::size_t) noexcept { release(memory); }

using namespace world;

namespace {

constexpr std::size_t count = 40'000;
constexpr int steps = 3;

struct Ended {
  bool committed = false;
  std::string code;
};

/// One step of one sum; what became of it here.  Gives up when another rank has failed.
Ended attempt(Engine& engine, std::vector<float>& data, Algorithm algorithm,
              const std::atomic<bool>& somebody_failed) {
  Ended ended;
  try {
    const BegunStep begun = engine.begin_step("step", 5);
    engine.post(post_of(begun.step, 0, data.data(), data.data(), count, Dtype::f32, ReduceOp::sum,
                        algorithm));
    engine.seal(begun.step);
    for (int i = 0; i < 200 && !engine.wait_step(begun.step, 0.05); ++i) {
      if (somebody_failed) return ended;
    }
    ended.committed = engine.result(begun.step).state == StepState::committed;
    engine.release(begun.step);
  } catch (const EngineFailure& failure) {
    ended.code = failure.code();
  } catch (const std::bad_alloc&) {
    ended.code = "bad_alloc";  // the caller's own: nothing here is half done, the engine has ended
  }
  return ended;
}

/// Two engines; the allocation after `number` others fails.
void fail_at(long number, Algorithm algorithm) {
  exempt = true;
  // Longer than the engines: who has not failed may hold on to it.
  std::vector<std::vector<float>> inputs(2, std::vector<float>(count));
  World world(2);
  world.install(1, world.everybody());
  std::atomic<bool> somebody_failed{false};
  World::all(world.everybody(), [&](std::size_t rank) {
    exempt = false;
    std::vector<float>& data = inputs[rank];
    for (int i = 0; i < steps; ++i) {
      std::fill(data.begin(), data.end(), static_cast<float>(rank + 1));
      if (i == 1) allowed.store(number);  // with the plans made and the lanes up
      const Ended ended = attempt(*world.engines[rank], data, algorithm, somebody_failed);
      exempt = true;
      if (!ended.code.empty()) {
        CHECK(ended.code == "memory" || ended.code == "bad_alloc");
        somebody_failed = true;
      }
      const float expected = ended.committed ? 3.0f : static_cast<float>(rank + 1);
      if (ended.committed || ended.code == "memory") {
        CHECK(std::all_of(data.begin(), data.end(), [=](float x) { return x == expected; }));
      }
      exempt = false;
      if (!ended.committed) break;
    }
    exempt = true;
  });
  allowed.store(-1);
  for (const auto& engine : world.engines) {
    for (const EngineEvent& event : engine->drain_events()) {
      if (event.kind == EngineEvent::Kind::failed) CHECK(!event.text.empty());
    }
  }
}

/// One step that holds every collective, in equal and unequal parts.
void run_every_collective(World& world, std::vector<Side>& sides, std::size_t rank,
                          std::atomic<bool>& somebody_failed) {
  Engine& engine = *world.engines[rank];
  const auto made = [&] {
    std::vector<Posted> all;
    for (Side& side : sides) all.push_back(side.posted(0, static_cast<Tag>(all.size())));
    return all;
  }();
  exempt = false;
  try {
    const BegunStep begun = engine.begin_step("step", 5);
    for (Posted posted : made) {
      posted.step = begun.step;
      engine.post(posted);
    }
    engine.seal(begun.step);
    bool decided = false;
    for (int i = 0; i < 200 && !decided && !somebody_failed; ++i) {
      decided = engine.wait_step(begun.step, 0.05);
    }
    exempt = true;
    if (!decided) return;
    CHECK(engine.result(begun.step).state == StepState::committed);
    for (const Side& side : sides) CHECK(side.right(world.everybody()));
  } catch (const EngineFailure& failure) {
    exempt = somebody_failed = true;
    CHECK(failure.code() == "memory");
    for (const Side& side : sides) CHECK(side.kept());
  } catch (const std::bad_alloc&) {  // the caller's own
    exempt = somebody_failed = true;
  }
}

/// Two engines; from their first step on, the allocation after `number` others fails.
void fail_collectives_at(long number) {
  exempt = true;
  std::vector<std::vector<Side>> sides(2);
  for (const std::size_t rank : {0u, 1u}) {
    for (const Collective kind : every_collective) {
      for (const bool uneven : {false, true}) {
        if (uneven && !may_be_uneven(kind)) continue;
        sides[rank].emplace_back(Case{.kind = kind, .size = 2, .root = 1, .count = 3'000,
                                      .uneven = uneven, .in_place = true},
                                 rank);
      }
    }
  }
  World world(2);
  world.install(1, world.everybody());
  std::atomic<bool> somebody_failed{false};
  allowed.store(number);
  World::all(world.everybody(), [&](std::size_t rank) {
    exempt = true;
    run_every_collective(world, sides[rank], rank, somebody_failed);
  });
  allowed.store(-1);
}

TEST(an_allocation_that_fails_ends_the_engine_and_never_its_host) {
  for (const Algorithm algorithm : {Algorithm::direct, Algorithm::exchange}) {
    for (long number = 0; number < 150; ++number) fail_at(number, algorithm);
  }
  CHECK(refused > 100);
}

TEST(an_allocation_that_fails_in_any_collective_ends_the_engine_and_gives_inputs_back) {
  const long before = refused;
  const long most = check::sanitized ? 300 : 1'500;
  for (long number = 0; number < most; number += check::sanitized ? 7 : 3) {
    fail_collectives_at(number);
  }
  CHECK(refused - before > 40);
}

}  // namespace
