// native/tests/test_tls_leftover.cpp — a peer that was put out keeps its certificate, its lanes and
// what it knows, and gets nothing by them in the next view.
// Ownership: each test owns its world.
// Threads:   one per rank.
// Errors:    CHECKs.
#include <algorithm>
#include <array>
#include <atomic>

#include "control_rig.hpp"
#include "pccl/wire.hpp"
#include "pccl/xxh3.hpp"
#include "tls_world.hpp"

using namespace world;

namespace {

/// A lane by hand, over whatever conduit: it is opened by the book, with a true certificate and the
/// secret of an earlier view.
class Leftover {
 public:
  Leftover(World& world, std::size_t to, std::size_t from,
           const std::shared_ptr<const TlsContext>& tls, Incarnation incarnation = 0)
      : conduit_(dialled(world.engines[to]->port(), tls)) {
    frames::Hello hello;
    hello.purpose = Purpose::data_lane;
    hello.peer = world.members[from].member.peer;
    hello.incarnation = incarnation == 0 ? from + 1 : incarnation;
    hello.secret = world.members[to].endpoint.secret;
    hello.series = 1000;  // newer than all that it had
    std::vector<std::byte> bytes;
    CHECK(frames::encode(frames::Frame{hello}, bytes) == Status::ok);
    std::size_t sent = 0;
    const iovec part{bytes.data(), bytes.size()};
    CHECK(conduit_->send({&part, 1}, sent) == Status::ok && sent == bytes.size());
    welcomed = hears_welcome();
    CHECK(conduit_->seal_in_bulk() == Status::ok);
  }
  void say(FrameHeader header, std::span<const std::byte> body) {
    sign(header, body);
    if (header.type == FrameType::data) {
      header.payload_hash = xxh3_128(body, slice_seed(header.shard, header.slice)).low;
    }
    std::array<std::byte, header_bytes> front;
    encode(header, front);
    const iovec parts[] = {{front.data(), front.size()},
                           {const_cast<std::byte*>(body.data()), body.size()}};
    std::size_t sent = 0;
    (void)conduit_->send(parts, sent);
  }
  /// The frames that came behind the welcome.
  std::vector<FrameHeader> frames_heard() {
    std::vector<std::byte> heard(1 << 20);
    heard.resize(hears(heard));
    std::vector<FrameHeader> frames;
    for (std::size_t at = 0; at + header_bytes <= heard.size();) {
      FrameHeader header;
      CHECK(decode(std::span(heard).subspan(at).first<header_bytes>(), header) == Status::ok);
      frames.push_back(header);
      at += header_bytes + header.length;
    }
    return frames;
  }
  bool welcomed = false;

 private:
  static std::unique_ptr<Conduit> dialled(std::uint16_t port,
                                          const std::shared_ptr<const TlsContext>& tls) {
    Fd fd;
    CHECK(connect_tcp("127.0.0.1", port, fd) == Status::ok);
    auto conduit = tls->dial(std::move(fd), {});
    Status status = Status::would_block;
    for (int i = 0; i < 3000 && status == Status::would_block; ++i) {
      status = conduit->establish();
      ::poll(nullptr, 0, 1);
    }
    CHECK(status == Status::ok);
    return conduit;
  }
  /// No more than that: what follows is sealed otherwise.
  bool hears_welcome() {
    std::vector<std::byte> bytes(frames::head_bytes);
    frames::Head head;
    if (hears(bytes) != bytes.size() ||
        !frames::decode_head(std::span(bytes).first<frames::head_bytes>(), head)) {
      return false;
    }
    bytes.resize(head.length);
    frames::Frame frame;
    return hears(bytes) == bytes.size() && frames::decode(bytes, frame) == Status::ok &&
           std::holds_alternative<frames::Welcome>(frame);
  }
  /// Bytes that come until there are enough, or none for a second, or the lane ends.
  std::size_t hears(std::span<std::byte> into) {
    std::size_t all = 0;
    for (int idle = 0; idle < 500 && all < into.size();) {
      const iovec part{into.data() + all, into.size() - all};
      std::size_t got = 0;
      bool drained = false;
      const Status status = conduit_->receive({&part, 1}, got, drained);
      if (status != Status::ok && status != Status::would_block) break;
      all += got;
      if (status == Status::ok) continue;
      ++idle;
      ::poll(nullptr, 0, 2);
    }
    return all;
  }
  std::unique_ptr<Conduit> conduit_;
};

std::vector<std::shared_ptr<const TlsContext>> three_contexts() {
  const rig_tls::Authority authority;
  std::vector<std::shared_ptr<const TlsContext>> contexts;
  for (int i = 0; i < 3; ++i) contexts.push_back(authority.context());
  return contexts;
}

/// Rank 2 is out and is not told: it keeps its certificate, its lanes and what it knows.
void put_out_2(World& world, const std::vector<std::size_t>& left) {
  Report report;
  for (const std::size_t rank : left) fenced(*world.engines[rank], 2, report);
  world.install(2, left, {}, 2);
}

}  // namespace

