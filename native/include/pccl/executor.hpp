// native/include/pccl/executor.hpp — steps, operations and links of this peer, and what arrives.
//
// The executor performs what the outcome machine decides: it starts attempts, routes frames to
// operations, keeps early frames of operations not posted here yet, counts completions, sends DONE,
// and at a fence stops every byte.  It does no waiting; the engine owns threads and time.
//
// Ownership: owns links, step records and operations; callers' tensors are borrowed until the step
//            is decided.
// Threads:   under the engine's turn.
// Errors:    Status; a link that breaks the protocol loses the lane it did it on.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <unordered_map>
#include <vector>

#include "pccl/control.hpp"
#include "pccl/letters.hpp"
#include "pccl/link.hpp"
#include "pccl/operation.hpp"
#include "pccl/outcome.hpp"

namespace pccl {

/// A member as the coordinator describes it.
struct MemberEntry {
  Member member;
  PeerEndpoint endpoint;
  std::uint64_t host_key = 0;
};

enum class StepState : std::uint8_t { open = 0, committed = 1, failed = 2 };

struct StepRecord {
  StepId id = 0;
  std::uint64_t name_hash = 0;
  Epoch epoch = 0;                // of the attempt
  bool started = false;           // in that epoch, and not fenced
  bool sealed = false;
  bool notify = false;            // tell the host when it is decided
  bool accused = false;           // one mismatch is told once per attempt
  StepState state = StepState::open;
  std::uint32_t retries = 0;
  std::uint16_t rank = 0;         // among the attempt's participants of the own group
  std::vector<Link*> peers;       // by that rank; null for this peer
  std::vector<Link*> everyone;    // the other participants, of all groups: DONE goes to them
  std::vector<PeerId> contributors;
  std::vector<std::uint32_t> groups;  // of each participant, of all groups
  std::vector<std::pair<PeerId, Incarnation>> present;     // the attempt's, of the own group
  std::vector<std::pair<PeerId, Incarnation>> begun_with;  // the first attempt's: ranks are of it
  std::vector<std::unique_ptr<Operation>> operations;
  std::unordered_map<Tag, Operation*> by_tag;
  std::size_t completed = 0;
  std::uint64_t control_bytes = 0;
  std::uint64_t wire_bytes = 0;   // when decided
  Digest manifest;
  SuspectCode code = SuspectCode::none;
  std::string text;
};

/// What the executor asks of the engine around it.
class ExecutorHost {
 public:
  virtual void watch(Lane& lane) noexcept = 0;    // a new lane: poll it
  virtual void unwatch(Lane& lane) noexcept = 0;
  virtual void want_write(Lane& lane, bool wanted) noexcept = 0;
  virtual void suspect(Suspect suspicion) = 0;
  /// Opens lanes, and a peer control connection if there is none; the host fills in how long.
  virtual void dial(DialRequest request, bool again) = 0;
  virtual void forget(PeerId peer, Incarnation incarnation) = 0;  // stop dialling
  virtual void step_decided(const StepRecord& record) = 0;
  virtual void letter_ended(const Letter& letter) = 0;
  virtual void switched(Epoch epoch, StepId step) = 0;
  virtual void left(Epoch epoch, StepId step) = 0;
  virtual void links_up(Epoch epoch) = 0;

 protected:
  ~ExecutorHost() = default;
};

struct ExecutorCounters {
  std::uint64_t frames_received = 0;
  std::uint64_t frames_discarded = 0;
  std::uint64_t lanes_lost = 0;
  std::uint64_t lanes_refused = 0;  // ended for breaking the protocol
  std::uint64_t frames_early = 0;
  std::uint64_t controls_handled = 0;  // OPEN, SEAL and DONE that were news
  std::uint64_t lanes_silent = 0;      // given up because nothing came back through them
  std::uint64_t bytes_by_memory = 0;   // sent through rings
};

/// A message that a program sends, or is ready to receive.
struct PostedLetter {
  bool sends = false;
  int rank = -1;                  // of the other end in the view in force; -1: see `peer`
  std::optional<PeerId> peer;     // its name; neither: from any
  Tag tag = 0;
  Content what;
  std::byte* memory = nullptr;    // a send only reads it
  double deadline_s = 0;
};

class Executor final : public FrameSink, private LettersHost {
 public:
  Executor(PeerId self, std::uint16_t lanes, bool shared_memory, std::uint64_t host_key,
           ExecutorHost& host);

  // --- the program ---
  std::optional<StepId> begin(std::uint64_t name_hash);
  /// Why begin() will go on saying no; an exclusion is told once.
  Refusal refusal() noexcept { return machine_ ? machine_->refusal() : Refusal::none; }
  /// usage: the step is not open, sealed, or has this tag already, the root is no member of it, or
  /// the sizes of the parts are not one for each of its members.
  Status post(Posted posted);
  Status seal(StepId step);
  [[nodiscard]] StepRecord* record(StepId step) noexcept;
  void release(StepId step);

