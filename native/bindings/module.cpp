// native/bindings/module.cpp — pccl._native: the engine for Python.
// Ownership: addresses of tensors are the caller's, who keeps them alive until the step is decided.
// Threads:   the GIL is released around everything that may wait, and never taken by the core.
// Errors:    EngineFailure becomes EngineError(code, text); std::system_error becomes OSError.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/variant.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cstring>
#include <system_error>
#include <variant>

#include "bindings/codecs.hpp"
#include "bindings/digests.hpp"
#include "bindings/letters.hpp"
#include "bindings/signals.hpp"
#include "bindings/sparse.hpp"
#include "bindings/tls.hpp"
#include "pccl/engine.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace pccl {

void bind_outcome(nb::module_& module);

namespace {

PyObject* engine_error = nullptr;

template <class Kind>
Bytes16<Kind> to_bytes16(const nb::bytes& value, const char* what) {
  Bytes16<Kind> result;
  if (value.size() != result.bytes.size()) {
    throw nb::value_error((std::string(what) + " must be 16 bytes").c_str());
  }
  std::memcpy(result.bytes.data(), value.c_str(), result.bytes.size());
  return result;
}

nb::bytes to_python(const PeerId& peer) { return nb::bytes(peer.bytes.data(), peer.bytes.size()); }

nb::list to_python(const std::vector<PeerId>& peers) {
  nb::list list;
  for (const PeerId& peer : peers) list.append(to_python(peer));
  return list;
}

using MemberTuple = std::tuple<nb::bytes, std::uint64_t, nb::bytes, std::string, std::uint16_t,
                               std::uint64_t, std::uint64_t, std::uint32_t>;

std::vector<MemberEntry> to_members(const std::vector<MemberTuple>& members) {
  std::vector<MemberEntry> entries;
  for (const auto& [peer, incarnation, secret, host, port, host_key, first_step, group] : members) {
    const auto id = to_bytes16<PeerIdKind>(peer, "peer_id");
    entries.push_back({{id, incarnation, first_step, group},
                       {id, incarnation, to_bytes16<SecretKind>(secret, "secret"), host, port},
                       host_key});
  }
  return entries;
}

View to_view(Generation generation, Epoch epoch, const std::vector<MemberEntry>& members,
             int paused) {
  if (paused < 0 || paused > 2) throw nb::value_error("paused is 0, 1 or 2");
  View view{generation, epoch, {}, static_cast<Pause>(paused)};
  for (const MemberEntry& entry : members) view.members.push_back(entry.member);
  return view;
}

nb::tuple to_python(const EngineEvent& event) {
  using Kind = EngineEvent::Kind;
  switch (event.kind) {
    case Kind::at_entry: return nb::make_tuple("at_entry", event.text, event.step);
    case Kind::left_entry: return nb::make_tuple("left_entry");
    case Kind::links_up: return nb::make_tuple("links_up", event.number);
    case Kind::links_failed:
      return nb::make_tuple("links_failed", event.number, to_python(event.peers));
    case Kind::switched: return nb::make_tuple("switched", event.number, event.step);
    case Kind::left: return nb::make_tuple("left", event.number, event.step);
    case Kind::excluded: return nb::make_tuple("excluded", event.number);
    case Kind::installed: return nb::make_tuple("installed", event.number);
    case Kind::evicted: return nb::make_tuple("evicted", event.text);
    case Kind::refused: return nb::make_tuple("refused", event.number, event.text);
    case Kind::coordinator:
      return nb::make_tuple("coordinator", event.number != 0, event.step);
    case Kind::followed:
      return nb::make_tuple("followed", event.step);
    case Kind::wire: return nb::make_tuple("wire", event.text, event.number != 0);
    case Kind::failed: return nb::make_tuple("failed", "memory", event.text);
    case Kind::decided: return nb::make_tuple("decided", event.step);
    case Kind::letter: return nb::make_tuple("letter", event.step);
    case Kind::stream: break;  // see drain()
  }
  return nb::make_tuple("unknown");
}

nb::list drain(Engine& engine) {
  nb::list list;
  for (EngineEvent& event : engine.drain_events()) {
    if (event.kind == EngineEvent::Kind::stream) {
      const int fd = event.socket.get();
      list.append(nb::make_tuple("stream", fd, to_python(event.peers.front())));
      static_cast<void>(event.socket.release());  // last: the list owns it now
    } else {
      list.append(to_python(event));
    }
  }
  return list;
}

nb::tuple begin_step(Engine& engine, const std::string& name, double timeout_s) {
  using Found = std::unique_ptr<BegunStep>;
  Found found;
  try {
    found = with_signals(timeout_s, [&](double grain_s) -> Found {
      try {
        return std::make_unique<BegunStep>(engine.begin_step(name, grain_s));
      } catch (const EngineFailure& failure) {
        if (failure.code() != "timeout") throw;
        return nullptr;
      }
    });
  } catch (const nb::python_error&) {  // a signal's handler raised
    engine.leave_entry();
    throw;
  }
  if (!found) {
    engine.leave_entry();
    throw EngineFailure("timeout", "no step began within the time given");
  }
  return nb::make_tuple(found->step, found->epoch, found->rank, found->world_size);
}

bool wait_step(Engine& engine, StepId step, double timeout_s) {
  return with_signals(timeout_s,
                      [&](double grain_s) { return engine.wait_step(step, grain_s); });
}

nb::tuple step_result(Engine& engine, StepId step) {
  StepResult result;
  {
    nb::gil_scoped_release release;
    result = engine.result(step);
  }
  nb::list groups;
  for (const std::uint32_t group : result.groups) groups.append(group);
  return nb::make_tuple(static_cast<int>(result.state), result.epoch, result.retries,
                        to_python(result.contributors), groups, result.wire_bytes,
                        static_cast<int>(result.code), result.text);
}

nb::dict stats(Engine& engine) {
  EngineStats now;
  {
    nb::gil_scoped_release release;
    now = engine.stats();
  }
  nb::dict dict;
  dict["frames_received"] = now.executor.frames_received;
  dict["frames_discarded"] = now.executor.frames_discarded;
  dict["frames_early"] = now.executor.frames_early;
  dict["lanes_lost"] = now.executor.lanes_lost;
  dict["lanes_refused"] = now.executor.lanes_refused;
  dict["lanes_silent"] = now.executor.lanes_silent;
  dict["bytes_by_memory"] = now.executor.bytes_by_memory;
  dict["connections_accepted"] = now.control.accepted;
  dict["connections_dropped"] = now.control.dropped;
  dict["connections_unproven"] = now.control.unproven;
  dict["heartbeats"] = now.control.heartbeats;
  dict["flushes"] = now.control.flushes;
  dict["tunnels"] = now.control.tunnels;
  dict["relayed_bytes"] = now.control.relayed_bytes;
  dict["open_steps"] = now.open_steps;
  dict["open_messages"] = now.open_letters;
  dict["messages_sent"] = now.letters_sent;
  dict["messages_received"] = now.letters_received;
  dict["links"] = now.links;
  dict["lanes"] = now.lanes;
  dict["payload_bytes"] = now.progress;
  dict["tile_bytes"] = now.tile_bytes;
  dict["ucx_lanes"] = now.ucx.through_ucx;
  dict["ucx_declined"] = now.ucx.declined;
  dict["ucx_streams"] = now.ucx.streams;
  dict["ucx_requests"] = now.ucx.requests;
  return dict;
}

void post_all_reduce(Engine& engine, StepId step, Tag tag, std::uintptr_t input,
                     std::uintptr_t output, std::uint64_t count, unsigned dtype, unsigned op,
                     double weight, bool deterministic, unsigned algorithm, bool last,
                     unsigned codec, bool left_out) {
  if (dtype >= dtype_count || op >= reduce_op_count || algorithm > 3) {
    throw nb::value_error("unknown dtype, op or algorithm");
  }
  Posted posted{step, tag, {}, reinterpret_cast<const std::byte*>(input),
                reinterpret_cast<std::byte*>(output), left_out ? 0.0 : weight};
  posted.left_out = left_out;
  posted.descriptor = {static_cast<Dtype>(dtype), static_cast<ReduceOp>(op), to_codec(codec),
                       static_cast<Algorithm>(algorithm), count, deterministic};
  const Descriptor& what = posted.descriptor;
  if (!supported(what.dtype, what.op) || (what.codec && !Coder::supports(what.dtype, what.op))) {
    throw nb::value_error("this operation has no meaning for this dtype");
  }
  if (left_out && what.op != ReduceOp::sum && what.op != ReduceOp::avg) {
    throw nb::value_error("only sums and averages can leave a contribution out");
  }
  nb::gil_scoped_release release;
  engine.post(posted, last);
}

/// Any collective.  `root`: a rank of the view that the step began in, or the name of a member; -1
/// without one.
void post_collective(Engine& engine, StepId step, Tag tag, unsigned collective,
                     std::uintptr_t input, std::uintptr_t output, std::uint64_t count,
                     unsigned dtype, unsigned op, double weight, bool deterministic,
                     const std::variant<int, nb::bytes>& root, bool uneven,
                     std::vector<std::uint64_t> send_counts,
                     std::vector<std::uint64_t> receive_counts, bool last) {
  if (collective >= collective_count || dtype >= dtype_count || op >= reduce_op_count) {
    throw nb::value_error("unknown collective, dtype or op");
  }
  Posted posted{step, tag, {}, reinterpret_cast<const std::byte*>(input),
                reinterpret_cast<std::byte*>(output), weight};
  posted.descriptor = {static_cast<Dtype>(dtype), static_cast<ReduceOp>(op), {},
                       Algorithm::automatic, count, deterministic,
                       static_cast<Collective>(collective), uneven, {}};
  if (reduces(posted.descriptor.collective) &&
      !supported(posted.descriptor.dtype, posted.descriptor.op)) {
    throw nb::value_error("this operation has no meaning for this dtype");
  }
  if (const auto* rank = std::get_if<int>(&root)) {
    posted.root_rank = *rank;
  } else {
    posted.descriptor.root = to_bytes16<PeerIdKind>(std::get<nb::bytes>(root), "root");
  }
  posted.send_counts = std::move(send_counts);
  posted.receive_counts = std::move(receive_counts);
  nb::gil_scoped_release release;
  engine.post(posted, last);
}

void admit(Engine& engine, const nb::bytes& run_id, Incarnation incarnation,
           const nb::bytes& secret, Generation generation, const std::string& host,
           std::uint16_t port, double heartbeat_s, double lease_s) {
  (void)lease_s;  // the coordinator judges leases
  const Identity identity{to_bytes16<RunIdKind>(run_id, "run_id"), incarnation,
                          to_bytes16<SecretKind>(secret, "secret"), generation};
  nb::gil_scoped_release release;
  engine.admit(identity, {host, port, heartbeat_s});
}

void install(Engine& engine, Generation generation, Epoch epoch,
             const std::vector<MemberTuple>& members, int paused, StepId committed_below,
             const std::vector<std::tuple<StepId, int, int, std::string>>& decisions) {
  const auto entries = to_members(members);
  std::vector<Decision> verdicts;
  for (const auto& [step, verdict, code, text] : decisions) {
    if (verdict < 1 || verdict > 3) throw nb::value_error("unknown outcome of a step");
    verdicts.push_back({step, static_cast<Verdict>(verdict), static_cast<SuspectCode>(code), text});
  }
  const View view = to_view(generation, epoch, entries, paused);
  nb::gil_scoped_release release;
  engine.install(view, entries, committed_below, verdicts);
}

void bind_membership(nb::class_<Engine>& engine) {
  engine
      .def("admit", &admit, nb::kw_only(), "run_id"_a, "incarnation"_a, "secret"_a, "generation"_a,
           "host"_a, "port"_a, "heartbeat_s"_a, "lease_s"_a)
      .def("prepare_view",
           [](Engine& self, Generation generation, Epoch epoch,
              const std::vector<MemberTuple>& members) {
             const auto entries = to_members(members);
             nb::gil_scoped_release release;
             self.prepare_view(generation, epoch, entries);
           }, "generation"_a, "epoch"_a, "members"_a)
      .def("hold", &Engine::hold, "generation"_a, "epoch"_a,
           nb::call_guard<nb::gil_scoped_release>())
      .def("entry_within", &Engine::entry_within, "name"_a,
           nb::call_guard<nb::gil_scoped_release>())
      .def("activate",
           [](Engine& self, Generation generation, Epoch epoch,
              const std::vector<MemberTuple>& members, StepId step, const std::string& name,
             int paused) {
             const auto entries = to_members(members);
             const View view = to_view(generation, epoch, entries, paused);
             nb::gil_scoped_release release;
             self.activate(view, entries, step, name);
           }, "generation"_a, "epoch"_a, "members"_a, "step"_a, "name"_a, "paused"_a = 0)
      .def("cancel_plan", &Engine::cancel_plan, "generation"_a, "epoch"_a,
           nb::call_guard<nb::gil_scoped_release>())
      .def("install", &install, "generation"_a, "epoch"_a, "members"_a, "paused"_a,
           "committed_below"_a, "decisions"_a)
      .def("exclude",
           [](Engine& self, Generation generation, Epoch epoch, const std::string& text, int code) {
             self.exclude(generation, epoch, text, static_cast<SuspectCode>(code));
           }, "generation"_a, "epoch"_a, "text"_a, "code"_a,
           nb::call_guard<nb::gil_scoped_release>())
      .def("fail", &Engine::fail, "code"_a, "text"_a, nb::call_guard<nb::gil_scoped_release>())
      .def("view", [](Engine& self) {
        int rank = -1;
        std::uint32_t group = 0;
        View view;
        {
          nb::gil_scoped_release release;
          view = self.view(rank, group);
        }
        std::vector<PeerId> peers;
        nb::list groups;
        for (const Member& member : view.members) {
          peers.push_back(member.peer);
          groups.append(member.group);
        }
        return nb::make_tuple(view.epoch, rank, view.generation, view.pause != Pause::none,
                              to_python(peers), groups, group);
      });
}

void bind_steps(nb::class_<Engine>& engine) {
  engine.def("begin_step", &begin_step, "name"_a, "timeout_s"_a)
      .def("post_all_reduce", &post_all_reduce, "step"_a, "tag"_a, "input_address"_a,
           "output_address"_a, "count"_a, "dtype"_a, "op"_a, "weight"_a, "deterministic"_a,
           "algorithm"_a, "last"_a = false, "codec"_a = 0,
           "left_out"_a = false)
      .def("post_collective", &post_collective, "step"_a, "tag"_a, "collective"_a,
           "input_address"_a, "output_address"_a, "count"_a, "dtype"_a, "op"_a, "weight"_a,
           "deterministic"_a, "root"_a, "uneven"_a, "send_counts"_a, "receive_counts"_a,
           "last"_a = false)
      .def("seal", &Engine::seal, "step"_a, nb::call_guard<nb::gil_scoped_release>())
      .def("wait_step", &wait_step, "step"_a, "timeout_s"_a)
      .def("step_result", &step_result, "step"_a)
      .def("release_step", &Engine::release, "step"_a, nb::call_guard<nb::gil_scoped_release>())
      .def("propose_failure",
           [](Engine& self, StepId step, int code, const std::string& text, double after_s) {
             self.propose_failure(step, static_cast<SuspectCode>(code), text, after_s);
           }, "step"_a, "code"_a, "text"_a, "after_s"_a = 0.0,
           nb::call_guard<nb::gil_scoped_release>())
      .def("set_notify", &Engine::notify_when_decided, "step"_a,
           nb::call_guard<nb::gil_scoped_release>())
      .def("stats", &stats)
      .def("close", &Engine::close, nb::call_guard<nb::gil_scoped_release>());
}

void bind_errors(nb::module_& module) {
  engine_error = PyErr_NewException("pccl._native.EngineError", PyExc_RuntimeError, nullptr);
  module.attr("EngineError") = nb::handle(engine_error);
  nb::register_exception_translator([](const std::exception_ptr& pointer, void*) {
    try {
      std::rethrow_exception(pointer);
    } catch (const EngineFailure& failure) {
      const nb::tuple args = nb::make_tuple(failure.code(), failure.what());
      PyErr_SetObject(engine_error, args.ptr());
    } catch (const std::system_error& error) {
      const nb::tuple args = nb::make_tuple(error.code().value(), error.what());
      PyErr_SetObject(PyExc_OSError, args.ptr());
    }
  });
}

}  // namespace
}  // namespace pccl

