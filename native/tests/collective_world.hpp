// native/tests/collective_world.hpp — every collective over engines in one process, with integer
// values that tell whose they are and where they lay.
// Ownership: a Case owns its arrays; they outlive the step.
// Threads:   one per rank.
// Errors:    CHECKs.
#pragma once

#include <numeric>

#include "engine_world.hpp"

namespace world {

inline constexpr Collective every_collective[] = {
    Collective::all_reduce, Collective::reduce_scatter, Collective::all_gather,
    Collective::broadcast,  Collective::reduce,         Collective::gather,
    Collective::scatter,    Collective::all_to_all,     Collective::barrier};

/// One rank's side of one operation.
struct Case {
  Collective kind = Collective::broadcast;
  std::size_t size = 2;
  std::size_t root = 0;
  std::size_t count = 0;  // elements of the whole, or of an even part
  bool uneven = false;
  bool in_place = false;
  Dtype dtype = Dtype::f32;
  ReduceOp op = ReduceOp::sum;
  Algorithm algorithm = Algorithm::automatic;
  bool deterministic = false;
};

/// Element `i` of what rank `from` has for rank `to`, or for all.
inline float element(std::size_t from, std::size_t to, std::size_t i) {
  return static_cast<float>((i * 31 + from * 7 + to * 1009) % 251);
}

class Side {
 public:
  Side(const Case& what, std::size_t rank) : what_(what), rank_(rank) {
    const bool is_root = rank == what.root;
    const Collective kind = what.kind;
    for (std::size_t other = 0; other < what.size; ++other) {
      sends_.push_back(input_in_parts(kind) ? part(rank, other) : part(rank, what.root));
      receives_.push_back(output_in_parts(kind) ? part(other, rank) : part(what.root, rank));
    }
    if (has_input(kind, is_root)) {
      for (std::size_t to = 0; to < (input_in_parts(kind) ? what.size : 1); ++to) {
        for (std::size_t i = 0; i < sends_[to]; ++i) input_.push_back(element(rank, to, i));
      }
    }
    if (has_output(kind, is_root)) make_output();
    place();
    original_ = memory_;
  }

  [[nodiscard]] Posted posted(StepId step, Tag tag) {
    Posted made{step, tag, {}, bytes(input_at_), bytes(output_at_), 1.0};
    made.descriptor = {what_.dtype, what_.op, {}, what_.algorithm, what_.uneven ? 0 : what_.count,
                       what_.deterministic, what_.kind, what_.uneven, {}};
    if (kind() == Collective::barrier) made.descriptor.count = 0;
    if (rooted(kind())) made.root_rank = static_cast<int>(what_.root);
    if (!what_.uneven) return made;
    const std::vector<std::uint64_t> all_sends(sends_.begin(), sends_.end());
    const std::vector<std::uint64_t> all_receives(receives_.begin(), receives_.end());
    const bool is_root = rank_ == what_.root;
    if (kind() == Collective::reduce_scatter || kind() == Collective::all_to_all) {
      made.send_counts = all_sends;
    }
    if (kind() == Collective::all_gather || kind() == Collective::all_to_all) {
      made.receive_counts = all_receives;
    }
    if (kind() == Collective::gather) made.send_counts = {sends_[0]};
    if (kind() == Collective::gather && is_root) made.receive_counts = all_receives;
    if (kind() == Collective::scatter) made.receive_counts = {receives_[rank_]};
    if (kind() == Collective::scatter && is_root) made.send_counts = all_sends;
    return made;
  }

  /// The output holds what it should, among `members` (for what can lose some).
  [[nodiscard]] bool right(const std::vector<std::size_t>& members) const {
    if (output_at_ == nothing) return true;
    const float* output = memory_.data() + output_at_;
    std::size_t at = 0;
    const std::size_t parts = output_in_parts(kind()) ? what_.size : 1;
    for (std::size_t from = 0; from < parts; ++from) {
      for (std::size_t i = 0; i < receives_[output_in_parts(kind()) ? from : rank_]; ++i, ++at) {
        if (output[at] != due(parts > 1 ? from : what_.root, i, members)) return false;
      }
    }
    return true;
  }
  /// What the caller handed in is as it was.
  [[nodiscard]] bool kept() const {
    if (kind() == Collective::broadcast) return memory_ == original_;
    if (input_at_ == nothing) return true;
    return std::equal(input_.begin(), input_.end(), memory_.begin() + static_cast<long>(input_at_));
  }

