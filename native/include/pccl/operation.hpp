// native/include/pccl/operation.hpp — one posted operation, and its attempts.
//
// An attempt walks a plan, slice by slice: incoming contributions are folded into the slice's
// accumulator, a finished slice goes out, a finished slice that comes in is copied.  The
// accumulator is the output itself where element types allow and order does not matter, else a
// pooled tile; a result that has no place in the output here stays in such a tile until the attempt
// ends, for a lane may die and the slice be asked for again.  One's own elements are copied to
// their place in the output when they are first sent.
//
// With a codec, contributions travel quantised and are added up decoded; the owner of a shard
// quantises the finished slice once, keeps the bytes to send them (again), and decodes them into
// its own output, as everybody else does.  Its own contribution never travels and is added as it
// is.
//
// What a result overwrites of the caller's input is first saved to the undo block, so that undo()
// can give the input back until the step commits; of a broadcast in place that is what receivers
// had in the array.
//
// Invariants: a (transfer, slice) is applied at most once per attempt; no byte of the caller's
// memory is touched while !running().
// Ownership: the caller's memory is borrowed until the operation goes; undo block and tiles are
//            owned.
// Threads:   under the engine's turn.
// Errors:    Status::protocol for frames that do not fit the plan; exhausted without memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "pccl/buffers.hpp"
#include "pccl/coder.hpp"
#include "pccl/kernels.hpp"
#include "pccl/lane.hpp"
#include "pccl/link.hpp"
#include "pccl/plan.hpp"
#include "pccl/wire.hpp"

namespace pccl {

/// A plan with the look-ups that the data path needs; immutable, shared, cached.
struct CompiledPlan {
  explicit CompiledPlan(Plan made);
  Plan plan;
  std::vector<std::uint32_t> first_slice;  // per shard: its slices' place among all
  std::uint32_t slices = 0;                // of all shards
  std::uint64_t results = 0;               // of those with a place in the output
  std::vector<std::uint16_t> reduces;      // per shard: contributions this rank folds per slice
  std::vector<std::uint8_t> sends_input;   // per shard: this rank sends it as it stands
  /// The receive of (phase, shard, peer), or -1.
  [[nodiscard]] int receive_of(Phase phase, std::uint16_t shard, std::uint16_t peer) const noexcept;
  [[nodiscard]] int send_of(Phase phase, std::uint16_t shard, std::uint16_t peer) const noexcept;

 private:
  std::vector<std::pair<std::uint64_t, std::uint16_t>> receives_;  // sorted by key
  std::vector<std::pair<std::uint64_t, std::uint16_t>> sends_;
};

/// What an operation needs from its surroundings.
struct Environment {
  BufferPool& buffers;
  UndoArena& undo;
  std::uint64_t progress = 0;   // payload bytes moved
  /// Operations whose last slice became final on the way out: a send had to leave first.
  std::vector<std::pair<StepId, Tag>> finished_by_send{};
  bool starved = false;         // some operation lacked memory to fold: feed() tries again
};

struct Posted {
  StepId step = 0;
  Tag tag = 0;
  Descriptor descriptor;
  const std::byte* input = nullptr;
  std::byte* output = nullptr;  // may be the input
  double weight = 1.0;
  int root_rank = -1;  // in the view that the step began in, for descriptor.root; -1: it is set
  /// Parts of unequal size: see PlanRequest.  Empty where they are equal.
  std::vector<std::uint64_t> send_counts{};
  std::vector<std::uint64_t> receive_counts{};
  /// The contribution is left out: zeros with the weight 0 take its place, while the input is kept
  /// and given back as ever.  Sums and averages only.
  bool left_out = false;
};

class Operation {
 public:
  Operation(const Posted& posted, Environment& environment);
  ~Operation();
  Operation(const Operation&) = delete;
  Operation& operator=(const Operation&) = delete;

  // --- an attempt ---
  /// `peers` by plan rank, null for this one.
  Status start(Epoch epoch, std::shared_ptr<const CompiledPlan> plan, std::vector<Link*> peers);
  /// Nothing is sent or applied any more; lanes must let_go() of it as well.
  void stop() noexcept;
  /// Gives the input back after stop().
  void undo() noexcept;

  // --- frames in ---
  Status place(const FrameHeader& header, std::uint16_t from, Placement& placement) noexcept;
  /// Applies a whole payload; `placement` as place() or the early store made it.
  Status deliver(const FrameHeader& header, std::uint16_t from, Placement& placement);
  /// Folds what has come in whole but found no memory; exhausted if there still is none.
  Status feed();
  /// What the peer lacks of what dead lanes carried is queued again.
  void have(const FrameHeader& header, std::uint16_t from, const std::byte* bitmap);
  /// Bitmaps of what has come from `from`, one per transfer: calls `emit(header, bytes)`.
  template <class Emit>
  void report_received(std::uint16_t from, const Emit& emit) const;

