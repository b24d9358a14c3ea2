// native/include/pccl/text.hpp — how peers and descriptors read in messages to people.
// Ownership: plain values.
// Threads:   pure functions.
// Errors:    none.
#pragma once

#include <string>

#include "pccl/types.hpp"
#include "pccl/wire.hpp"

namespace pccl {

/// The first 8 hexadecimal digits, as everywhere in pccl's messages.
std::string short_name(const PeerId& peer);
/// "all_reduce(sum, f32[1024])", "broadcast(i8[7], root 0a1b2c3d)".
std::string describe(const Descriptor& descriptor);
/// "f32[1024]".
std::string describe(const Content& what);

}  // namespace pccl
