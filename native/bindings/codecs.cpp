// native/bindings/codecs.cpp — coding and decoding of arrays, beside any operation.
// Ownership: see codecs.hpp.
// Threads:   see codecs.hpp.
// Errors:    see codecs.hpp.
#include "bindings/codecs.hpp"

#include "pccl/arithmetic.hpp"
#include "pccl/kernels.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace pccl {
namespace {

Codec some_codec(unsigned packed) {
  const Codec codec = to_codec(packed);
  if (!codec) throw nb::value_error("there is no codec of this number");
  return codec;
}

std::uint64_t coded_size(unsigned packed, std::uint64_t count) {
  return coded_bytes(some_codec(packed), count);
}

void encode(unsigned packed, std::uintptr_t out, std::uintptr_t in, std::uint64_t count,
            std::uint64_t seed) {
  const Codec codec = some_codec(packed);
  const CodecKernels& kernels = codec_kernels(codec.kind);
  nb::gil_scoped_release release;
  const DefaultArithmetic arithmetic;
  auto* to = reinterpret_cast<void*>(out);
  const auto* from = reinterpret_cast<const void*>(in);
  if (codec.stochastic) {
    kernels.encode_stochastic(to, from, count, codec.block(), seed, 0);
  } else {
    kernels.encode(to, from, count, codec.block());
  }
}

void decode(unsigned packed, std::uintptr_t out, std::uintptr_t in, std::uint64_t count) {
  const Codec codec = some_codec(packed);
  nb::gil_scoped_release release;
  const DefaultArithmetic arithmetic;
  codec_kernels(codec.kind).decode(reinterpret_cast<void*>(out),
                                   reinterpret_cast<const void*>(in), count, codec.block());
}

std::size_t count_not_finite(unsigned dtype, std::uintptr_t in, std::uint64_t count) {
  if (dtype >= floating_dtype_count) throw nb::value_error("elements of this dtype are all finite");
  nb::gil_scoped_release release;
  return active_kernels().count_not_finite[dtype](reinterpret_cast<const void*>(in), count);
}

}  // namespace

Codec to_codec(unsigned packed) {
  const Codec codec{static_cast<CodecKind>(packed & 0xffU),
                    static_cast<std::uint8_t>(packed >> 8 & 0xffU), (packed >> 16 & 1U) != 0};
  if (!codec.valid() || packed >> 17 != 0) throw nb::value_error("there is no such codec");
  return codec;
}

void bind_codecs(nb::module_& module) {
  module.def("coded_bytes", &coded_size, "codec"_a, "count"_a);
  module.def("encode", &encode, "codec"_a, "out_address"_a, "in_address"_a, "count"_a,
             "seed"_a = 0);
  module.def("decode", &decode, "codec"_a, "out_address"_a, "in_address"_a, "count"_a);
  module.def("count_not_finite", &count_not_finite, "dtype"_a, "in_address"_a, "count"_a);
}

}  // namespace pccl
