// native/tests/plan_setting.hpp — the plans of all ranks for one setting, as tests want them.
// Ownership: plain values.
// Threads:   any.
// Errors:    none.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "pccl/plan.hpp"

namespace plan_setting {

inline constexpr std::array algorithms{pccl::Algorithm::exchange, pccl::Algorithm::direct,
                                       pccl::Algorithm::ring};

struct Setting {
  pccl::Algorithm algorithm = pccl::Algorithm::direct;
  std::uint16_t size = 2;
  std::uint64_t count = 0;
  std::uint32_t element_bytes = 4;
  std::uint32_t accumulator_bytes = 4;
  std::vector<double> shares{};
};

inline std::vector<pccl::Plan> plans_of(const Setting& setting) {
  std::vector<pccl::Plan> plans;
  for (std::uint16_t rank = 0; rank < setting.size; ++rank) {
    plans.push_back(pccl::make_plan({.algorithm = setting.algorithm,
                                     .rank = rank,
                                     .size = setting.size,
                                     .count = setting.count,
                                     .element_bytes = setting.element_bytes,
                                     .accumulator_bytes = setting.accumulator_bytes,
                                     .ordered = false,
                                     .shares = setting.shares}));
  }
  return plans;
}

}  // namespace plan_setting
