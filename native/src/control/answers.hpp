// native/src/control/answers.hpp — what a stranger's first frame deserves to hear.
//
// Pure: of the frame, who we are and what the connection proves.
//
// Ownership: values.
// Threads:   any.
// Errors:    only std::bad_alloc is thrown.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "pccl/conduit.hpp"
#include "pccl/control.hpp"
#include "pccl/control_frames.hpp"

namespace pccl {

/// Takes the same time wherever the two differ.
[[nodiscard]] inline bool same_secret(const Secret& ours, const Secret& theirs) noexcept {
  std::uint8_t difference = 0;
  for (std::size_t i = 0; i < ours.bytes.size(); ++i) {
    difference = static_cast<std::uint8_t>(difference | (ours.bytes[i] ^ theirs.bytes[i]));
  }
  return difference == 0;
}

[[nodiscard]] inline frames::Refused refused(frames::Refusal code, const char* text) {
  return {static_cast<std::uint8_t>(code), text};
}

/// What an undecodable first frame deserves to hear; code 0: nothing, it is no HELLO at all.
[[nodiscard]] inline frames::Refused answer_to_unknown(std::span<const std::byte> body) {
  using frames::Refusal;
  if (body.size() < frames::prefix_bytes ||
      body[1] != static_cast<std::byte>(frames::Type::hello)) {
    return {};
  }
  if (frames::version_of(body) != frames::version_known) {
    return refused(Refusal::version, "this peer speaks version 4 of the native protocol");
  }
  if (frames::purpose_of(body) > static_cast<std::uint8_t>(Purpose::stream)) {
    return refused(Refusal::purpose, "unknown purpose");
  }
  return {};
}

/// Code 0 for a HELLO that is welcome.
[[nodiscard]] inline frames::Refused answer_to(const frames::Hello& hello, const Conduit& conduit,
                                               const Identity& identity, bool full) {
  using frames::Refusal;
  if (!conduit.proves(hello.peer)) {
    return refused(Refusal::security, "your certificate is another peer's");
  }
  if (hello.purpose == Purpose::coordinator) {
    return refused(Refusal::purpose, "this is a peer, not a coordinator");
  }
  if (hello.run_id != identity.run_id) {
    return refused(Refusal::run, "this peer belongs to another run");
  }
  if (!same_secret(identity.secret, hello.secret)) {
    return refused(Refusal::secret, "wrong secret for this peer's incarnation");
  }
  if (hello.purpose == Purpose::peer_control && full) {
    return refused(Refusal::limit, "too many peer control connections");
  }
  return {};
}

}  // namespace pccl
