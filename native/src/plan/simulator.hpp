// native/src/plan/simulator.hpp — the state of one symbolic run of all ranks' plans.
//
// Theory: a value is the set of ranks whose input it contains, and the place in those inputs that
// it comes from.  Folding two sets that meet is a contribution counted twice; an output that is not
// what belonging.hpp says is one forgotten, or put in a wrong place.  Since every
// transfer runs exactly once per slice, what has not run when no message is left waits in a circle.
// Time: a rank has one send port and one receive port, each doing one message after the other; the
// first byte arrives one latency after it was sent, reduction keeps the receive port busy.
//
// Ownership: the plans are borrowed for the simulator's life.
// Threads:   one thread; a simulator runs once.
// Errors:    in Simulation::error; the first found ends the run.
#pragma once

#include <functional>
#include <queue>

#include "validate.hpp"

namespace pccl::plan {

/// One transfer for one slice.
struct Run {
  std::uint16_t needs = 0;
  bool arrived = false;  // receives: the message is here
  bool ran = false;
};

/// One slice on one rank.  Which ranks' inputs are in its accumulator is kept beside it.
struct SliceState {
  std::uint16_t folds = 0;     // contributions and partial sums received
  std::uint16_t forwards = 0;  // sends of the accumulator that have left
  bool accumulated = false;
  bool written = false;     // the output is final: every output is checked when it is written
  std::uint64_t place = 0;  // in the inputs of those contained
};

/// What a rank's plan says about one shard.
struct ShardDuty {
  std::uint16_t folds = 0;
  std::uint16_t forwards = 0;
  bool finishes = false;
};

/// One rank's ports, and what it holds and has sent.
struct Ports {
  double send_free_s = 0;
  double receive_free_s = 0;
  std::uint64_t bytes_sent = 0;
  std::uint32_t accumulators = 0;
};

/// Something that happens to transfer `transfer` of `rank` for slice `slice`.
struct Event {
  double time_s = 0;
  std::uint64_t sequence = 0;  // equal times keep the order in which they were decided
  std::uint32_t slice = 0;
  std::uint16_t rank = 0;
  std::uint16_t transfer = 0;
  bool arrival = false;  // else: the send has left
  bool operator>(const Event& other) const {
    return time_s != other.time_s ? time_s > other.time_s : sequence > other.sequence;
  }
};

class Simulator {
 public:
  Simulator(std::span<const Plan> plans, std::uint32_t element_bytes,
            std::uint32_t accumulator_bytes, const CostModel& cost)
      : plans_(plans), cost_(cost), element_bytes_(element_bytes),
        accumulator_bytes_(accumulator_bytes) {}
  Simulation run();

 private:
  bool lay_out();
  bool start();
  bool happen(const Event& event);
  bool send(std::uint16_t rank, std::uint16_t index, std::uint32_t slice, double ready_s);
  bool receive(std::uint16_t rank, std::uint16_t index, std::uint32_t slice, double time_s);
  void take_input(const Plan& plan, std::uint16_t shard, std::uint32_t slice);
  bool fold(const Plan& plan, std::uint16_t index, std::uint32_t slice);
  bool copy(const Plan& plan, std::uint16_t index, std::uint32_t slice);
  bool finish(const Plan& plan, std::uint16_t shard, std::uint32_t slice);
  bool check_written(const Plan& plan, std::uint16_t shard, std::uint32_t slice);
  bool satisfy(const Plan& plan, const Transfer& transfer, std::uint32_t slice, double time_s);
  bool nothing_left();
  std::uint32_t waits_for(std::uint32_t waiting, std::uint32_t slice) const;
  std::string circle() const;

  bool fail(std::string what) {
    result_.error = std::move(what);
    return false;
  }
  bool fail(const Plan& plan, std::uint16_t index, std::uint32_t slice, const char* what) {
    return fail(describe(plan, index) + ", slice " + std::to_string(slice) + ": " + what);
  }
  bool fail_slice(const Plan& plan, std::uint16_t shard, std::uint32_t slice, std::string what) {
    return fail("rank " + std::to_string(plan.rank) + ": shard " + std::to_string(shard) +
                ", slice " + std::to_string(slice) + " " + what);
  }

  std::uint32_t number(std::uint16_t rank, std::uint16_t index) const {
    return pairing_.first[rank] + index;
  }
  /// Index, in the peer's plan, of the other end of a transfer.
  std::uint16_t partner(std::uint16_t rank, std::uint16_t index) const {
    const std::uint16_t peer = plans_[rank].transfers[index].peer;
    const std::uint32_t other = pairing_.partner[number(rank, index)];
    return static_cast<std::uint16_t>(other - pairing_.first[peer]);
  }
  Run& run_of(std::uint16_t rank, std::uint16_t index, std::uint32_t slice) {
    return runs_[first_run_[number(rank, index)] + slice];
  }
  std::size_t state_index(std::uint16_t rank, std::uint16_t shard, std::uint32_t slice) const {
    return first_slice_[first_shard_[rank] + shard] + slice;
  }
  ShardDuty& duty(std::uint16_t rank, std::uint16_t shard) {
    return duties_[first_shard_[rank] + shard];
  }
  std::uint64_t* contributors(std::size_t state) { return masks_.data() + state * words_; }
  std::uint64_t message_bytes(const Plan& plan, const Transfer& transfer,
                              std::uint32_t slice) const {
    const std::uint64_t elements = slice_elements(plan, plan.shards[transfer.shard], slice);
    return elements * (transfer.element == Element::plain ? element_bytes_ : accumulator_bytes_);
  }
  void push(double time_s, std::uint16_t rank, std::uint16_t index, std::uint32_t slice,
            bool arrival) {
    events_.push({time_s, sequence_++, slice, rank, index, arrival});
  }

  std::span<const Plan> plans_;
  CostModel cost_;
  std::uint64_t element_bytes_;
  std::uint64_t accumulator_bytes_;
  Pairing pairing_;
  std::vector<std::uint16_t> rank_of_;      // per transfer number
  std::vector<std::size_t> first_run_;      // per transfer number, into runs_
  std::vector<std::size_t> first_shard_;    // per rank, into all ranks' shards
  std::vector<std::size_t> first_slice_;    // per rank and shard, into states_
  std::vector<Run> runs_;
  std::vector<SliceState> states_;          // per rank and slice
  std::vector<std::uint64_t> masks_;        // words_ per rank and slice
  std::vector<ShardDuty> duties_;           // per rank and shard
  std::vector<Ports> ports_;                // per rank
  std::size_t words_ = 0;
  std::uint64_t unran_ = 0;
  std::uint64_t sequence_ = 0;
  std::priority_queue<Event, std::vector<Event>, std::greater<>> events_;
  Simulation result_;
};

}  // namespace pccl::plan
