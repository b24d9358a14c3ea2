// native/fuzz/fuzz_handshake.cpp — what strangers say to the listening port, relays included.
//
// Bodies get the heads they need, so that the fuzzer need not find a CRC.  Whatever they are, at
// most one lane is adopted, only by who shows the secret, and memory stays bounded.
//
// Ownership: one Strangers for all inputs: none leaves anything behind.
// Threads:   one; no tunnel is ever opened, so no relay thread starts.
// Errors:    abort.
#include "fuzz/door.hpp"
#include "fuzz/pieces.hpp"
#include "fuzz/pipe.hpp"

using namespace pccl;

namespace {

/// Whether the first body shows the secret, where a HELLO has it.
bool shows_secret(std::span<const std::byte> body) {
  constexpr std::size_t at = frames::prefix_bytes + 1 + 16 + 16 + 8;
  if (body.size() < at + 16) return false;
  return std::all_of(body.begin() + at, body.begin() + at + 16,
                     [](std::byte b) { return b == std::byte{1}; });
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static fuzz::Door door;
  fuzz::Pieces input(data, size);
  door.host.lanes = door.host.streams = 0;
  fuzz::Pipe pipe;
  const std::uint64_t serial = door.strangers.add(std::move(pipe.near), 0.0);
  fuzz::require(serial != 0);
  bool first = true;
  bool knows = false;
  while (!input.empty()) {
    const auto body = input.take(input.number<std::uint8_t>());
    if (std::exchange(first, false)) knows = shows_secret(body);
    pipe.say(frames::head_of(body));
    pipe.say(body);
    door.strangers.on_ready(serial, ready::read, 0.0);
  }
  fuzz::require(door.host.lanes + door.host.streams <= (knows ? 1 : 0));
  fuzz::require(door.relay.tunnels() == 0);
  pipe.far.reset();
  door.strangers.on_ready(serial, ready::read | ready::error, 0.0);
  door.strangers.on_time(1e9);  // whoever is left has had time enough
  door.peers.clear();
  return 0;
}