  /// 0: the other end is no other member of the own group, or the size is beyond all limits; the
  /// text says so.
  LetterId post(const PostedLetter& posted, std::string& obstacle);
  [[nodiscard]] Letters& letters() noexcept { return letters_; }

  // --- the coordinator, by way of the engine ---
  void admit(Incarnation incarnation);
  Report fence(Generation generation, Epoch target);
  void prepare(Epoch epoch, const std::vector<MemberEntry>& members, double now_s);
  StepId hold(Generation generation, Epoch epoch);
  [[nodiscard]] std::uint64_t entry_within(std::uint64_t name_hash) const {
    return machine_ ? machine_->entry_within(name_hash) : 0;
  }
  void activate(const View& view, const std::vector<MemberEntry>& members, StepId step,
                std::optional<std::uint64_t> name_hash, double now_s);
  void cancel_plan(Generation generation, Epoch epoch);
  Status install(const View& view, const std::vector<MemberEntry>& members, StepId committed_below,
                 const std::vector<Decision>& decisions, double now_s);
  void exclude(Generation generation, Epoch epoch, const std::string& text, SuspectCode code);

  // --- sockets ---
  void adopt(const LaneHello& hello, std::unique_ptr<Conduit> conduit, double now_s);
  /// Reads and writes what a ready lane can; the lane may be gone afterwards.
  void ready(Link& link, Lane& lane, bool readable, bool writable, double now_s);
  /// Sends what queued up; true if some lane still has output and is not blocked.
  bool pump(double now_s);
  void tick(double now_s);
  void dial_failed(PeerId peer, Incarnation incarnation, bool relayed, double now_s);
  /// Through whom links without lanes are dialled from now on; lanes that live stay.
  void set_routes(Generation generation, const std::vector<Route>& table, double now_s);
  [[nodiscard]] const PeerEndpoint* endpoint_of(PeerId peer,
                                                Incarnation incarnation) const noexcept;
  /// Nothing has been heard of the peer for too long: what its lanes carry may be lost.
  void silent(PeerId peer, Incarnation incarnation, double now_s);
  /// The engine is failing: stops everything and gives every open step's inputs back.
  void abandon() noexcept;
  /// abandon(), and closes every lane: what is held here is not to be trusted any more.
  void cut() noexcept;

  Status place(Link& link, const FrameHeader& header, Placement& placement) override;
  Status delivered(Link& link, const FrameHeader& header, Placement& placement) override;

  [[nodiscard]] const OutcomeMachine* machine() const noexcept {
    return machine_ ? &*machine_ : nullptr;
  }
  /// Fills in all that a heartbeat says about steps and links.
  void tell_status(HeartbeatStatus& status, double now_s) const;
  [[nodiscard]] std::uint64_t progress() const noexcept { return environment_.progress; }
  [[nodiscard]] const ExecutorCounters& counters() const noexcept { return counters_; }
  [[nodiscard]] Link* link_of_lane(std::uint32_t id) noexcept;
  [[nodiscard]] std::size_t open_steps() const noexcept;
  /// The planned view that lacks a link to that peer, which could just not be dialled; 0: none.
  Epoch lacks(PeerId peer, Incarnation incarnation) noexcept;
  [[nodiscard]] bool has_output() const noexcept;
  /// This peer has left as planned, or has answered to messages, and others do not have all yet
  /// that it has to say.
  [[nodiscard]] bool owes_words() const noexcept;
  [[nodiscard]] std::size_t lane_count() const noexcept;
  [[nodiscard]] std::size_t link_count() const noexcept { return links_.size(); }
  Environment& environment() noexcept { return environment_; }

 private:
  using Key = std::tuple<Epoch, StepId, Tag>;
  struct EarlyFrame { Link* link; FrameHeader header; Buffer buffer; };
  struct EarlyOperation {
    std::vector<std::pair<Link*, OpenBody>> opens;
    std::vector<EarlyFrame> frames;
  };
  struct EarlySeal { Link* link; SealBody body; };

