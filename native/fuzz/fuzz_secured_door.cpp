// native/fuzz/fuzz_secured_door.cpp — what strangers say to the listening port of a secured run.
//
// Bytes come as they are, in pieces of any size: plain frames, the preface of streams, records of
// TLS, ends.  Whatever they are, no lane is adopted (for that, keys would be needed that nobody has
// here), a stream is handed over only behind its whole preface, and everybody is gone after the
// time for it.  Where no OpenSSL is found, nothing is tried.
//
// Ownership: one Door for all inputs: none leaves anything behind.
// Threads:   one.
// Errors:    abort.
#include "fuzz/door.hpp"
#include "fuzz/pieces.hpp"
#include "fuzz/pipe.hpp"
#define main main_of_tests  // libFuzzer brings its own
#include "tests/tls_rig.hpp"
#undef main

using namespace pccl;

namespace {

constexpr std::string_view stream_mark = "PCCLSTR1";

std::shared_ptr<const TlsContext> context() {
  static const rig_tls::Authority authority;
  return authority.context();
}

bool is_preface(std::span<const std::byte> said) {
  return said.size() >= stream_mark.size() &&
         std::memcmp(said.data(), stream_mark.data(), stream_mark.size()) == 0;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (tls_library().version.empty()) return 0;
  static fuzz::Door door(context());
  static double now_s = 0;
  fuzz::Pieces input(data, size);
  door.host.lanes = door.host.streams = 0;
  const auto before = door.counters.accepted.load();
  fuzz::Pipe pipe;
  now_s += 1;  // turns for handshakes are there again
  door.strangers.on_time(now_s);
  const std::uint64_t serial = door.strangers.add(std::move(pipe.near), now_s);
  fuzz::require(serial != 0);
  fuzz::Bytes said;
  while (!input.empty()) {
    const auto piece = input.take(1u + input.number<std::uint8_t>());
    fuzz::append(said, piece);
    pipe.say(piece);
    door.strangers.on_ready(serial, ready::read, now_s);
    door.strangers.on_time(now_s);
  }
  fuzz::require(door.host.lanes == 0);
  fuzz::require(door.host.streams <= (is_preface(said) ? 1 : 0));
  fuzz::require(door.counters.accepted.load() - before == door.host.streams + 0u);
  pipe.far.reset();
  door.strangers.on_ready(serial, ready::read | ready::error, now_s);
  now_s += 10;  // whoever is left has had time enough
  door.strangers.on_time(now_s);
  door.peers.clear();
  return 0;
}
