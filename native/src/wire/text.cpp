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
    case Dtype::c64: return "c64";
    case Dtype::c128: return "c128";
    case Dtype::f8_e4m3fn: return "f8_e4m3fn";
    case Dtype::f8_e5m2: return "f8_e5m2";
    case Dtype::f8_e4m3fnuz: return "f8_e4m3fnuz";
    case Dtype::f8_e5m2fnuz: return "f8_e5m2fnuz";
    case Dtype::f8_e8m0fnu: return "f8_e8m0fnu";
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
    case Algorithm::flat: return ", algorithm=flat";
    case Algorithm::tree: return ", algorithm=tree";
  }
  return "";
}

const char* name_of(CodecKind kind) noexcept {
  switch (kind) {
    case CodecKind::none: return "none";
    case CodecKind::int8: return "int8";
    case CodecKind::int4: return "int4";
    case CodecKind::fp8: return "fp8";
  }
  return "?";
}

const char* name_of(Collective collective) noexcept {
  switch (collective) {
    case Collective::all_reduce: return "all_reduce";
    case Collective::reduce_scatter: return "reduce_scatter";
    case Collective::all_gather: return "all_gather";
    case Collective::broadcast: return "broadcast";
    case Collective::reduce: return "reduce";
    case Collective::gather: return "gather";
    case Collective::scatter: return "scatter";
    case Collective::all_to_all: return "all_to_all";
    case Collective::barrier: return "barrier";
  }
  return "?";
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
  const Collective kind = descriptor.collective;
  std::string text = name_of(kind);
  text += '(';
  if (kind == Collective::barrier) return text += ')';
  if (reduces(kind)) text.append(name_of(descriptor.op)).append(", ");
  text += name_of(descriptor.dtype);
  if (descriptor.uneven) {
    text += ", parts of unequal size";
  } else {
    text.append("[").append(std::to_string(descriptor.count)).append("]");
    if (may_be_uneven(kind)) text += " per rank";
  }
  if (rooted(kind)) text.append(", root ").append(short_name(descriptor.root));
  text += name_of(descriptor.algorithm);
  if (descriptor.deterministic) text += ", deterministic";
  if (const Codec& codec = descriptor.codec) {
    text.append(", codec=").append(name_of(codec.kind));
    text.append("/").append(std::to_string(codec.block()));
    if (codec.stochastic) text += " stochastic";
  }
  return text += ')';
}

std::string describe(const Content& what) {
  if (what.nothing) return "nothing (its own error says why)";
  return std::string(name_of(what.dtype)) + "[" + std::to_string(what.count) + "]";
}

}  // namespace pccl
