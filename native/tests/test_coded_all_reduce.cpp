// native/tests/test_coded_all_reduce.cpp — quantised all-reduces over engines in one process: the
// same bits on every rank, those that the definition says, through fences, cuts and flipped bits.
//
// The model: contributions are coded and decoded, added up in rank order to what the owner of a
// shard has itself, divided, coded and decoded once more.
//
// Ownership: each test owns its world.
// Threads:   one per rank.
// Errors:    CHECKs.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>

#include "control_rig.hpp"
#include "fragile_world.hpp"
#include "kernel_testing.hpp"
#include "pccl/coder.hpp"

using namespace world;

namespace {

using kernel_testing::Random;

struct Reduction {
  Codec codec{CodecKind::int8, 8, false};
  ReduceOp op = ReduceOp::avg;
  std::size_t count = 0;
  bool deterministic = true;
  bool in_place = true;
  std::vector<double> weights{};  // per rank
};

float drawn(Random& random, std::uint64_t shape) {
  const double unit = static_cast<double>(random.next() >> 11) * 0x1p-53;
  switch (shape % 5) {
    case 0: return static_cast<float>(unit * 2 - 1);
    case 1: return static_cast<float>((unit - 0.5) / (1e-3 + unit * unit));  // heavy tails
    case 2: return static_cast<float>(-1 - unit);
    case 3: return random.next() % 9 == 0 ? static_cast<float>(unit) : 0.0f;
    default: return static_cast<float>(unit * 1e-41);
  }
}

std::vector<float> contribution(std::size_t count, std::uint64_t seed) {
  Random random{seed};
  std::vector<float> data(count);
  const std::uint64_t shape = random.next();
  for (float& element : data) element = drawn(random, shape);
  return data;
}

double weight_of(const Reduction& what, std::size_t rank) {
  return what.weights.empty() ? 1.0 : what.weights[rank];
}

std::byte* bytes(std::vector<float>& data, std::size_t at) {
  return reinterpret_cast<std::byte*>(data.data() + at);
}

/// What all hold in the end, of `inputs` in rank order.
std::vector<float> expected(const Reduction& what, const std::vector<std::vector<float>>& inputs,
                            const std::vector<double>& weights, StepId step, Tag tag) {
  const std::size_t size = inputs.size();
  if (size == 1) return inputs[0];
  const Coder coder(what.codec, Dtype::f32, what.op);
  const Kernels& sums = kernels(Dtype::f32, what.op);
  std::vector<float> result(what.count);
  double whole = 0;
  for (const double weight : weights) whole += weight;
  const std::size_t block = what.codec.block();
  const std::size_t blocks = (what.count + block - 1) / block;
  for (std::size_t owner = 0; owner < size; ++owner) {
    const std::size_t begin = std::min(what.count, blocks * owner / size * block);
    const std::size_t count = std::min(what.count, blocks * (owner + 1) / size * block) - begin;
    std::vector<std::byte> coded(coder.bytes(count));
    std::vector<float> sum(count);
    for (std::size_t rank = 0; rank < size; ++rank) {
      std::vector<float> theirs(inputs[rank].begin() + static_cast<long>(begin),
                                inputs[rank].begin() + static_cast<long>(begin + count));
      if (rank != owner) {
        coder.encode(coded.data(), bytes(theirs, 0), count, begin,
                     {step, tag, static_cast<std::uint16_t>(rank), 0});
        coder.decode(bytes(theirs, 0), coded.data(), count);
      }
      (rank == 0 ? sums.lift : sums.fold)(sum.data(), theirs.data(), count, weights[rank]);
    }
    sums.lower(sum.data(), sum.data(), count, whole);
    coder.encode(coded.data(), bytes(sum, 0), count, begin,
                 {step, tag, static_cast<std::uint16_t>(owner), 1});
    coder.decode(bytes(result, begin), coded.data(), count);
  }
  return result;
}

/// The farthest that one rounding of `data` puts an element of each block.
std::vector<double> steps_of(const Codec& codec, const std::vector<float>& data) {
  std::vector<double> steps;
  for (std::size_t first = 0; first < data.size(); first += codec.block()) {
    const std::size_t end = std::min<std::size_t>(data.size(), first + codec.block());
    double most = 0;
    for (std::size_t at = first; at < end; ++at) {
      most = std::max(most, std::fabs(double{data[at]}));
    }
    const double one = codec.kind == CodecKind::int8   ? most / 127 / 2
                       : codec.kind == CodecKind::int4 ? most / 7 / 2
                                                       : most * 0x1p-4;
    steps.push_back(std::max(one, 0x1p-127 * 448) * (codec.stochastic ? 2 : 1));
  }
  return steps;
}

/// Two roundings, and what f32 itself loses: no element is farther from the exact result.
bool near(const Reduction& what, const std::vector<std::vector<float>>& inputs,
          const std::vector<float>& result) {
  double whole = 0;
  for (std::size_t rank = 0; rank < inputs.size(); ++rank) whole += weight_of(what, rank);
  const bool averages = what.op == ReduceOp::avg;
  std::vector<std::vector<double>> steps;
  for (const std::vector<float>& input : inputs) steps.push_back(steps_of(what.codec, input));
  const std::vector<double> last = steps_of(what.codec, result);
  for (std::size_t i = 0; i < result.size(); ++i) {
    const std::size_t block = i / what.codec.block();
    double exact = 0;
    double slack = last[block] * 1.1;
    for (std::size_t rank = 0; rank < inputs.size(); ++rank) {
      const double share = averages ? weight_of(what, rank) / whole : 1.0;
      exact += share * double{inputs[rank][i]};
      slack += share * (steps[rank][block] * 1.001 +
                        std::fabs(double{inputs[rank][i]}) * 1e-6);
    }
    if (!(std::fabs(double{result[i]} - exact) <= slack)) return false;
  }
  return true;
}

Posted posted(const Reduction& what, StepId step, Tag tag, const std::vector<float>& input,
              std::vector<float>& output, double weight) {
  Posted made = post_of(step, tag, input.data(), output.data(), what.count, Dtype::f32, what.op,
                        Algorithm::automatic, weight, what.deterministic);
  made.descriptor.codec = what.codec;
  return made;
}

Reduction random_reduction(Random& random, std::size_t size) {
  Reduction what;
  what.codec.kind = static_cast<CodecKind>(1 + random.next() % 3);
  what.codec.block_log2 = static_cast<std::uint8_t>(5 + random.next() % 8);
  what.codec.stochastic = random.next() % 3 == 0;
  what.op = random.next() % 2 == 0 ? ReduceOp::avg : ReduceOp::sum;
  what.deterministic = random.next() % 2 == 0;
  what.in_place = random.next() % 2 == 0;
  constexpr std::size_t most[] = {3, 300, 5'000, 40'000, 200'000};
  what.count = random.next() % most[random.next() % 5];
  for (std::size_t rank = 0; rank < size && what.op == ReduceOp::avg; ++rank) {
    what.weights.push_back(static_cast<double>(1 + random.next() % 7));
  }
  return what;
}

/// One step of it on all ranks: same bits, near the exact result and, added up in rank order, those
/// that the model has.
void check_case(World& world, const Reduction& what, std::uint64_t seed) {
  const std::size_t size = world.engines.size();
  std::vector<std::vector<float>> inputs;
  for (std::size_t rank = 0; rank < size; ++rank) {
    inputs.push_back(contribution(what.count, seed * 64 + rank));
  }
  std::vector<std::vector<float>> buffers = inputs;
  std::vector<std::vector<float>> outputs(size, std::vector<float>(what.count, -1.0f));
  std::vector<StepId> steps(size);
  World::all(world.everybody(), [&](std::size_t rank) {
    Engine& engine = *world.engines[rank];
    const StepId step = steps[rank] = engine.begin_step("step", 20).step;
    auto& output = what.in_place ? buffers[rank] : outputs[rank];
    engine.post(posted(what, step, 3, buffers[rank], output, weight_of(what, rank)));
    engine.seal(step);
    CHECK(engine.wait_step(step, 20));
    CHECK(engine.result(step).state == StepState::committed);
    engine.release(step);
    if (!what.in_place) CHECK(buffers[rank] == inputs[rank]);
  });
  const auto& results = what.in_place ? buffers : outputs;
  bool good = true;
  for (std::size_t rank = 1; rank < size && what.count > 0; ++rank) {
    good = good && std::memcmp(results[rank].data(), results[0].data(),
                               what.count * sizeof(float)) == 0;
  }
  std::vector<double> weights;
  for (std::size_t rank = 0; rank < size; ++rank) weights.push_back(weight_of(what, rank));
  good = good && near(what, inputs, results[0]);
  if (what.deterministic) {
    good = good && results[0] == expected(what, inputs, weights, steps[0], 3);
  }
  CHECK(good);
  if (good) return;
  std::fprintf(stderr, "  size %zu, count %zu, codec %d/%llu%s, op %d%s%s, seed %llu\n", size,
               what.count, static_cast<int>(what.codec.kind),
               static_cast<unsigned long long>(what.codec.block()),
               what.codec.stochastic ? " stochastic" : "", static_cast<int>(what.op),
               what.deterministic ? ", deterministic" : "", what.in_place ? ", in place" : "",
               static_cast<unsigned long long>(seed));
}

}  // namespace

TEST(a_thousand_random_cases_give_the_same_bits_on_every_rank) {
  const int rounds = check::sanitized ? 12 : 128;
  std::uint64_t seed = 1;
  for (const std::size_t size : {2u, 3u, 4u, 5u}) {
    for (const bool shared_memory : {true, false}) {
      World world(size, shared_memory ? 1 : 2, 9, shared_memory);
      world.install(1, world.everybody());
      Random random{size * 1000 + (shared_memory ? 1 : 0)};
      for (int round = 0; round < rounds; ++round) {
        check_case(world, random_reduction(random, size), seed++);
      }
    }
  }
  CHECK(check::sanitized || seed > 1000);
}

TEST(alone_nothing_is_rounded) {
  World world(1);
  world.install(1, world.everybody());
  check_case(world, {.codec = {CodecKind::int4, 8, false}, .op = ReduceOp::sum, .count = 5000}, 9);
}

TEST(other_types_have_the_same_bits_on_every_rank) {
  World world(3);
  world.install(1, world.everybody());
  for (const Dtype dtype : {Dtype::f64, Dtype::f16, Dtype::bf16}) {
    for (const bool deterministic : {false, true}) {
      for (const std::size_t count : {5u, 70'001u}) {
        std::vector<std::vector<std::byte>> data(3);
        World::all(world.everybody(), [&](std::size_t rank) {
          Engine& engine = *world.engines[rank];
          std::vector<double> wide(count);
          for (std::size_t i = 0; i < count; ++i) {
            wide[i] = static_cast<double>(static_cast<long>((i * 31 + rank * 7) % 255) - 127);
          }
          data[rank].resize(count * size_of(dtype));
          if (dtype == Dtype::f64) {
            std::memcpy(data[rank].data(), wide.data(), data[rank].size());
          } else {
            const std::vector<float> some(wide.begin(), wide.end());
            kernels(dtype, ReduceOp::sum).lower(data[rank].data(), some.data(), count, 1);
          }
          const StepId step = engine.begin_step("step", 20).step;
          Posted made = post_of(step, 0, data[rank].data(), data[rank].data(), count, dtype,
                                ReduceOp::avg, Algorithm::automatic, 1.0, deterministic);
          made.descriptor.codec = {CodecKind::int8, 8, false};
          engine.post(made);
          engine.seal(step);
          CHECK(engine.wait_step(step, 20));
          CHECK(engine.result(step).state == StepState::committed);
          engine.release(step);
        });
        CHECK(data[0] == data[1] && data[0] == data[2]);
        if (dtype != Dtype::f64) continue;
        std::vector<double> result(count);
        std::memcpy(result.data(), data[0].data(), data[0].size());
        for (std::size_t i = 0; i < count; ++i) {
          double exact = 0;
          for (std::size_t rank = 0; rank < 3; ++rank) {
            exact += static_cast<double>(static_cast<long>((i * 31 + rank * 7) % 255) - 127);
          }
          // Half a step for the contributions, and half a one for the sum.
          CHECK(std::fabs(result[i] - exact / 3) <= 1.01);
        }
      }
    }
  }
}

TEST(after_a_fence_at_any_moment_inputs_are_back_and_the_survivors_have_the_models_bits) {
  std::mt19937 dice(5);
  Random random{99};
  for (int round = 0; round < (check::sanitized ? 6 : 40); ++round) {
    const std::size_t size = 2 + dice() % 3;
    Reduction what = random_reduction(random, size);
    what.deterministic = what.in_place = true;
    what.count = 300'000;
    std::vector<std::vector<float>> inputs;
    for (std::size_t rank = 0; rank < size; ++rank) {
      inputs.push_back(contribution(what.count, static_cast<std::uint64_t>(round) * 8 + rank));
    }
    std::vector<std::vector<float>> buffers = inputs;
    World world(size, 1, 9, dice() % 2 == 0);  // gone before the arrays that it may give back
    world.install(1, world.everybody());
    for (std::size_t rank = 0; rank < size; ++rank) {
      CHECK(world.engines[rank]->begin_step("step", 20).step == 0);
      world.engines[rank]->post(
          posted(what, 0, 0, buffers[rank], buffers[rank], weight_of(what, rank)));
      if (rank + 1 < size) world.engines[rank]->seal(0);  // the last is lost before it seals
    }
    std::this_thread::sleep_for(std::chrono::microseconds(dice() % 4000));
    std::vector<std::size_t> survivors = world.everybody();
    survivors.pop_back();
    world.engines.back()->close();
    CHECK(buffers.back() == inputs.back());
    for (const std::size_t rank : survivors) (void)world.engines[rank]->fence_for_test(1, 2);
    if (round % 4 == 0) {
      world.install(2, survivors, {{0, Verdict::fail, SuspectCode::deadline, "late"}});
      for (const std::size_t rank : survivors) {
        CHECK(world.engines[rank]->wait_step(0, 10));
        CHECK(buffers[rank] == inputs[rank]);
      }
      continue;
    }
    world.install(2, survivors, {{0, Verdict::retry, SuspectCode::none, {}}});
    std::vector<double> weights;
    for (const std::size_t rank : survivors) weights.push_back(weight_of(what, rank));
    const std::vector<std::vector<float>> left(inputs.begin(), inputs.end() - 1);
    const std::vector<float> result = expected(what, left, weights, 0, 0);
    World::all(survivors, [&](std::size_t rank) {
      Engine& engine = *world.engines[rank];
      CHECK(engine.wait_step(0, 20));
      CHECK(engine.result(0).state == StepState::committed && engine.result(0).retries == 1);
      CHECK(buffers[rank] == result);
      engine.release(0);
    });
  }
}

TEST(flipped_bits_of_coded_slices_cost_a_lane_and_no_bit_of_the_result) {
  FragileWorld world(2);
  LaneProxy& proxy = *world.proxies[1];
  const Reduction what{.op = ReduceOp::sum, .count = 60'000};
  check_case(world, what, 1);
  std::uint64_t seed = 2;
  for (const Phase phase : {Phase::reduce, Phase::gather}) {
    for (const std::size_t at : {header_bytes, header_bytes + 3, header_bytes + 9000}) {
      proxy.flip({FrameType::data, phase, at, 5});
      check_case(world, what, seed++);
    }
  }
  CHECK(proxy.flips() == 6);
}

TEST(codecs_that_differ_are_accused_and_both_are_named) {
  rig::Gate gate;
  World world(2, 1, gate.port());
  std::vector<rig::Wire> wires;
  for (int i = 0; i < 2; ++i) {
    wires.push_back(gate.accept());
    (void)wires.back().next<frames::Hello>();
    wires.back().write(frames::Frame{frames::Welcome{1}});
  }
  world.install(1, world.everybody());
  std::vector<float> data[2];
  const Codec codecs[2] = {{CodecKind::int8, 8, false}, {CodecKind::int4, 7, true}};
  for (std::size_t rank = 0; rank < 2; ++rank) {
    data[rank].assign(5000, 1.0f);
    const StepId step = world.engines[rank]->begin_step("step", 20).step;
    const Reduction what{.codec = codecs[rank], .count = 5000};
    world.engines[rank]->post(posted(what, step, 0, data[rank], data[rank], 1.0));
    world.engines[rank]->seal(step);
  }
  const auto suspect = wires[0].next<Suspect>();
  CHECK(suspect.has_value() && suspect->code == SuspectCode::descriptor);
  if (!suspect) return;
  CHECK(suspect->text.find("codec=int8/256") != std::string::npos);
  CHECK(suspect->text.find("codec=int4/128 stochastic") != std::string::npos);
  for (const std::vector<float>& kept : data) CHECK(kept == std::vector<float>(5000, 1.0f));
}
