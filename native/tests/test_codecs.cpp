// native/tests/test_codecs.cpp — block-wise codecs: every table against the model, bit by bit; the
// edges that the contract names; how far a decoded element may be from what it was.
// Ownership: each test owns its arrays.
// Threads:   one.
// Errors:    CHECKs.
#include <cfloat>

#include "check.hpp"
#include "codec_model.hpp"
#include "kernel_testing.hpp"
#include "pccl/coder.hpp"

using namespace pccl;
using namespace codec_model;
using kernel_testing::for_each_table;
using kernel_testing::Random;

namespace {

enum class Shape { normal, heavy, negative, zero, subnormal, huge, spikes, not_numbers, bits };
constexpr Shape every_shape[] = {Shape::normal,    Shape::heavy, Shape::negative,
                                 Shape::zero,      Shape::subnormal, Shape::huge,
                                 Shape::spikes,    Shape::not_numbers, Shape::bits};

double uniform(Random& random) {
  return (static_cast<double>(random.next() >> 11) + 0.5) * 0x1p-53;
}

double gauss(Random& random) {
  return std::sqrt(-2 * std::log(uniform(random))) * std::cos(6.283185307179586 * uniform(random));
}

float draw(Random& random, Shape shape) {
  const double normal = gauss(random);
  switch (shape) {
    case Shape::normal: return static_cast<float>(normal);
    case Shape::heavy: return static_cast<float>(normal / std::pow(uniform(random), 1.2));
    case Shape::negative: return static_cast<float>(-2 - std::fabs(normal));
    case Shape::zero: return random.next() % 2 == 0 ? 0.0f : -0.0f;
    case Shape::subnormal: return static_cast<float>(normal * 1e-40);
    case Shape::huge: return random.next() % 3 == 0 ? FLT_MAX : static_cast<float>(normal * 1e37);
    case Shape::spikes: return random.next() % 97 == 0 ? 1e6f : static_cast<float>(normal * 1e-3);
    case Shape::not_numbers:
      if (random.next() % 50 != 0) return static_cast<float>(normal);
      return random.next() % 2 == 0 ? NAN : -INFINITY;
    case Shape::bits: return std::bit_cast<float>(static_cast<std::uint32_t>(random.next()));
  }
  return 0;
}

std::vector<float> drawn(Random& random, Shape shape, std::size_t count) {
  std::vector<float> data(count);
  for (float& element : data) element = draw(random, shape);
  return data;
}

const CodecKernels& of(const KernelTable& table, const Codec& codec) {
  return table.codecs[static_cast<std::size_t>(codec.kind)];
}

Bytes coded(const KernelTable& table, const Codec& codec, const std::vector<float>& in,
            std::uint64_t seed = 0, std::uint64_t first_block = 0) {
  const std::size_t size = coded_bytes(codec, in.size());
  Bytes out(size + 8, 0xaa);
  if (codec.stochastic) {
    of(table, codec).encode_stochastic(out.data(), in.data(), in.size(), codec.block(), seed,
                                       first_block);
  } else {
    of(table, codec).encode(out.data(), in.data(), in.size(), codec.block());
  }
  for (std::size_t i = size; i < out.size(); ++i) CHECK(out[i] == 0xaa);
  return Bytes(out.data(), out.data() + size);
}

std::vector<float> decoded(const KernelTable& table, const Codec& codec, const Bytes& in,
                           std::size_t count) {
  std::vector<float> out(count);
  of(table, codec).decode(out.data(), in.data(), count, codec.block());
  return out;
}

/// The farthest that an element may be from what it was: see codec.hpp.
double tolerance(const Codec& codec, float element, float scale) {
  const double one = codec.kind == CodecKind::fp8
                         ? std::max(std::fabs(double{element}) * 0x1p-4, double{scale} * 0x1p-10)
                         : double{scale} / 2;
  return one * (1 + 0x1p-14) * (codec.stochastic ? 2 : 1);
}

}  // namespace

TEST(every_table_codes_and_decodes_as_the_model_does) {
  Random random{11};
  for (const Shape shape : every_shape) {
    for (const CodecKind kind : every_kind) {
      for (const std::uint8_t block_log2 : std::initializer_list<std::uint8_t>{5, 8, 12}) {
        const Codec codec{kind, block_log2, false};
        for (const std::size_t count : {0u, 1u, 2u, 31u, 255u, 256u, 257u, 1000u, 5003u}) {
          const std::vector<float> in = drawn(random, shape, count);
          const Bytes expected = encode(codec, in);
          const std::vector<float> values = decode(codec, expected, count);
          for_each_table([&](const KernelTable& table) {
            CHECK(coded(table, codec, in) == expected);
            CHECK(same_bits(decoded(table, codec, expected, count), values));
          });
        }
      }
    }
  }
}