  // --- frames out ---
  Status build(const SendItem& item, std::uint32_t lane, OutgoingFrame& frame);
  void sent(const OutgoingFrame& frame);
  [[nodiscard]] std::uint32_t frame_bytes(const SendItem& item) const noexcept;

  // --- questions ---
  [[nodiscard]] const Posted& posted() const noexcept { return posted_; }
  [[nodiscard]] std::uint64_t bytes() const noexcept { return bytes_; }
  [[nodiscard]] Epoch epoch() const noexcept { return epoch_; }
  [[nodiscard]] bool running() const noexcept { return running_; }
  /// All results are here and, where those do not show it, all others have posted their side.
  [[nodiscard]] bool complete() const noexcept {
    return running_ && finals_left_ == 0 && opens_left_ == 0;
  }
  [[nodiscard]] Digest digest() const noexcept { return digest_; }
  [[nodiscard]] int rank_of(const Link& link) const noexcept;
  /// Calls `lacking(rank)` for each peer that still owes slices; some may be named twice.
  template <class Lacking>
  void lacks(const Lacking& lacking) const;
  [[nodiscard]] SendQueue& queue(std::uint16_t peer) noexcept { return queues_[peer]; }
  [[nodiscard]] FrameHeader header(FrameType type) const noexcept;
  /// Its OPEN came and fits; false: it had come before.
  bool open(std::uint16_t peer) noexcept;
  [[nodiscard]] bool opened(std::uint16_t peer) const noexcept {
    return peer < opened_.size() && opened_[peer] != 0;
  }
  /// What OPEN says to that peer.  running() is assumed.
  [[nodiscard]] OpenBody open_body(std::uint16_t peer) const noexcept;

  std::uint32_t group = 0;           // of the attempt, as every frame of it says
  std::uint64_t wire_bytes = 0;      // over all attempts
  bool counted = false;              // the executor has seen it complete in this attempt

 private:
  struct TransferState {
    std::vector<std::uint16_t> needs;      // sends: left per slice
    std::vector<std::uint32_t> lane;       // sends: 0 not built yet, else lane id + 1
    std::vector<std::uint8_t> received;    // receives: 1 when applied
    std::uint32_t left = 0;                // receives: slices that have not been
  };
  struct SliceState {
    Buffer accumulator;
    std::uint16_t folded = 0;     // contributions of others
    std::uint16_t turn = 0;       // ordered: next rank to fold
    std::uint16_t in_flight = 0;  // built frames that read this slice's input or accumulator
    bool saved = false;           // in the undo block
    bool settled = false;         // one's own, and at its place
    bool final = false;
    double partial_weight = 0;    // ring: of the accumulator, this rank's own included
    std::uint64_t hash = 0;       // of the final bytes
  };

  [[nodiscard]] std::uint32_t index(std::uint16_t shard, std::uint32_t slice) const noexcept {
    return plan_->first_slice[shard] + slice;
  }
  /// Whether this rank's output has a place for the shard.
  [[nodiscard]] bool lands(std::uint16_t shard) const noexcept {
    return plan_->plan.shards[shard].output != no_place;
  }
  [[nodiscard]] std::uint64_t place(std::uint64_t begin, std::uint32_t slice) const noexcept {
    return (begin + std::uint64_t{slice} * plan_->plan.slice_count) * element_bytes_;
  }
  [[nodiscard]] std::uint64_t input_offset(std::uint16_t shard,
                                           std::uint32_t slice) const noexcept {
    return place(plan_->plan.shards[shard].input, slice);
  }
  [[nodiscard]] std::uint64_t output_offset(std::uint16_t shard,
                                            std::uint32_t slice) const noexcept {
    return place(plan_->plan.shards[shard].output, slice);
  }
  [[nodiscard]] std::uint64_t seed(std::uint16_t shard, std::uint32_t slice) const noexcept {
    return slice_seed(plan_->plan.shards[shard].name, slice);
  }
  [[nodiscard]] std::uint64_t elements(std::uint16_t shard, std::uint32_t slice) const noexcept;
  [[nodiscard]] std::uint32_t length(const Transfer& transfer, std::uint32_t slice) const noexcept;
  [[nodiscard]] bool in_place() const noexcept { return posted_.output == posted_.input; }
  [[nodiscard]] bool overwrites(const std::byte* begin, std::uint64_t bytes) const noexcept;
  [[nodiscard]] bool needs_undo() const noexcept;
  void lay_out();
  [[nodiscard]] bool accumulates_in_output(std::uint16_t shard) const noexcept;
  [[nodiscard]] double weight_sum(const SliceState& slice) const noexcept;

