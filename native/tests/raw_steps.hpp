// native/tests/raw_steps.hpp — steps of one all-reduce that an engine has with a RawPeer.
// Ownership: callers own what they post.
// Threads:   the test's.
// Errors:    as the engine's.
#pragma once

#include "raw_peer.hpp"

namespace world {

inline constexpr std::size_t count = 300'000;  // of float32: several slices per shard
inline constexpr Descriptor summed{Dtype::f32, ReduceOp::sum, {}, Algorithm::direct, count, false};

inline std::vector<float> ones() { return std::vector<float>(count, 1.0f); }

inline StepId post_step(Engine& engine, std::vector<float>& data, bool sealed = true) {
  const BegunStep begun = engine.begin_step("step", 20);
  engine.post(post_of(begun.step, 0, data.data(), data.data(), data.size(), Dtype::f32,
                      ReduceOp::sum, Algorithm::direct));
  if (sealed) engine.seal(begun.step);
  return begun.step;
}

}  // namespace world
