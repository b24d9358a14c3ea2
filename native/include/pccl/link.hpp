// native/include/pccl/link.hpp — everything this peer has towards one other: lanes and send queues.
//
// Order of frames: control frames first, then operations and messages that are small as a whole,
// then the others in turn, one frame each, so a large one never holds up a small one by more than
// the frame under way.  Operations and messages take turns.  An operation that the other side has
// not posted yet may send its eager budget; the rest waits for the other side's OPEN.
//
// Ownership: owns its lanes; send queues belong to operations, which unlist them before they go.
// Threads:   under the engine's turn.
// Errors:    none of its own.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "pccl/control.hpp"
#include "pccl/lane.hpp"
#include "pccl/outbox.hpp"
#include "pccl/types.hpp"
#include "pccl/wire.hpp"

namespace pccl {

inline constexpr std::uint64_t eager_operation_bytes = 256 * 1024;
inline constexpr std::uint64_t eager_link_bytes = 8u << 20;
/// A link without a lane is reported as down after that long.
inline constexpr double down_after_s = 0.5;
/// Operations up to this size overtake larger ones.
inline constexpr std::uint64_t small_operation_bytes = 64 * 1024;

struct Correspondent;

struct SendItem {
  std::uint16_t transfer = 0;
  std::uint32_t slice = 0;
};

/// What one operation has for one peer.
struct SendQueue {
  Operation* operation = nullptr;
  std::deque<SendItem> results;  // finished slices: still in cache, so they go first
  std::deque<SendItem> inputs;
  std::uint64_t eager = 0;  // bytes sent before the peer's OPEN came
  bool opened = false;      // the peer has posted the operation
  bool listed = false;      // in one of the link's lists
  [[nodiscard]] bool empty() const noexcept { return results.empty() && inputs.empty(); }
};

class Link final : public FrameSource {
 public:
  Link(PeerId other, Incarnation its_incarnation, double now_s)
      : peer(other), incarnation(its_incarnation), needed_s(now_s), down_since_s(now_s) {}

  bool next(std::uint32_t lane, OutgoingFrame& frame) override;
  void sent(const OutgoingFrame& frame) override;

  /// The queue has something to send (again).
  void list(SendQueue& queue);
  void unlist(SendQueue& queue) noexcept;
  /// The peer posted the operation: nothing of it is eager any more.
  void open(SendQueue& queue);
  /// Queues a control frame; `body` is copied.
  void post(FrameHeader header, std::span<const std::byte> body, BufferPool& buffers);
  [[nodiscard]] bool has_lane(std::uint32_t id) const noexcept;
  [[nodiscard]] bool up() const noexcept { return !lanes.empty(); }
  [[nodiscard]] std::size_t direct_lanes() const noexcept;
  [[nodiscard]] bool relayed() const noexcept { return up() && direct_lanes() == 0; }
  [[nodiscard]] bool has_output() const noexcept;
  /// The peer asks for more than it reads.
  [[nodiscard]] bool flooded() const noexcept { return control_.size() > control_frames_max; }
  /// There is something for the peer, and for that long it has taken nothing.
  [[nodiscard]] bool stands_still(double now_s, double patience_s) const noexcept;
  /// Bytes of the peer have lain here for that long, and this side takes none of them.
  [[nodiscard]] bool unread(double patience_s) const noexcept;

  const PeerId peer;
  const Incarnation incarnation;
  double needed_s;                  // when it last belonged to a member or to a step that runs
  double down_since_s;              // meaningful while there is no lane
  std::vector<std::unique_ptr<Lane>> lanes;
  PeerEndpoint endpoint;            // empty host: not known yet
  std::uint16_t dialling = 0;       // direct lanes this side has asked for that are not here yet
  double relay_dialling_s = 0;      // a relayed one is asked for, until then
  PeerId relay_dialled{};           // through whom
  std::uint32_t meeting_turn = 0;   // meetings at relays that came to nothing
  std::uint32_t series = 0;         // of the lanes that live, or that died last
  double direct_again_s = 0;        // while relayed: when to try the direct way again
  double company_s = 0;             // when to look after the peer control connection again
  bool undialled = false;           // the last dial failed: only a new plan asks again
  bool lost_lane = false;           // since the link was made: frames may need sending again
  bool same_host = false;           // by what the view says
  bool damaged = false;             // a lane has brought a damaged frame: none of them is trusted
  bool dirty = false;               // has output that was not pumped yet
  std::uint64_t early_bytes = 0;    // staged from this peer before the operation was posted
  EagerBudget eager{eager_link_bytes};
  Correspondent* mail = nullptr;    // whoever makes the link makes it
  std::deque<std::pair<Epoch, StepId>> told;  // attempts whose DONE went to it, the latest last
  bool owes_answers = false;        // RECEIVED or REFUSED was said, and may not have arrived

 private:
  [[nodiscard]] bool may_send(const SendQueue& queue) const noexcept;
  bool next_of(std::deque<SendQueue*>& queues, std::uint32_t lane, OutgoingFrame& frame);
  bool next_chunk(bool small, std::uint32_t lane, OutgoingFrame& frame);

  // Far above what the open steps of a correct peer need: one frame per operation and transfer.
  static constexpr std::size_t control_frames_max = 1u << 20;
  std::deque<OutgoingFrame> control_;
  std::deque<SendQueue*> small_;
  std::deque<SendQueue*> bulk_;
  std::vector<SendQueue*> waiting_;  // beyond their eager budget
  bool messages_turn_ = false;
};

}  // namespace pccl