  void save(std::uint16_t shard, std::uint32_t slice) noexcept;
  Status fold(const Transfer& transfer, std::uint32_t slice, const std::byte* data,
              double weight);
  Status fold_ordered(std::uint16_t shard, std::uint32_t slice);
  void fold_or_starve(std::uint16_t shard, std::uint32_t slice);
  /// Memory for a result that cannot stay where it is accumulated; false: there is none.
  bool take_result(std::uint16_t shard, std::uint32_t slice, Buffer& result) noexcept;
  void finish(std::uint16_t shard, std::uint32_t slice, Buffer result) noexcept;
  void finish_coded(std::uint16_t shard, std::uint32_t slice, Buffer result) noexcept;
  [[nodiscard]] CodeSeed code_seed(Phase phase) const noexcept {
    return {posted_.step, posted_.tag, plan_->plan.rank, static_cast<std::uint8_t>(phase)};
  }
  [[nodiscard]] std::uint64_t first_element(std::uint16_t shard,
                                            std::uint32_t slice) const noexcept {
    return plan_->plan.shards[shard].output + std::uint64_t{slice} * plan_->plan.slice_count;
  }
  void settle_own(std::uint16_t shard, std::uint32_t slice);
  void compare_signatures();
  void finalize(std::uint16_t shard, std::uint32_t slice, Digest digest) noexcept;
  void run_next(const Transfer& transfer, std::uint32_t slice);
  Status build_input(const SendItem& item, OutgoingFrame& frame);
  void enqueue(std::uint16_t transfer, std::uint32_t slice);
  /// What this rank adds itself.
  [[nodiscard]] const std::byte* contribution(std::uint16_t shard,
                                              std::uint32_t slice) const noexcept;
  const std::byte* original(std::uint16_t shard, std::uint32_t slice) const noexcept;
  void settle_kept();

  Posted posted_;
  Environment& environment_;
  const Kernels& kernels_;
  const Coder coder_;
  std::uint32_t element_bytes_;
  std::uint32_t accumulator_bytes_;
  std::uint64_t bytes_;              // of the larger space
  const std::byte* kept_ = nullptr;  // what undo() gives back lies there
  std::uint64_t kept_bytes_ = 0;

  bool running_ = false;
  Epoch epoch_ = 0;
  std::shared_ptr<const CompiledPlan> plan_;
  std::vector<Link*> peers_;
  std::vector<SendQueue> queues_;
  std::vector<double> weights_;
  std::uint32_t signature_ = 0;           // what frames say that they belong to
  std::vector<std::uint32_t> says_;       // uneven: to each peer
  std::vector<std::uint32_t> expects_;    // and of it
  std::vector<TransferState> transfers_;
  std::vector<SliceState> slices_;
  std::unordered_map<std::uint64_t, Buffer> staged_;  // ordered: by slice and rank
  bool starved_ = false;                              // ordered: some slice found no memory
  std::uint64_t finals_left_ = 0;
  std::vector<std::uint8_t> opened_;  // by plan rank
  std::uint32_t opens_left_ = 0;      // that completion waits for
  Digest digest_;
  UndoBlock undo_;
};

template <class Lacking>
void Operation::lacks(const Lacking& lacking) const {
  if (!running_) return;
  for (std::size_t i = 0; i < transfers_.size(); ++i) {
    if (transfers_[i].left > 0) lacking(plan_->plan.transfers[i].peer);
  }
}

template <class Emit>
void Operation::report_received(std::uint16_t from, const Emit& emit) const {
  for (std::size_t i = 0; i < transfers_.size(); ++i) {
    const Transfer& transfer = plan_->plan.transfers[i];
    if (transfer.kind == TransferKind::send || transfer.peer != from) continue;
    const auto& received = transfers_[i].received;
    if (received.empty()) continue;
    std::vector<std::byte> bitmap((received.size() + 7) / 8);
    for (std::size_t slice = 0; slice < received.size(); ++slice) {
      if (received[slice] != 0) bitmap[slice / 8] |= static_cast<std::byte>(1u << (slice % 8));
    }
    FrameHeader frame = header(FrameType::have);
    frame.shard = plan_->plan.shards[transfer.shard].name;
    frame.phase = transfer.phase;
    frame.length = static_cast<std::uint32_t>(bitmap.size());
    emit(frame, std::span<const std::byte>(bitmap));
  }
}

}  // namespace pccl
