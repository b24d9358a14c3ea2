// native/include/pccl/report.hpp — what a peer tells the coordinator about its steps.
// Ownership: plain values.
// Threads:   any.
// Errors:    none.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "pccl/types.hpp"

namespace pccl {

/// An open step as the fence found it.
struct OpenStep {
  StepId step = 0;
  Epoch epoch = 0;       // of the attempt
  bool sealed = false;
  bool complete = false; // sealed, and every result is here
  bool waiting = false;  // not started in this epoch: it waits at the gate
  Digest manifest;
  Digest digest;
  std::uint64_t name_hash = 0;
};

/// The answer to FLUSH: a promise that nothing below `target` completes here any more.
struct Report {
  Generation generation = 0;
  Epoch target = 0;
  Epoch epoch = 0;           // of this peer's view
  bool switched = false;     // it entered its view by ACTIVATE, at `switch_step`
  StepId switch_step = 0;
  StepId watermark = 0;      // every step below is committed here
  StepId next_step = 0;
  std::vector<StepId> committed;  // above the watermark
  std::vector<OpenStep> open;
};

/// What a heartbeat carries.
struct HeartbeatStatus {
  Generation generation = 0;
  Epoch epoch = 0;
  StepId watermark = 0;
  StepId next_step = 0;
  std::uint64_t progress = 0;  // bytes moved; only grows
  std::uint8_t waiting = 0;    // 0 nothing, 1 gate, 2 data
  std::vector<PeerId> down;    // links without a live lane for longer than down_after_s
};

enum class SuspectCode : std::uint8_t {
  none = 0, descriptor = 1, digest = 2, deadline = 3, link_down = 4, local = 5,
};

struct Suspect {
  Epoch epoch = 0;
  StepId step = 0;
  SuspectCode code = SuspectCode::none;
  std::vector<PeerId> peers;
  std::string text;
};

}  // namespace pccl
