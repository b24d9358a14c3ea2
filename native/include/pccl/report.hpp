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
  bool bound = false;    // holds an operation that means nothing among other members
};

enum class SuspectCode : std::uint8_t {
  none = 0, descriptor = 1, digest = 2, deadline = 3, link_down = 4, local = 5,
  underflow = 6,     // never in a SUSPECT: a reason of a step's failure only
  excluded = 7,      // in a SUSPECT: the sender asks to be, and to stay in the run as a newcomer
  left = 8,  // on no wire: the peer that leaves says it to its own program
  view_changed = 9,  // an operation means nothing among the members that there are now
  nonfinite = 10,    // a contribution holds NaN or infinities, and its program asked for an error
};

/// A step that the members have failed, as this peer was told.
struct FailedStep {
  StepId step = 0;
  SuspectCode code = SuspectCode::none;
  friend bool operator==(const FailedStep&, const FailedStep&) = default;
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
  std::vector<FailedStep> failed;  // the last ones: they too are below the watermark, or committed
};

/// What the oldest open step waits for.
enum class Waiting : std::uint8_t { nothing = 0, gate = 1, peers = 2, program = 3 };

/// What is missing of a peer.
enum class WaitKind : std::uint8_t {
  post = 1,    // its OPEN or SEAL: its program is not there yet
  data = 2,    // its slices or its DONE
  credit = 3,  // bytes for it are queued and it takes none
  unread = 4,  // nothing: its bytes are here, and this side does not read them
};

struct WaitOn {
  PeerId peer;
  WaitKind kind = WaitKind::data;
  friend bool operator==(const WaitOn&, const WaitOn&) = default;
};

inline constexpr StepId no_step = ~StepId{0};

/// What a heartbeat carries.
struct HeartbeatStatus {
  Generation generation = 0;
  Epoch epoch = 0;
  StepId watermark = 0;
  StepId next_step = 0;
  std::uint64_t progress = 0;  // bytes moved and frames handled; only grows
  StepId step = no_step;       // the oldest open one
  Waiting waiting = Waiting::nothing;
  std::vector<WaitOn> waits;    // of `step`, on whom
  std::vector<PeerId> down;     // links without a live lane for longer than down_after_s
  std::vector<PeerId> relayed;  // links whose lanes run through a third peer
};

struct Suspect {
  Epoch epoch = 0;
  StepId step = 0;
  SuspectCode code = SuspectCode::none;
  std::vector<PeerId> peers;
  std::string text;

  /// After the accuser's own id follow those that are new to this entry, as it knows.
  void name_newcomers(const PeerId& self, const std::vector<PeerId>& newcomers) {
    if (newcomers.empty()) return;
    peers.push_back(self);
    peers.insert(peers.end(), newcomers.begin(), newcomers.end());
  }
};

}  // namespace pccl