 private:
  static constexpr std::size_t nothing = ~std::size_t{0};

  [[nodiscard]] Collective kind() const { return what_.kind; }
  [[nodiscard]] std::size_t part(std::size_t from, std::size_t to) const {
    if (kind() == Collective::barrier) return 0;
    if (!what_.uneven) return what_.count;
    if (kind() == Collective::all_to_all) return (from + 2 * to) % 3 * what_.count;
    const std::size_t owner = input_in_parts(kind()) ? to : from;  // all know all of these
    return owner % 3 * what_.count + owner;
  }
  void make_output() {
    const std::size_t parts = output_in_parts(kind()) ? what_.size : 1;
    std::size_t total = 0;
    for (std::size_t from = 0; from < parts; ++from) total += receives_[parts > 1 ? from : rank_];
    if (kind() == Collective::all_reduce || kind() == Collective::broadcast ||
        kind() == Collective::reduce) {
      total = what_.count;
    }
    output_elements_ = total;
    wants_output_ = true;
  }
  /// Where input and output lie in memory_, in one another where the operation is in place.
  void place() {
    const std::size_t own_input = std::accumulate(
        sends_.begin(), sends_.begin() + static_cast<long>(rank_), std::size_t{0});
    const std::size_t own_output = std::accumulate(
        receives_.begin(), receives_.begin() + static_cast<long>(rank_), std::size_t{0});
    const bool has_in = has_input(kind(), rank_ == what_.root);
    if (kind() == Collective::broadcast) {
      memory_ = has_in ? input_ : std::vector<float>(what_.count, -5.0f);
      input_at_ = output_at_ = 0;
      return;
    }
    memory_ = input_;
    input_at_ = has_in ? 0 : nothing;
    if (!wants_output_) return;
    if (!what_.in_place || !has_in || kind() == Collective::all_to_all) {
      output_at_ = memory_.size();
      memory_.resize(memory_.size() + output_elements_, -1.0f);
    } else if (output_in_parts(kind())) {  // the input is a part of the output
      memory_.assign(output_elements_, -1.0f);
      std::copy(input_.begin(), input_.end(), memory_.begin() + static_cast<long>(own_output));
      input_at_ = own_output;
      output_at_ = 0;
    } else {
      output_at_ = input_in_parts(kind()) ? own_input : 0;
    }
  }
  [[nodiscard]] float due(std::size_t from, std::size_t i,
                          const std::vector<std::size_t>& members) const {
    const std::size_t to = input_in_parts(kind()) ? rank_ : 0;
    if (!reduces(kind())) return element(from, to, i);
    float sum = 0;
    for (const std::size_t member : members) sum += element(member, to, i);
    return sum;
  }
  [[nodiscard]] std::byte* bytes(std::size_t at) {
    return at == nothing ? nullptr : reinterpret_cast<std::byte*>(memory_.data() + at);
  }

  Case what_;
  std::size_t rank_;
  std::vector<std::size_t> sends_;     // elements for each rank, or for all
  std::vector<std::size_t> receives_;  // elements of each rank
  std::vector<float> input_;
  std::vector<float> memory_;
  std::vector<float> original_;
  std::size_t output_elements_ = 0;
  bool wants_output_ = false;
  std::size_t input_at_ = nothing;
  std::size_t output_at_ = nothing;
};

/// Runs one step of it on `engine`; says how it ended.
inline StepResult run_side(Engine& engine, Side& side, double timeout_s = 20) {
  const BegunStep begun = engine.begin_step("step", timeout_s);
  engine.post(side.posted(begun.step, 0));
  engine.seal(begun.step);
  CHECK(engine.wait_step(begun.step, timeout_s));
  StepResult result = engine.result(begun.step);
  engine.release(begun.step);
  return result;
}

}  // namespace world
