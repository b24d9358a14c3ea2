// native/bindings/letters.cpp — pccl._native: messages between programs.
// Ownership: addresses are the caller's, who keeps them alive until the letter has ended.
// Threads:   the GIL is released around everything that may wait.
// Errors:    as in module.cpp.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/variant.h>

#include <cstring>
#include <variant>

#include "bindings/letters.hpp"
#include "bindings/signals.hpp"
#include "pccl/engine.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace pccl {
namespace {

using OtherEnd = std::variant<int, nb::bytes>;

/// `peer`: a rank of the view in force, -1 for any, or the name of a member.
LetterId post(Engine& engine, PostedLetter posted, const OtherEnd& peer, double timeout_s) {
  if (const auto* rank = std::get_if<int>(&peer)) {
    posted.rank = *rank;
  } else {
    const nb::bytes& name = std::get<nb::bytes>(peer);
    PeerId id;
    if (name.size() != id.bytes.size()) throw nb::value_error("peer must be 16 bytes");
    std::memcpy(id.bytes.data(), name.c_str(), id.bytes.size());
    posted.peer = id;
  }
  nb::gil_scoped_release release;
  return engine.post(posted, timeout_s);
}

LetterId post_letter(Engine& engine, bool sends, const OtherEnd& peer, Tag tag,
                     std::uintptr_t address, std::uint64_t count, unsigned dtype,
                     double timeout_s) {
  if (dtype >= dtype_count) throw nb::value_error("unknown dtype");
  PostedLetter posted;
  posted.sends = sends;
  posted.tag = tag;
  posted.what = {static_cast<Dtype>(dtype), count};
  posted.memory = reinterpret_cast<std::byte*>(address);
  return post(engine, posted, peer, timeout_s);
}

LetterId post_nothing(Engine& engine, bool sends, const OtherEnd& peer, Tag tag,
                      double timeout_s) {
  PostedLetter posted;
  posted.sends = sends;
  posted.tag = tag;
  posted.what.nothing = true;
  return post(engine, posted, peer, timeout_s);
}

bool wait_letter(Engine& engine, LetterId letter, double timeout_s) {
  return with_signals(timeout_s,
                      [&](double grain_s) { return engine.wait_letter(letter, grain_s); });
}

nb::tuple letter_result(Engine& engine, LetterId id) {
  Letter letter;
  {
    nb::gil_scoped_release release;
    letter = engine.letter(id);
  }
  return nb::make_tuple(static_cast<int>(letter.state), static_cast<int>(letter.end),
                        nb::bytes(letter.peer.bytes.data(), letter.peer.bytes.size()), letter.rank,
                        letter.epoch, letter.text);
}

}  // namespace

void bind_letters(nb::class_<Engine>& engine) {
  engine
      .def("post_letter", &post_letter, "sends"_a, "peer"_a, "tag"_a, "address"_a, "count"_a,
           "dtype"_a, "timeout_s"_a)
      .def("post_nothing", &post_nothing, "sends"_a, "peer"_a, "tag"_a, "timeout_s"_a)
      .def("wait_letter", &wait_letter, "letter"_a, "timeout_s"_a)
      .def("letter_result", &letter_result, "letter"_a)
      .def("cancel_letter", &Engine::cancel_letter, "letter"_a,
           nb::call_guard<nb::gil_scoped_release>())
      .def("release_letter", &Engine::release_letter, "letter"_a,
           nb::call_guard<nb::gil_scoped_release>())
      .def("set_letter_notify", &Engine::notify_when_ended, "letter"_a,
           nb::call_guard<nb::gil_scoped_release>());
}

}  // namespace pccl
