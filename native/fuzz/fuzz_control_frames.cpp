// native/fuzz/fuzz_control_frames.cpp — a body decodes to what encodes to it, or is refused.
// Ownership: none.
// Threads:   one.
// Errors:    abort.
#include "fuzz/pieces.hpp"
#include "pccl/control_frames.hpp"
#include "pccl/crc32.hpp"

using namespace pccl;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto body = fuzz::Pieces(data, size).all();
  static_cast<void>(frames::version_of(body));
  static_cast<void>(frames::purpose_of(body));
  frames::Frame frame;
  if (frames::decode(body, frame) != Status::ok) return 0;
  fuzz::Bytes again;
  fuzz::require(frames::encode(frame, again) == Status::ok);
  const auto whole = std::span<const std::byte>(again);
  frames::Head head;
  fuzz::require(frames::decode_head(whole.first<frames::head_bytes>(), head));
  const auto said = whole.subspan(frames::head_bytes);
  fuzz::require(head.length == said.size() && head.body_check == crc32(said));
  fuzz::require(std::equal(said.begin(), said.end(), body.begin(), body.end()));
  return 0;
}
