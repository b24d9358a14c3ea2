// native/src/tls/framing.hpp — where a TLS record ends, before anything is trusted or opened.
// Ownership: none.
// Threads:   any.
// Errors:    protocol for what cannot be a record of TLS 1.3.
#pragma once

#include <cstddef>
#include <span>

#include "pccl/status.hpp"

namespace pccl {

inline constexpr std::size_t record_head_bytes = 5;
inline constexpr std::size_t record_body_max = 16384 + 256;
inline constexpr std::size_t record_bytes_max = record_head_bytes + record_body_max;

/// Length of the record, head and body, that begins at `bytes`; 0: its head is not all here.
Status record_length(std::span<const std::byte> bytes, std::size_t& out) noexcept;

}  // namespace pccl