NB_MODULE(_native, module) {
  using namespace pccl;
  nb::set_leak_warnings(false);  // an engine may outlive the interpreter's last look at it
  bind_errors(module);
  nb::class_<Engine> engine(module, "Engine");
  engine
      .def("__init__",
           [](Engine* self, const nb::bytes& peer_id, const std::string& listen_host,
              std::uint16_t listen_port, std::uint16_t lanes, int spin_us,
              std::uint64_t host_key, bool shared_memory, const std::optional<TlsTuple>& tls,
              const std::vector<std::string>& ucx_libraries) {
             new (self) Engine({to_bytes16<PeerIdKind>(peer_id, "peer_id"), listen_host,
                                listen_port, lanes, spin_us, host_key, shared_memory,
                                tls ? to_tls(*tls) : nullptr, ucx_libraries});
           }, nb::kw_only(), "peer_id"_a, "listen_host"_a, "listen_port"_a = 0, "lanes"_a = 0,
           "spin_us"_a = -1, "host_key"_a = 0, "shared_memory"_a = true, "tls"_a = nb::none(),
           "ucx_libraries"_a = std::vector<std::string>{})
      .def_prop_ro("port", &Engine::port)
      .def_prop_ro("event_fd", &Engine::event_fd)
      .def("drain_events", &drain);
  bind_membership(engine);
  bind_steps(engine);
  bind_letters(engine);
  bind_tls(module, engine);
  bind_outcome(module);
  bind_codecs(module);
  bind_sparse(module);
  module.def("kernels_name", [] { return active_kernels().name; });
  bind_digests(module);
}