  void perform(Effects effects);
  void on_start(const Start& effect);
  void on_undo(StepId step);
  void on_end(StepRecord& record);
  void start_operation(StepRecord& record, Operation& operation);
  void replay(StepRecord& record, Operation& operation);
  void check_open(StepRecord& record, Operation& operation, Link& link, const OpenBody& theirs);
  void check_seals(StepRecord& record);
  void accuse(StepRecord& record, Link& link, std::string text);
  void completed(StepRecord& record, Operation& operation);
  void complete_step(StepRecord& record);
  void settle_sent();
  void stop(Operation& operation) noexcept;
  void feed_starved();
  void purge_early();
  Operation* find(const FrameHeader& header, StepRecord** record) noexcept;
  Status stage(Link& link, const FrameHeader& header, Placement& placement);
  Status on_open(Link& link, const FrameHeader& header, const OpenBody& theirs);
  Status on_control(Link& link, const FrameHeader& header, const Placement& placement);
  // Each queues one control frame and returns its bytes on the wire.
  std::size_t post_open(Link& link, const Operation& operation);
  std::size_t post_seal(Link& link, const StepRecord& step);
  std::size_t post_done(Link& link, const SendDone& done);
  void resynchronise(Link& link, bool ask);
  void say_done_again(Link& link);
  void send_haves(Link& link);
  void send_haves(Link& link, const Operation& operation);
  [[nodiscard]] bool over(const FrameHeader& header) noexcept;
  void tell_waits(const StepRecord& step, std::vector<WaitOn>& waits, double now_s) const;
  [[nodiscard]] bool has_sealed(const StepRecord& step, const Link& link) const noexcept;

  Link& link_to(PeerId peer, Incarnation incarnation, double now_s);
  void learn(const std::vector<MemberEntry>& members, double now_s);
  void dial_all(const std::vector<MemberEntry>& members, double now_s);
  void dial_planned(double now_s);
  void mark_needed(double now_s);
  using Links = std::map<std::pair<PeerId, Incarnation>, std::unique_ptr<Link>>;

  /// Of no member and nobody in the plan: nobody needs it.
  [[nodiscard]] bool is_strange(const Link& link) const;
  void drop_strangers(double now_s);
  /// Before a link to another incarnation of a peer: whoever has its certificate and has been put
  /// out may make up as many as it likes, and gets the room of a few.
  void make_room_for(PeerId peer, double now_s);
  Links::iterator drop(Links::iterator link);
  [[nodiscard]] bool dials(const Link& link) const noexcept;
  void dial(Link& link, double now_s);
  void dial_relay(Link& link, double now_s);
  [[nodiscard]] const Link* meeting_place(const Link& link) const;
  [[nodiscard]] std::optional<PeerId> carrier(const Link& link) const;
  void lose_tunnels(double now_s);
  void keep_company(Link& link, double now_s);
  void look_after(Link& link, double now_s, bool expecting);
  void lose(Link& link, Lane& lane, Status why, double now_s);
  void take_out(Link& link, Lane& lane);
  template <class Wanted>
  void lose_silent(Link& link, double now_s, const Wanted& wanted);
  void check_links_up();
  std::size_t pump_link(Link& link, double now_s);
  // LettersHost
  void say(Correspondent& to, FrameHeader header, std::span<const std::byte> body) override;
  void has_chunks(Correspondent& to) noexcept override;
  void let_go(Correspondent& to, LetterId letter) noexcept override;
  void ended(const Letter& letter) override { host_.letter_ended(letter); }
  void hear_out(const View& next, double now_s);
  void tell_letters();
  Status hear_of_letter(Link& link, const FrameHeader& header, const std::byte* body);
  std::shared_ptr<const CompiledPlan> plan_for(const StepRecord& record, const Posted& posted);
  void refuse(StepRecord& record, std::string text);

  PeerId self_;
  std::uint16_t lanes_wanted_;
  bool shared_memory_;
  std::uint64_t host_key_;
  ExecutorHost& host_;
  BufferPool buffers_;
  UndoArena undo_;
  Environment environment_{buffers_, undo_};
  ExecutorCounters counters_;
  std::optional<OutcomeMachine> machine_;
  Letters letters_;
  Links links_;
  std::unordered_map<std::uint32_t, Link*> lane_links_;
  std::uint32_t next_lane_ = 1;
  std::map<StepId, StepRecord> steps_;
  std::map<Key, EarlyOperation> early_;
  std::map<std::pair<Epoch, StepId>, std::vector<EarlySeal>> seals_;
  std::map<std::string, std::shared_ptr<const CompiledPlan>> plans_;
  std::map<PeerId, PeerId> routes_;  // who is reached through whom
  bool dialable_ = true;             // this peer, as the latest view or plan says
  std::uint32_t series_ = 0;         // the last one begun: higher than those of all links
  Epoch planned_ = 0;    // view whose links are kept open until it is in force, or cancelled
  Epoch preparing_ = 0;  // the same, until all of them have been up at once; 0: none
  std::vector<Link*> prepared_;
  double next_tick_s_ = 0;
  double next_strangers_s_ = 0;
  std::pair<PeerId, Incarnation> pumped_last_;  // so that each link comes first in its turn
  bool abandoned_ = false;  // callers have their memory back: nothing may touch it again
};

}  // namespace pccl
