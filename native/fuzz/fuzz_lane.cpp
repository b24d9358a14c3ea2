// native/fuzz/fuzz_lane.cpp — frames of data lanes against posted operations and messages.
//
// The input chooses the operations and writes headers field by field; the check and, mostly, the
// hash are made right, so that what is behind them is reached.  Whatever comes, nothing outside
// the operations' and messages' memory is touched, a retry gives in-place inputs back bit for bit,
// and what is sent is only read.  The other sides may offer rings, and put payloads there or not.
//
// Ownership: everything is made anew for each input.
// Threads:   one.
// Errors:    abort.
#include <algorithm>
#include <deque>
#include <map>
#include <numeric>
#include <string>

#include "fuzz/pieces.hpp"
#include "fuzz/pipe.hpp"
#include "pccl/arithmetic.hpp"
#include "pccl/executor.hpp"
#include "pccl/payload_ring.hpp"
#include "pccl/xxh3.hpp"

using namespace pccl;

namespace {

constexpr std::size_t operations_max = 3;
constexpr std::size_t frames_max = 64;
constexpr std::size_t type_at = 3;  // in a frame
constexpr std::size_t flags_at = 27;

PeerId id(std::uint8_t number) {
  PeerId value;
  value.bytes.fill(number);
  return value;
}

class Host final : public ExecutorHost {
 public:
  void watch(Lane& lane) noexcept override { lanes.push_back(lane.id()); }
  void unwatch(Lane&) noexcept override {}
  void want_write(Lane&, bool) noexcept override {}
  void suspect(Suspect) noexcept override {}
  void dial(DialRequest, bool) noexcept override {}
  void forget(PeerId, Incarnation) noexcept override {}
  void step_decided(const StepRecord&) noexcept override {}
  void letter_ended(const Letter&) noexcept override {}
  void switched(Epoch, StepId) noexcept override {}
  void left(Epoch, StepId) noexcept override {}
  void links_up(Epoch) noexcept override {}
  std::vector<std::uint32_t> lanes;
};

/// Three members; the second one is tested, the others are what the input says.
struct Setting {
  explicit Setting(bool by_memory) : executor(id(2), 1, by_memory, 0, host) {
    for (std::uint8_t number = 1; number <= 3; ++number) {
      const Member member{id(number), number, 0, 0};
      view.members.push_back(member);
      entries.push_back({member, {id(number), number, {}, "127.0.0.1", 9}, 1});
    }
    executor.admit(2);
    fuzz::require(executor.install(view, entries, 0, {}, 0) == Status::ok);
    for (const std::uint8_t number : {std::uint8_t{1}, std::uint8_t{3}}) {
      executor.adopt({id(number), number, 1, false, false},
                     make_socket_conduit(std::move(pipes[number == 1 ? 0 : 1].near)), 0);
    }
  }
  Host host;
  View view{1, 1, {}, Pause::none};
  std::vector<MemberEntry> entries;
  fuzz::Pipe pipes[2];
  std::unique_ptr<PayloadRing> rings[2];  // to what is tested
  Executor executor;
};

/// Returns the frame that offers a ring.
fuzz::Bytes offer_of(const PayloadRing& ring, fuzz::Pieces& input) {
  fuzz::Bytes offer(header_bytes + ring_name_bytes);
  const std::span<std::byte> body = std::span(offer).subspan(header_bytes);
  encode(ring.name(), body.first<ring_name_bytes>());
  if (input.number<std::uint8_t>() == 255) body[4] ^= std::byte{1};  // another descriptor
  FrameHeader header;
  header.type = FrameType::memory;
  sign(header, body);
  encode(header, std::span(offer).first<header_bytes>());
  return offer;
}

/// Moves a frame's payload into a ring, which is made and offered before if there is none.
void pass_through_ring(std::unique_ptr<PayloadRing>& ring, fuzz::Pieces& input,
                       fuzz::Bytes& frame) {
  fuzz::Bytes said;
  if (!ring) {
    ring = PayloadRing::make();
    if (!ring) return;
    said = offer_of(*ring, input);
  }
  const std::size_t length = frame.size() - header_bytes;
  const auto how = input.number<std::uint8_t>();
  if (how < 64) frame[flags_at] = std::byte{flag_unhashed};
  mark_in_ring(std::span(frame).first<header_bytes>());
  if (std::byte* room = how < 250 ? ring->reserve(length) : nullptr; room != nullptr) {
    std::memcpy(room, frame.data() + header_bytes, length);
    ring->produce(length);
  }
  frame.resize(header_bytes);
  fuzz::append(said, frame);
  frame = std::move(said);
}

struct Work {
  Posted posted;  // but for its step and tag
  Plan plan;
  fuzz::Bytes input;
  fuzz::Bytes before;
  fuzz::Bytes output;
  std::size_t own = 0;  // in place: where in the input the output begins
  bool in_place = false;
};

std::size_t bytes_of(const Work& work, const std::vector<std::uint64_t>& parts) {
  return std::accumulate(parts.begin(), parts.end(), std::size_t{0}) *
         size_of(work.posted.descriptor.dtype);
}

/// The plan that the engine will make: rank 1 of 3.
Plan plan_of(const Work& work) {
  const Descriptor& what = work.posted.descriptor;
  PlanRequest request;
  request.collective = what.collective;
  request.algorithm = what.algorithm;
  request.rank = 1;
  request.size = 3;
  request.root = static_cast<std::uint16_t>(std::max(work.posted.root_rank, 0));
  request.count = what.count;
  request.element_bytes = static_cast<std::uint32_t>(size_of(what.dtype));
  request.accumulator_bytes =
      reduces(what.collective)
          ? static_cast<std::uint32_t>(size_of(accumulator_of(what.dtype, what.op)))
          : request.element_bytes;
  request.ordered = what.deterministic;
  request.uneven = what.uneven;
  request.send_counts = work.posted.send_counts;
  request.receive_counts = work.posted.receive_counts;
  return make_plan(request);
}

Work work_of(fuzz::Pieces& input) {
  Work work;
  Descriptor& what = work.posted.descriptor;
  const auto kind = input.number<std::uint8_t>();
  const auto which = input.number<std::uint8_t>();
  what.collective = static_cast<Collective>(which % collective_count);
  const auto dtype = static_cast<Dtype>(kind % dtype_count);
  const auto op = static_cast<ReduceOp>(input.number<std::uint8_t>() % reduce_op_count);
  const bool fits = supported(dtype, op) || !reduces(what.collective);
  what.dtype = fits ? dtype : Dtype::f32;
  what.op = supported(what.dtype, op) ? op : ReduceOp::sum;
  what.algorithm = static_cast<Algorithm>(kind / dtype_count % algorithm_count);
  what.count = input.number<std::uint16_t>() % 2000;
  what.deterministic = (kind & 0x80) != 0;
  if (rooted(what.collective)) work.posted.root_rank = which / collective_count % 3;
  what.uneven = what.collective == Collective::all_to_all && (which & 0x80) != 0;
  if (what.uneven) {
    const std::uint64_t some = what.count;
    work.posted.send_counts = {some / 3, 5, some};
    work.posted.receive_counts = {some, 5, 0};
    what.count = 0;
  }
  work.plan = plan_of(work);
  work.input.assign(bytes_of(work, work.plan.input), std::byte{1});
  work.output.assign(bytes_of(work, work.plan.output), std::byte{2});
  const bool whole = what.collective == Collective::all_reduce ||
                     (what.collective == Collective::reduce && work.posted.root_rank == 1);
  const bool part = what.collective == Collective::reduce_scatter;
  work.in_place = (kind & 1) != 0 && (whole || part);
  if (part) work.own = work.output.size();
  if (work.in_place) work.output.clear();
  work.before = what.collective == Collective::broadcast ? work.output : work.input;
  return work;
}

/// Messages that this peer sends and receives; memory of exactly their sizes.
struct Mail {
  void post(Executor& executor, fuzz::Pieces& input) {
    const auto how = input.number<std::uint8_t>();
    PostedLetter posted;
    posted.sends = (how & 1) != 0;
    posted.rank = (how & 2) != 0 ? 0 : 2;
    if (!posted.sends && (how & 4) != 0) posted.rank = -1;
    posted.tag = (how >> 3) & 1;
    // More than a chunk takes long to fill and to compare: only now and then.
    const std::size_t sizes[] = {0, 9, 500, how >= 0xf0 ? chunk_bytes_max + 9 : 1200};
    memory.emplace_back(sizes[(how >> 4) & 3], posted.sends ? std::byte{3} : std::byte{4});
    sends.push_back(posted.sends);
    posted.what = {Dtype::u8, memory.back().size()};
    posted.memory = memory.back().data();
    posted.deadline_s = 0.5;
    std::string obstacle;
    fuzz::require(executor.post(posted, obstacle) != 0);
  }
  void check() const {
    for (std::size_t i = 0; i < memory.size(); ++i) {
      const fuzz::Bytes& sent = memory[i];
      if (!sends[i] || sent.empty()) continue;
      fuzz::require(sent[0] == std::byte{3} &&
                    std::memcmp(sent.data(), sent.data() + 1, sent.size() - 1) == 0);
    }
  }
  std::deque<fuzz::Bytes> memory;
  std::vector<bool> sends;
};

/// Of messages: numbers, tags and sizes that sometimes fit.
fuzz::Bytes message_frame(fuzz::Pieces& input, FrameHeader header, std::uint8_t style) {
  header.epoch = (style & 1) != 0 ? input.number<std::uint8_t>() % 3 : 0;
  header.step = 1 + (style >> 1) % 4;
  header.tag = (style >> 3) & 1;
  header.slice = (style >> 4) & 1;
  const auto width = input.number<std::uint8_t>();
  const std::uint64_t sizes[] = {0, 9, 500, chunk_bytes_max + 9};
  fuzz::Bytes body;
  if (header.type == FrameType::offer) {
    body.resize(offer_bytes);
    const OfferBody offer{{width < 250 ? Dtype::u8 : Dtype::f64, sizes[width & 3]},
                          (width & 4) == 0, (width >> 3) % 4u};
    encode(offer, std::span<std::byte, offer_bytes>(body.data(), offer_bytes));
  } else if (header.type == FrameType::refused) {
    body.resize(refused_bytes);
    const RefusedBody why{{Dtype::u8, width}, static_cast<RefusalCode>(1 + (width & 1))};
    encode(why, std::span<std::byte, refused_bytes>(body.data(), refused_bytes));
  } else if (header.type == FrameType::held) {
    body.assign(1 + (width & 1), static_cast<std::byte>(width >> 1));
  } else if (header.type == FrameType::message) {
    // A whole chunk takes long to hash: only now and then.
    const std::uint64_t some = (width & 3) == 3 ? 9 : sizes[width & 3];
    body.assign(width >= 252 ? chunk_bytes_max : some, static_cast<std::byte>(width));
  }
  sign(header, body);
  if (header.type == FrameType::message) {
    header.payload_hash = xxh3_128(body, chunk_seed(header.step, header.slice)).low;
    if ((style & 128) != 0) header.payload_hash ^= width & 1;
  }
  fuzz::Bytes out(header_bytes);
  encode(header, std::span<std::byte, header_bytes>(out.data(), header_bytes));
  fuzz::append(out, body);
  return out;
}

/// The lengths that slices of this operation have, so that some frames fit.
std::uint32_t slice_bytes(const Work& work, std::uint16_t shard) {
  if (shard >= work.plan.shards.size() || work.plan.shards[shard].slices == 0) return 0;
  return static_cast<std::uint32_t>(slice_elements(work.plan, work.plan.shards[shard], 0));
}

fuzz::Bytes frame_of(fuzz::Pieces& input, const std::vector<Work>& works) {
  FrameHeader header;
  header.type = static_cast<FrameType>(1 + input.number<std::uint8_t>() % 17);
  const auto style = input.number<std::uint8_t>();
  if (header.type >= FrameType::offer && header.type < FrameType::memory) {
    return message_frame(input, header, style);
  }
  header.epoch = (style & 1) != 0 ? input.number<std::uint8_t>() : 1;
  header.step = (style & 2) != 0 ? input.number<std::uint8_t>() : 0;
  header.tag = input.number<std::uint8_t>() % (operations_max + 1);
  header.shard = input.number<std::uint8_t>() % 4;
  header.phase = static_cast<Phase>((style >> 2) & 1);
  header.slice = (style & 8) != 0 ? input.number<std::uint32_t>() : 0;
  header.weight = (style & 16) != 0 ? input.number<double>() : 1.0;
  const Work* work = header.tag < works.size() ? &works[header.tag] : nullptr;
  const auto from = static_cast<std::uint16_t>(style & 128 ? 0 : 2);
  OpenBody said;
  if (work != nullptr) {
    said = {work->posted.descriptor, elements_from(work->plan, from),
            elements_to(work->plan, from)};
    if (rooted(said.descriptor.collective)) {
      said.descriptor.root = id(static_cast<std::uint8_t>(work->posted.root_rank + 1));
    }
  }
  header.descriptor = work != nullptr ? static_cast<std::uint32_t>(said.digest())
                                      : input.number<std::uint32_t>();
  const auto width = input.number<std::uint8_t>();
  std::size_t length = 0;
  switch (header.type) {
    case FrameType::open: length = open_bytes; break;
    case FrameType::seal: length = seal_bytes; break;
    case FrameType::done: length = done_bytes; break;
    case FrameType::memory: length = ring_name_bytes; break;
    case FrameType::ask: break;
    case FrameType::have: length = width % 32; break;
    case FrameType::worker: length = width % 80; break;
    case FrameType::data:
      // Most are small, though some pass the inbox by: to hash large ones takes most of a run.
      length = (style & 32) != 0 || work == nullptr
                   ? input.number<std::uint16_t>() % ((width & 0x70) == 0x70 ? 0x10000u : 0x1800u)
                   : slice_bytes(*work, header.shard) * std::size_t{width % 9u};
      break;
    default: break;
  }
  fuzz::Bytes body(length);
  const auto given = input.take((style & 64) != 0 ? std::min<std::size_t>(length, 32) : 0);
  if (!given.empty()) std::memcpy(body.data(), given.data(), given.size());
  if (header.type == FrameType::open && work != nullptr && (style & 64) == 0) {
    encode(said, std::span<std::byte, open_bytes>(body.data(), body.size()));
  }
  if (header.type == FrameType::worker) {  // what a conduit through UCX reads; a lane declines
    WorkerBody worker;
    const bool taken = decode(body, worker) == Status::ok;
    fuzz::require(taken == (body.size() > worker_fixed_bytes));
    if (taken) fuzz::require(worker_body(worker) == body);
  }
  sign(header, body);
  if (header.type == FrameType::data) {
    header.payload_hash = xxh3_128(body, slice_seed(header.shard, header.slice)).low;
    if ((width & 128) != 0) header.flags = 0;
  }
  fuzz::Bytes out(header_bytes);
  encode(header, std::span<std::byte, header_bytes>(out.data(), header_bytes));
  fuzz::append(out, body);
  return out;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const DefaultArithmetic arithmetic;
  fuzz::Pieces input(data, size);
  const auto plan = input.number<std::uint8_t>();
  Setting setting((plan & 32) != 0);
  Executor& executor = setting.executor;
  const std::size_t operations = plan % (operations_max + 1);
  std::vector<Work> works;
  for (std::size_t i = 0; i < operations; ++i) works.push_back(work_of(input));
  const auto step = executor.begin(7);
  fuzz::require(step == StepId{0});
  const auto post = [&] {
    for (Tag tag = 0; tag < works.size(); ++tag) {
      Work& work = works[tag];
      Posted posted = work.posted;
      posted.step = *step;
      posted.tag = tag;
      posted.input = work.input.empty() ? nullptr : work.input.data();
      posted.output = work.output.empty() ? nullptr : work.output.data();
      if (work.in_place && !work.input.empty()) posted.output = work.input.data() + work.own;
      if (posted.descriptor.collective == Collective::broadcast) posted.input = posted.output;
      fuzz::require(executor.post(posted) == Status::ok);
    }
    if ((plan & 64) != 0) fuzz::require(executor.seal(*step) == Status::ok);
  };
  if ((plan & 128) == 0) post();  // else all frames are early
  Mail mail;
  for (std::size_t i = 0; i < frames_max && !input.empty(); ++i) {
    const auto way = input.number<std::uint8_t>();
    if ((way & 8) != 0) mail.post(executor, input);
    if (way == 255) executor.tick(1.0);  // their deadline is over
    const std::size_t lane = way & 1;
    Link* link = executor.link_of_lane(setting.host.lanes[lane]);
    fuzz::Bytes frame = frame_of(input, works);
    const auto type = static_cast<FrameType>(frame[type_at]);
    const bool payload = type == FrameType::data || type == FrameType::message;
    if (payload && (way & 16) != 0) pass_through_ring(setting.rings[lane], input, frame);
    if (link == nullptr) continue;  // this one has ended its lane
    const std::size_t cut = (way & 2) != 0 ? std::min<std::size_t>(way, frame.size()) : 0;
    for (const auto part : {std::span(frame).first(cut), std::span(frame).subspan(cut)}) {
      setting.pipes[lane].say(part);
      link = executor.link_of_lane(setting.host.lanes[lane]);
      if (link != nullptr) executor.ready(*link, *link->lanes[0], true, false, 0);
    }
    if ((way & 4) != 0) static_cast<void>(executor.pump(0));
  }
  if ((plan & 128) != 0) post();
  static_cast<void>(executor.pump(0));
  HeartbeatStatus status;
  executor.tell_status(status, 1.0);
  static_cast<void>(executor.fence(1, 2));
  const StepRecord* record = executor.record(*step);
  if (record == nullptr || record->state != StepState::open) return 0;
  setting.view.epoch = 2;
  setting.view.members.erase(setting.view.members.begin() + 2);
  static_cast<void>(executor.install(setting.view, setting.entries, 0,
                                     {{*step, Verdict::fail, SuspectCode::deadline, "late"}}, 1));
  executor.abandon();
  fuzz::require(executor.letters().open() == 0);
  mail.check();
  for (const Work& work : works) {
    const bool received = work.posted.descriptor.collective == Collective::broadcast;
    fuzz::require(fuzz::same(received ? work.output : work.input, work.before));
  }
  return 0;
}
