// native/fuzz/frames_of.hpp — native frames to and from the bytes of a connection.
// Ownership: values.
// Threads:   pure functions.
// Errors:    what is no frame ends the list.
#pragma once

#include <vector>

#include "fuzz/pieces.hpp"
#include "pccl/control_frames.hpp"
#include "pccl/crc32.hpp"

namespace fuzz {

/// Frames as they lie one behind the other, as far as they are whole and good.
inline std::vector<pccl::frames::Frame> frames_of(std::span<const std::byte> bytes) {
  using namespace pccl::frames;
  std::vector<Frame> found;
  while (bytes.size() >= head_bytes) {
    Head head;
    if (!decode_head(bytes.first<head_bytes>(), head)) break;
    bytes = bytes.subspan(head_bytes);
    if (bytes.size() < head.length) break;
    const auto body = bytes.first(head.length);
    Frame frame;
    if (pccl::crc32(body) != head.body_check || decode(body, frame) != pccl::Status::ok) break;
    found.push_back(std::move(frame));
    bytes = bytes.subspan(head.length);
  }
  return found;
}

inline Bytes bytes_of(const pccl::frames::Frame& frame) {
  Bytes bytes;
  require(pccl::frames::encode(frame, bytes) == pccl::Status::ok);
  return bytes;
}

/// One that need not make sense, in front of it the head that it needs.
inline Bytes framed(std::span<const std::byte> body) {
  Bytes bytes;
  append(bytes, pccl::frames::head_of(body));
  append(bytes, body);
  return bytes;
}

}  // namespace fuzz