TEST(bytes_of_a_stranger_decode_to_the_same_bits_everywhere) {
  Random random{12};
  for (const CodecKind kind : every_kind) {
    const Codec codec{kind, 6, false};
    for (int round = 0; round < 200; ++round) {
      const std::size_t count = random.next() % 400;
      Bytes bytes(coded_bytes(codec, count));
      for (std::uint8_t& byte : bytes) byte = static_cast<std::uint8_t>(random.next());
      const std::vector<float> values = decode(codec, bytes, count);
      for_each_table([&](const KernelTable& table) {
        CHECK(same_bits(decoded(table, codec, bytes, count), values));
      });
    }
  }
}

TEST(an_element_is_never_farther_from_what_it_was_than_half_a_step) {
  Random random{13};
  for (const Shape shape : {Shape::normal, Shape::heavy, Shape::negative, Shape::subnormal,
                            Shape::huge, Shape::spikes}) {
    for (const CodecKind kind : every_kind) {
      for (const bool stochastic : {false, true}) {
        const Codec codec{kind, 8, stochastic};
        const std::vector<float> in = drawn(random, shape, 3000);
        for_each_table([&](const KernelTable& table) {
          const std::vector<float> out = decoded(table, codec, coded(table, codec, in, 5), 3000);
          for (std::size_t i = 0; i < in.size(); ++i) {
            const std::size_t first = i / 256 * 256;
            const float scale = scale_of(kind, in.data() + first,
                                         std::min<std::size_t>(256, in.size() - first));
            CHECK(std::fabs(double{out[i]} - double{in[i]}) <= tolerance(codec, in[i], scale));
          }
        });
      }
    }
  }
}

/// Found by fuzz_codec: scale, product and quotient are each rounded once, which near the ends of
/// the codes is more than 2^-20 of half a step.
TEST(an_element_halfway_between_two_codes_may_go_to_the_farther_one_by_the_rounding_of_its_scale) {
  const float scale = 0x1.ebd7aep-124F;
  std::vector<float> in(32, 0.0F);
  in[0] = scale * 127.0F;
  in[1] = -0x1.e7fffep-118F;
  const Codec codec{CodecKind::int8, block_log2_min, false};
  const Bytes out = coded(scalar_kernels(), codec, in);
  float found = 0;
  std::memcpy(&found, out.data(), sizeof found);
  CHECK(found == scale);
  const std::vector<float> back = decoded(scalar_kernels(), codec, out, in.size());
  const double error = std::fabs(double{back[1]} - double{in[1]});
  CHECK(error > double{scale} / 2 * (1 + 0x1p-20) && error <= tolerance(codec, in[1], scale));
}

TEST(a_block_with_anything_that_is_no_number_is_none_and_its_neighbours_are_untouched) {
  for (const CodecKind kind : every_kind) {
    const Codec codec{kind, 5, false};
    for (const float bad : {NAN, -NAN, INFINITY, -INFINITY}) {
      std::vector<float> in(96, 7.0f);
      in[40] = bad;
      for_each_table([&](const KernelTable& table) {
        const std::vector<float> out = decoded(table, codec, coded(table, codec, in), in.size());
        for (std::size_t i = 0; i < out.size(); ++i) {
          const bool poisoned = i >= 32 && i < 64;
          CHECK(std::bit_cast<std::uint32_t>(out[i]) ==
                (poisoned ? 0x7fc00000u : std::bit_cast<std::uint32_t>(7.0f)));
        }
      });
    }
  }
}

TEST(zeros_stay_zeros_and_what_is_below_every_scale_becomes_one) {
  for (const CodecKind kind : every_kind) {
    const Codec codec{kind, 5, false};
    for_each_table([&](const KernelTable& table) {
      const std::vector<float> zeros(40, -0.0f);
      CHECK(same_bits(decoded(table, codec, coded(table, codec, zeros), 40),
                      std::vector<float>(40, 0.0f)));
      if (kind == CodecKind::fp8) return;
      const std::vector<float> tiny(40, 0x1p-128f);
      CHECK(same_bits(decoded(table, codec, coded(table, codec, tiny), 40),
                      std::vector<float>(40, 0.0f)));
    });
  }
}

