// native/fuzz/fuzz_framed_socket.cpp — however a stream is cut, the same frames come out of it.
//
// The first byte says whether the rest is a stream as it is, or bodies that get the heads they
// need; the second, where it is cut.  It is read whole, in two pieces, and byte by byte.
//
// Ownership: none.
// Threads:   one.
// Errors:    abort.
#include "control/framed_socket.hpp"
#include "fuzz/pieces.hpp"
#include "fuzz/pipe.hpp"

using namespace pccl;

namespace {

constexpr std::uint32_t body_bytes_max = 512;

struct Outcome {
  std::vector<fuzz::Bytes> bodies;
  Status last = Status::ok;
  friend bool operator==(const Outcome&, const Outcome&) = default;
};

fuzz::Bytes stream_of(fuzz::Pieces& input, bool raw) {
  fuzz::Bytes stream;
  if (raw) {
    fuzz::append(stream, input.all());
    return stream;
  }
  while (!input.empty()) {
    const auto body = input.take(input.number<std::uint8_t>());
    fuzz::append(stream, frames::head_of(body));
    fuzz::append(stream, body);
  }
  return stream;
}

/// Reads what is there; false once the socket is of no more use.
bool drain(FramedSocket& socket, Outcome& outcome) {
  for (;;) {
    std::span<const std::byte> body;
    outcome.last = socket.read_frame(body);
    if (outcome.last == Status::would_block) return true;
    if (outcome.last != Status::ok) return false;
    fuzz::require(!body.empty() && body.size() <= body_bytes_max && body[0] == frames::mark);
    outcome.bodies.emplace_back(body.begin(), body.end());
  }
}

Outcome read(std::span<const std::byte> stream, std::size_t first, std::size_t piece) {
  fuzz::Pipe pipe;
  FramedSocket socket(make_socket_conduit(std::move(pipe.near)), body_bytes_max);
  Outcome outcome;
  for (std::size_t at = 0; at < stream.size();) {
    const std::size_t here = std::min(at == 0 && first > 0 ? first : piece, stream.size() - at);
    pipe.say(stream.subspan(at, here));
    at += here;
    if (!drain(socket, outcome)) return outcome;
  }
  pipe.far.reset();
  drain(socket, outcome);
  return outcome;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  fuzz::Pieces input(data, size);
  const bool raw = (input.number<std::uint8_t>() & 1) != 0;
  const std::size_t cut = input.number<std::uint8_t>();
  const fuzz::Bytes stream = stream_of(input, raw);
  const Outcome whole = read(stream, 0, stream.size());
  fuzz::require(whole == read(stream, cut, stream.size()));
  if (stream.size() <= 256) fuzz::require(whole == read(stream, 0, 1));
  return 0;
}
