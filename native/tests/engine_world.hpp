// native/tests/engine_world.hpp — several engines in one process, and a scripted coordinator.
// Ownership: the world owns its engines.
// Threads:   the test's main thread scripts; `all` runs one thread per rank.
// Errors:    CHECKs.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "check.hpp"
#include "pccl/clock.hpp"
#include "pccl/engine.hpp"

namespace world {

using namespace pccl;

inline PeerId peer_id(std::size_t rank) {
  PeerId id;
  id.bytes[0] = static_cast<std::uint8_t>(rank + 1);
  return id;
}

class World {
 public:
  /// Port 9 is the discard service: nobody there, and mostly nobody needed.
  explicit World(std::size_t size, std::uint16_t lanes = 1, std::uint16_t coordinator_port = 9,
                 bool shared_memory = true,
                 const std::function<std::shared_ptr<const TlsContext>(std::size_t)>& tls = {},
                 const std::vector<std::string>& ucx_libraries = {}) {
    for (std::size_t rank = 0; rank < size; ++rank) {
      EngineConfig config;
      config.tls = tls ? tls(rank) : nullptr;
      config.peer_id = config.tls ? config.tls->peer() : peer_id(rank);
      config.lanes = lanes;
      config.spin_us = 0;
      config.shared_memory = shared_memory;
      config.ucx_libraries = ucx_libraries;
      engines.push_back(std::make_unique<Engine>(config));
      Secret secret;
      secret.bytes[3] = static_cast<std::uint8_t>(rank + 7);
      engines.back()->admit({{}, rank + 1, secret, 1}, {"127.0.0.1", coordinator_port, 1.0});
      members.push_back({{config.peer_id, rank + 1, 0},
                         {config.peer_id, rank + 1, secret, "127.0.0.1", engines[rank]->port()},
                         1});
    }
  }

  [[nodiscard]] View view_of(Epoch epoch, const std::vector<std::size_t>& ranks,
                             Pause pause) const {
    View view{1, epoch, {}, pause};
    for (const std::size_t rank : ranks) view.members.push_back(members[rank].member);
    return view;
  }
  [[nodiscard]] std::vector<MemberEntry> entries_of(const std::vector<std::size_t>& ranks) const {
    std::vector<MemberEntry> entries;
    for (const std::size_t rank : ranks) entries.push_back(members[rank]);
    return entries;
  }
  /// INSTALL of `ranks` at all of them.
  void install(Epoch epoch, const std::vector<std::size_t>& ranks,
               const std::vector<Decision>& decisions = {}, StepId committed_below = 0,
               Pause pause = Pause::none) {
    for (const std::size_t rank : ranks) {
      engines[rank]->install(view_of(epoch, ranks, pause), entries_of(ranks), committed_below,
                             decisions);
    }
  }
  [[nodiscard]] std::vector<std::size_t> everybody() const {
    std::vector<std::size_t> ranks(engines.size());
    for (std::size_t i = 0; i < ranks.size(); ++i) ranks[i] = i;
    return ranks;
  }
  /// Runs `body(rank)` on a thread for each of `ranks`, and waits for them.
  static void all(const std::vector<std::size_t>& ranks,
                  const std::function<void(std::size_t)>& body) {
    std::vector<std::thread> threads;
    for (const std::size_t rank : ranks) threads.emplace_back([&body, rank] { body(rank); });
    for (std::thread& thread : threads) thread.join();
  }

  /// No lane ended but those that an end gave up for silence, as on a machine that is too busy to
  /// run the other one; each has two ends.
  [[nodiscard]] bool lanes_ended_by_silence_alone() const {
    std::uint64_t lost = 0;
    std::uint64_t silent = 0;
    for (const auto& engine : engines) {
      lost += engine->stats().executor.lanes_lost;
      silent += engine->stats().executor.lanes_silent;
    }
    return lost <= 2 * silent;
  }

  std::vector<std::unique_ptr<Engine>> engines;
  std::vector<MemberEntry> members;
};

inline Posted post_of(StepId step, Tag tag, const void* input, void* output, std::uint64_t count,
                      Dtype dtype, ReduceOp op, Algorithm algorithm, double weight = 1.0,
                      bool deterministic = false) {
  Posted posted{step, tag, {}, static_cast<const std::byte*>(input),
                static_cast<std::byte*>(output), weight};
  posted.descriptor = {dtype, op, {}, algorithm, count, deterministic};
  return posted;
}

/// A step of one float32 sum in place; true when it committed.
inline bool sum_step(Engine& engine, std::vector<float>& data, Algorithm algorithm,
                     double timeout_s = 20.0) {
  const BegunStep begun = engine.begin_step("step", timeout_s);
  engine.post(post_of(begun.step, 0, data.data(), data.data(), data.size(), Dtype::f32,
                      ReduceOp::sum, algorithm));
  engine.seal(begun.step);
  if (!engine.wait_step(begun.step, timeout_s)) return false;
  const bool committed = engine.result(begun.step).state == StepState::committed;
  engine.release(begun.step);
  return committed;
}

}  // namespace world