TEST(who_is_put_out_has_no_lane_no_byte_and_no_say_in_the_next_view) {
  const auto contexts = three_contexts();
  World world(3, 1, 9, false, [&](std::size_t rank) { return contexts[rank]; });
  std::unique_ptr<TlsProxy> before_2 = std::make_unique<TlsProxy>(world.engines[2]->port());
  world.members[2].endpoint.port = before_2->port();
  world.install(1, world.everybody());
  sums(world, world.everybody(), 2);

  const std::vector<std::size_t> left = {0, 1};
  put_out_2(world, left);
  std::atomic<bool> committed{false};
  std::vector<float> outside(count, -5.0f);
  std::thread outsider([&] {
    committed = sum_step(*world.engines[2], outside, Algorithm::direct, 1.5);
  });
  const std::uint64_t heard = world.engines[2]->stats().executor.frames_received;
  sums(world, left, 6);
  // By hand: the frames of a true member, of the view in force.
  Leftover leftover(world, 0, 2, contexts[2]);
  std::vector<float> mine(count, mark);
  std::vector<float> theirs(count, mark);
  std::thread program([&] {
    World::all(left, [&](std::size_t rank) {
      CHECK(sum_step(*world.engines[rank], rank == 0 ? mine : theirs, Algorithm::direct, 20));
    });
  });
  const std::vector<std::byte> lie(4000, std::byte{7});
  for (int i = 0; i < 50; ++i) {
    for (StepId step = 6; step < 11; ++step) {
      FrameHeader header{.type = FrameType::data, .epoch = 2, .step = step, .tag = 0};
      header.phase = i % 2 == 0 ? Phase::reduce : Phase::gather;
      leftover.say(header, lie);
    }
  }
  program.join();
  for (const float x : mine) {
    if (x == 2 * mark) continue;
    CHECK(!"the outsider has been heard");
    break;
  }
  sums(world, left, 3);
  outsider.join();
  CHECK(!committed);
  CHECK(leftover.welcomed);  // a newcomer opens its lanes before it is in the view, too
  for (const FrameHeader& header : leftover.frames_heard()) {
    // How steps in which it took part have ended it may know, and nothing else.
    CHECK(header.type != FrameType::data && header.type != FrameType::open);
    CHECK(header.epoch < 2);
  }
  CHECK(world.engines[2]->stats().executor.frames_received == heard);
  CHECK(world.engines[1]->stats().executor.lanes_lost == 0);
  world.engines[2]->fail("closed", "the test is over");
}

TEST(who_is_put_out_gets_the_room_of_two_however_many_incarnations_it_makes_up) {
  const auto contexts = three_contexts();
  World world(3, 1, 9, false, [&](std::size_t rank) { return contexts[rank]; });
  world.install(1, world.everybody());
  sums(world, world.everybody(), 2);
  const std::vector<std::size_t> left = {0, 1};
  put_out_2(world, left);
  // Its engine would dial again for as long as nobody tells it; only what is made by hand counts.
  world.engines[2].reset();
  constexpr std::size_t between_the_two = 1;
  for (const std::size_t rank : left) {
    CHECK(rig::eventually([&] { return world.engines[rank]->stats().lanes == between_the_two; }));
  }
  const std::uint64_t lost = world.engines[1]->stats().executor.lanes_lost;
  std::vector<std::unique_ptr<Leftover>> crowd;
  for (Incarnation made_up = 1000; made_up < 1040; ++made_up) {
    crowd.push_back(std::make_unique<Leftover>(world, 0, 2, contexts[2], made_up));
  }
  CHECK(crowd.back()->welcomed);
  CHECK(world.engines[0]->stats().lanes <= between_the_two + 2);
  sums(world, left, 4);
  // Without another view, too, they end: nobody needs them.
  for (int i = 0; i < 25 && world.engines[0]->stats().lanes > between_the_two; ++i) {
    std::this_thread::sleep_for(std::chrono::seconds(1));
    sums(world, left, 2);
  }
  CHECK(world.engines[0]->stats().lanes == between_the_two);
  CHECK(world.engines[1]->stats().executor.lanes_lost == lost);
}
