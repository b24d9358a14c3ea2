// native/bindings/outcome.cpp — the outcome machine for Python, so that simulations drive the code
// that ships.
// Ownership: values are copied both ways.
// Threads:   the caller's; the GIL is held.
// Errors:    ValueError for names that are not 16 bytes.
#include "pccl/outcome.hpp"

#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <cstring>

namespace nb = nanobind;
using namespace nb::literals;

namespace pccl {

void bind_outcome(nb::module_& module);

namespace {

using MemberTuple = std::tuple<nb::bytes, Incarnation, StepId, std::uint32_t>;
using DecisionTuple = std::tuple<StepId, int, int, std::string>;

PeerId to_peer(const nb::bytes& value) {
  PeerId peer;
  if (value.size() != peer.bytes.size()) throw nb::value_error("peer_id must be 16 bytes");
  std::memcpy(peer.bytes.data(), value.c_str(), peer.bytes.size());
  return peer;
}

Digest to_digest(const nb::bytes& value) {
  Digest digest;
  if (value.size() != sizeof digest) throw nb::value_error("a digest is 16 bytes");
  std::memcpy(&digest, value.c_str(), sizeof digest);
  return digest;
}

nb::bytes to_python(const Digest& digest) { return nb::bytes(&digest, sizeof digest); }
nb::bytes to_python(const PeerId& peer) { return nb::bytes(peer.bytes.data(), peer.bytes.size()); }

nb::tuple to_python(const Effect& effect) {
  if (const auto* done = std::get_if<SendDone>(&effect)) {
    return nb::make_tuple("send_done", done->step, done->epoch, to_python(done->manifest),
                          to_python(done->digest));
  }
  if (const auto* committed = std::get_if<Committed>(&effect)) {
    return nb::make_tuple("committed", committed->step, committed->epoch);
  }
  if (const auto* failed = std::get_if<Failed>(&effect)) {
    return nb::make_tuple("failed", failed->step, static_cast<int>(failed->code), failed->text);
  }
  if (const auto* undo = std::get_if<Undo>(&effect)) return nb::make_tuple("undo", undo->step);
  if (const auto* start = std::get_if<Start>(&effect)) {
    return nb::make_tuple("start", start->step, start->epoch);
  }
  if (const auto* switched = std::get_if<Switched>(&effect)) {
    return nb::make_tuple("switched", switched->epoch, switched->step);
  }
  if (const auto* left = std::get_if<Left>(&effect)) {
    return nb::make_tuple("left", left->epoch, left->step);
  }
  const Suspect& suspicion = std::get<Accuse>(effect).suspicion;
  nb::list peers;
  for (const PeerId& peer : suspicion.peers) peers.append(to_python(peer));
  return nb::make_tuple("accuse", suspicion.epoch, suspicion.step,
                        static_cast<int>(suspicion.code), peers, suspicion.text);
}

nb::list to_python(const Effects& effects) {
  nb::list list;
  for (const Effect& effect : effects) list.append(to_python(effect));
  return list;
}

nb::dict to_python(const Report& report) {
  nb::dict dict;
  dict["generation"] = report.generation;
  dict["target"] = report.target;
  dict["epoch"] = report.epoch;
  dict["switched"] = report.switched;
  dict["switch_step"] = report.switch_step;
  dict["watermark"] = report.watermark;
  dict["next_step"] = report.next_step;
  nb::list committed;
  for (const StepId step : report.committed) committed.append(step);
  dict["committed"] = committed;
  nb::list open;
  for (const OpenStep& step : report.open) {
    open.append(nb::make_tuple(step.step, step.epoch, step.sealed, step.complete, step.waiting,
                               to_python(step.manifest), to_python(step.digest), step.name_hash,
                               step.bound));
  }
  dict["open"] = open;
  nb::list failed;
  for (const FailedStep& step : report.failed) {
    failed.append(nb::make_tuple(step.step, static_cast<int>(step.code)));
  }
  dict["failed"] = failed;
  return dict;
}

View to_view(Generation generation, Epoch epoch, const std::vector<MemberTuple>& members,
             int paused) {
  if (paused < 0 || paused > 2) throw nb::value_error("paused is 0, 1 or 2");
  View view{generation, epoch, {}, static_cast<Pause>(paused)};
  for (const auto& [peer, incarnation, first_step, group] : members) {
    view.members.push_back({to_peer(peer), incarnation, first_step, group});
  }
  return view;
}

nb::tuple begin(OutcomeMachine& machine, std::uint64_t name_hash) {
  Effects effects;
  const auto step = machine.begin(name_hash, effects);
  return nb::make_tuple(step ? nb::cast(*step) : nb::none(), to_python(effects));
}

nb::tuple install(OutcomeMachine& machine, Generation generation, Epoch epoch,
                  const std::vector<MemberTuple>& members, int paused, StepId committed_below,
                  const std::vector<DecisionTuple>& decisions) {
  std::vector<Decision> verdicts;
  for (const auto& [step, verdict, code, text] : decisions) {
    verdicts.push_back({step, static_cast<Verdict>(verdict), static_cast<SuspectCode>(code), text});
  }
  Effects effects;
  const Status status = machine.install(to_view(generation, epoch, members, paused),
                                        committed_below, verdicts, effects);
  return nb::make_tuple(status == Status::ok, to_python(effects));
}

nb::list exclude(OutcomeMachine& self, Generation generation, Epoch epoch,
                 const std::string& text, int code) {
  Effects effects;
  self.exclude(generation, epoch, text, static_cast<SuspectCode>(code), effects);
  return to_python(effects);
}

nb::list newcomers_to(const OutcomeMachine& self, StepId step) {
  nb::list peers;
  for (const PeerId& peer : self.newcomers_to(step)) peers.append(to_python(peer));
  return peers;
}

}  // namespace

void bind_outcome(nb::module_& module) {
  using Machine = OutcomeMachine;
  nb::class_<Machine>(module, "OutcomeMachine")
      .def("__init__", [](Machine* self, const nb::bytes& peer, Incarnation incarnation) {
        new (self) Machine(to_peer(peer), incarnation);
      }, "peer_id"_a, "incarnation"_a)
      .def("begin", &begin, "name_hash"_a)
      .def("bind", &Machine::bind, "step"_a)
      .def("seal", [](Machine& self, StepId step, const nb::bytes& manifest) {
        Effects effects;
        self.seal(step, to_digest(manifest), effects);
        return to_python(effects);
      }, "step"_a, "manifest"_a)
      .def("complete", [](Machine& self, StepId step, Epoch epoch, const nb::bytes& digest) {
        Effects effects;
        self.complete(step, epoch, to_digest(digest), effects);
        return to_python(effects);
      }, "step"_a, "epoch"_a, "digest"_a)
      .def("done", [](Machine& self, const nb::bytes& from, StepId step, Epoch epoch,
                      const nb::bytes& manifest, const nb::bytes& digest) {
        Effects effects;
        self.done(to_peer(from), step, epoch, to_digest(manifest), to_digest(digest), effects);
        return to_python(effects);
      }, "peer_id"_a, "step"_a, "epoch"_a, "manifest"_a, "digest"_a)
      .def("fence", [](Machine& self, Generation generation, Epoch target) {
        return to_python(self.fence(generation, target));
      }, "generation"_a, "target"_a)
      .def("hold", &Machine::hold, "generation"_a, "epoch"_a)
      .def("entry_within", &Machine::entry_within, "name_hash"_a)
      .def("activate", [](Machine& self, Generation generation, Epoch epoch,
                          const std::vector<MemberTuple>& members, StepId step,
                          std::optional<std::uint64_t> name_hash, int paused) {
        Effects effects;
        self.activate(to_view(generation, epoch, members, paused), step, name_hash, effects);
        return to_python(effects);
      }, "generation"_a, "epoch"_a, "members"_a, "step"_a, "name_hash"_a.none(), "paused"_a = 0)
      .def("cancel_plan", [](Machine& self, Generation generation, Epoch epoch) {
        Effects effects;
        self.cancel_plan(generation, epoch, effects);
        return to_python(effects);
      }, "generation"_a, "epoch"_a)
      .def("install", &install, "generation"_a, "epoch"_a, "members"_a, "paused"_a,
           "committed_below"_a, "decisions"_a)
      .def_prop_ro("epoch", [](const Machine& self) { return self.view().epoch; })
      .def("exclude", &exclude, "generation"_a, "epoch"_a, "text"_a, "code"_a)
      .def("refusal", [](Machine& self) {
        switch (self.refusal()) {
          case Refusal::none: return "";
          case Refusal::left: return "left";
          case Refusal::underflow: return "underflow";
          case Refusal::excluded: return "excluded";
        }
        return "";
      })
      .def_prop_ro("paused", [](const Machine& self) { return self.view().pause != Pause::none; })
      .def_prop_ro("rank", &Machine::rank)
      .def_prop_ro("frozen", &Machine::frozen)
      .def_prop_ro("watermark", &Machine::watermark)
      .def_prop_ro("next_step", &Machine::next_step)
      .def("newcomers_to", &newcomers_to, "step"_a)
      .def("participants", [](const Machine& self, StepId step) {
        nb::list peers;
        for (const Member& member : self.participants(step)) peers.append(to_python(member.peer));
        return peers;
      }, "step"_a);
}

}  // namespace pccl
