// native/src/wire/text.cpp — names for messages.
// Ownership: none.
// Threads:   pure functions.
// Errors:    none.
#include "pccl/text.hpp"

namespace pccl {
namespace {

const char* name_of(Dtype dtype) noexcept {
  switch (dtype) {
    case Dtype::f64: return "f64";
    case Dtype::f32: return "f32";
    case Dtype::f16: return "f16";
    case Dtype::bf16: return "bf16";
    case Dtype::i8: return "i8";
    case Dtype::u8: return "u8";
    case Dtype::i16: return "i16";
    case Dtype::u16: return "u16";
    case Dtype::i32: return "i32";
    case Dtype::u32: return "u32";
    case Dtype::i64: return "i64";
    case Dtype::u64: return "u64";
    case Dtype::boolean: return "bool";
  }
  return "?";
}

const char* name_of(ReduceOp op) noexcept {
  switch (op) {
    case ReduceOp::sum: return "sum";
    case ReduceOp::avg: return "avg";
    case ReduceOp::prod: return "prod";
    case ReduceOp::min: return "min";
    case ReduceOp::max: return "max";
  }
  return "?";
}

const char* name_of(Algorithm algorithm) noexcept {
  switch (algorithm) {
    case Algorithm::automatic: return "";
    case Algorithm::exchange: return ", algorithm=exchange";
    case Algorithm::direct: return ", algorithm=direct";
    case Algorithm::ring: return ", algorithm=ring";
  }
  return "";
}

}  // namespace

std::string short_name(const PeerId& peer) {
  constexpr char digits[] = "0123456789abcdef";
  std::string name;
  for (std::size_t i = 0; i < 4; ++i) {
    name += digits[peer.bytes[i] >> 4];
    name += digits[peer.bytes[i] & 15];
  }
  return name;
}

std::string describe(const Descriptor& descriptor) {
  return std::string("all_reduce(") + name_of(descriptor.op) + ", " + name_of(descriptor.dtype) +
         "[" + std::to_string(descriptor.count) + "]" + name_of(descriptor.algorithm) +
         (descriptor.deterministic ? ", deterministic" : "") + ")";
}

}  // namespace pccl