TEST(stochastic_rounding_is_the_same_everywhere_and_follows_from_seed_and_block) {
  Random random{14};
  for (const CodecKind kind : every_kind) {
    const Codec codec{kind, 6, true};
    const std::vector<float> in = drawn(random, Shape::heavy, 1000);
    const Bytes expected = coded(scalar_kernels(), codec, in, 77, 3);
    for_each_table([&](const KernelTable& table) {
      CHECK(coded(table, codec, in, 77, 3) == expected);
      CHECK(coded(table, codec, in, 78, 3) != expected);
      CHECK(coded(table, codec, in, 77, 4) != expected);
      // A block is coded alike whatever comes before it in the same call.
      const std::vector<float> rest(in.begin() + 128, in.end());
      const Bytes tail(expected.begin() + static_cast<long>(coded_bytes(codec, 128)),
                       expected.end());
      CHECK(coded(table, codec, rest, 77, 5) == tail);
    });
  }
}

TEST(stochastic_rounding_gives_the_value_itself_on_average) {
  for (const CodecKind kind : every_kind) {
    const Codec codec{kind, 5, true};
    std::vector<float> in(32);
    for (std::size_t i = 0; i < in.size(); ++i) in[i] = static_cast<float>(i) / 31.0f - 0.37f;
    const float scale = scale_of(kind, in.data(), in.size());
    constexpr int rounds = 20'000;
    std::vector<double> sums(in.size(), 0.0);
    for (int round = 0; round < rounds; ++round) {
      const auto out = decoded(active_kernels(), codec,
                               coded(active_kernels(), codec, in,
                                     static_cast<std::uint64_t>(round)), in.size());
      for (std::size_t i = 0; i < out.size(); ++i) sums[i] += double{out[i]};
    }
    for (std::size_t i = 0; i < in.size(); ++i) {
      // Five deviations of a mean of draws that are one step apart at most.
      const double slack = 5 * tolerance(codec, in[i], scale) / std::sqrt(double{rounds});
      CHECK(std::fabs(sums[i] / rounds - double{in[i]}) <= slack);
    }
  }
}

TEST(what_is_coded_once_and_lies_on_the_grid_is_exact) {
  for (const CodecKind kind : {CodecKind::int8, CodecKind::int4}) {
    const Codec codec{kind, 8, false};
    const int limit = static_cast<int>(limit_of(kind));
    std::vector<float> in(1000);
    for (std::size_t i = 0; i < in.size(); ++i) {
      in[i] = static_cast<float>(static_cast<int>(i * 7) % (2 * limit + 1) - limit);
    }
    for_each_table([&](const KernelTable& table) {
      CHECK(same_bits(decoded(table, codec, coded(table, codec, in), in.size()), in));
    });
  }
}

TEST(other_types_are_coded_as_the_f32_that_they_become) {
  Random random{15};
  const std::vector<float> in = drawn(random, Shape::normal, 9000);
  const Codec codec{CodecKind::int8, 8, false};
  for (const Dtype dtype : {Dtype::f64, Dtype::f16, Dtype::bf16}) {
    const Coder coder(codec, dtype, ReduceOp::sum);
    std::vector<std::byte> typed(in.size() * size_of(dtype));
    std::vector<float> exact(in);  // what of it the type can hold
    if (dtype == Dtype::f64) {
      const std::vector<double> wide(in.begin(), in.end());
      std::memcpy(typed.data(), wide.data(), typed.size());
    } else {
      kernels(dtype, ReduceOp::sum).lower(typed.data(), in.data(), in.size(), 1);
      kernels(dtype, ReduceOp::sum).lift(exact.data(), typed.data(), in.size(), 1);
    }
    std::vector<std::byte> bytes(coder.bytes(in.size()));
    coder.encode(bytes.data(), typed.data(), in.size(), 0, {});
    const Bytes expected = encode(codec, exact);
    CHECK(std::memcmp(bytes.data(), expected.data(), expected.size()) == 0);

    // Added up: what was there, and what the bytes stand for.
    const std::vector<float> values = decode(codec, expected, in.size());
    if (dtype == Dtype::f64) {
      std::vector<double> sum(in.size(), 0.5);
      coder.fold(reinterpret_cast<std::byte*>(sum.data()), bytes.data(), in.size(), 1);
      for (std::size_t i = 0; i < in.size(); ++i) CHECK(sum[i] == 0.5 + double{values[i]});
    } else {
      std::vector<float> sum(in.size(), 0.5f);
      coder.fold(reinterpret_cast<std::byte*>(sum.data()), bytes.data(), in.size(), 1);
      for (std::size_t i = 0; i < in.size(); ++i) CHECK(sum[i] == 0.5f + values[i]);
    }
  }
}
