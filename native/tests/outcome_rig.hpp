// native/tests/outcome_rig.hpp — an outcome machine, and what it did last.
// Ownership: plain values.
// Threads:   the test's.
// Errors:    none.
#pragma once

#include <algorithm>
#include <initializer_list>
#include <optional>
#include <variant>
#include <vector>

#include "check.hpp"
#include "pccl/outcome.hpp"

namespace rig {

using namespace pccl;

inline PeerId peer_id(unsigned number) {
  PeerId id;
  id.bytes[0] = static_cast<std::uint8_t>(number + 1);
  return id;
}

struct Entry {
  unsigned number;
  StepId first_step = 0;
  std::uint32_t group = 0;
};

inline View view_of(Epoch epoch, std::initializer_list<Entry> entries,
                    Pause pause = Pause::none,
                    Generation generation = 1) {
  View view{generation, epoch, {}, pause};
  for (const Entry& entry : entries) {
    view.members.push_back(
        {peer_id(entry.number), entry.number + 1, entry.first_step, entry.group});
  }
  return view;
}

inline constexpr Digest manifest{7, 8};
inline constexpr std::uint64_t name = 42;

/// One machine; `did` are the effects of the last call.
struct Peer {
  explicit Peer(unsigned number) : machine(peer_id(number), number + 1) {}

  std::optional<StepId> begin(std::uint64_t name_hash = name) {
    did.clear();
    return machine.begin(name_hash, did);
  }
  void complete(StepId step, Epoch epoch, Digest digest = {1, 1}) {
    did.clear();
    machine.seal(step, manifest, did);
    machine.complete(step, epoch, digest, did);
  }
  void done(unsigned from, StepId step, Epoch epoch, Digest digest = {1, 1},
            Digest theirs = manifest) {
    did.clear();
    machine.done(peer_id(from), step, epoch, theirs, digest, did);
  }
  void activate(const View& view, StepId step, std::optional<std::uint64_t> name_hash = name) {
    did.clear();
    machine.activate(view, step, name_hash, did);
  }
  void cancel_plan(Epoch epoch, Generation generation = 1) {
    did.clear();
    machine.cancel_plan(generation, epoch, did);
  }
  Status install(const View& view, std::vector<Decision> decisions = {},
                 StepId committed_below = 0) {
    did.clear();
    return machine.install(view, committed_below, decisions, did);
  }
  void exclude(Epoch epoch, Generation generation = 1,
               SuspectCode code = SuspectCode::excluded) {
    did.clear();
    machine.exclude(generation, epoch, "too slow", code, did);
  }
  template <class Kind>
  [[nodiscard]] std::vector<Kind> all() const {
    std::vector<Kind> found;
    for (const Effect& effect : did) {
      if (const Kind* one = std::get_if<Kind>(&effect)) found.push_back(*one);
    }
    return found;
  }
  template <class Kind>
  [[nodiscard]] bool did_to(StepId step) const {
    const auto found = all<Kind>();
    return std::any_of(found.begin(), found.end(),
                       [&](const Kind& one) { return one.step == step; });
  }
  [[nodiscard]] bool committed(StepId step) const { return did_to<Committed>(step); }

  OutcomeMachine machine;
  Effects did;
};

/// Two members, `mine` first, in epoch 1.
inline Peer pair_of(unsigned mine, unsigned other) {
  Peer peer(mine);
  CHECK(peer.install(view_of(1, {{mine}, {other}})) == Status::ok);
  return peer;
}

}  // namespace rig
