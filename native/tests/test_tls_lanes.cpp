// native/tests/test_tls_lanes.cpp — encrypted lanes that are relayed, renewed, rekeyed, harmed on
// their way, fenced while they stand still, and left over from an earlier view.
// Ownership: each test owns its world.
// Threads:   one per rank.
// Errors:    CHECKs.
#include <algorithm>
#include <atomic>
#include <cmath>

#include "control_rig.hpp"
#include "engine_world.hpp"
#include "pccl/wire.hpp"
#include "pccl/xxh3.hpp"
#include "tls_proxy.hpp"
#include "tls_rig.hpp"

using namespace world;
using rig::eventually;

namespace {

using Contexts = std::function<std::shared_ptr<const TlsContext>(std::size_t)>;
constexpr std::size_t count = check::sanitized ? 100'000 : 300'000;
constexpr float mark = 1234567.0f;
const std::vector<Algorithm> algorithms = {Algorithm::direct, Algorithm::ring,
                                           Algorithm::exchange};

/// All of `ranks` sum so many times; every sum is exact.
void sums(World& world, const std::vector<std::size_t>& ranks, int steps,
          std::size_t elements = count) {
  World::all(ranks, [&](std::size_t rank) {
    for (int i = 0; i < steps; ++i) {
      std::vector<float> data(elements, mark);
      const bool committed = sum_step(*world.engines[rank], data,
                                      algorithms[static_cast<std::size_t>(i) % 3], 30);
      CHECK(committed);
      if (!committed) std::abort();  // else the others wait for ever
      const float whole = mark * static_cast<float>(ranks.size());
      CHECK(std::all_of(data.begin(), data.end(), [&](float x) { return x == whole; }));
    }
  });
}

/// Each engine behind a proxy, by which all others reach it.
struct HarmedWorld : World {
  explicit HarmedWorld(std::size_t size, std::uint16_t lanes, const Contexts& tls)
      : World(size, lanes, 9, false, tls) {
    for (std::size_t rank = 0; rank < size; ++rank) {
      proxies.push_back(std::make_unique<TlsProxy>(engines[rank]->port()));
      members[rank].endpoint.port = proxies.back()->port();
    }
    install(1, everybody());
  }
  std::vector<std::unique_ptr<TlsProxy>> proxies;
};

}  // namespace

// --- through a relay

TEST(a_relay_carries_encrypted_lanes_of_which_it_hears_nothing) {
  const rig_tls::Authority authority;
  for (const bool secured : {true, false}) {
    const Contexts tls = [&](std::size_t) { return secured ? authority.context() : nullptr; };
    World world(3, 1, 9, false, tls);
    TlsProxy at_relay(world.engines[1]->port());
    for (const std::size_t hidden : {0u, 2u}) world.members[hidden].endpoint.port = 0;
    world.members[1].endpoint.port = at_relay.port();
    world.install(1, world.everybody());
    sums(world, world.everybody(), 6);
    const EngineStats via = world.engines[1]->stats();
    CHECK(via.control.tunnels == 1 && via.control.relayed_bytes > 6 * count);
    // Its own share it sums itself: what it must not hear is what the two others say to each other,
    // and all that passes at its door is heard here.
    for (const float value : {mark, 3 * mark}) {
      const std::vector<float> needle(4, value);
      CHECK(at_relay.heard(std::as_bytes(std::span(needle))) == !secured);
    }
    CHECK(at_relay.heard_bytes() > 6 * count);
  }
}

// --- keys and certificates that change

TEST(sums_are_exact_whatever_the_lanes_are_sealed_by_and_however_often_keys_change) {
  const rig_tls::Authority authority;
  for (const LaneSealing& sealing : {LaneSealing{true, 64 * 1024, 3}, LaneSealing{true, 1000, 1},
                                     LaneSealing{true, 256 * 1024, 5}, LaneSealing{false}}) {
    World world(3, 2, 9, false, [&](std::size_t) {
      return std::make_shared<const TlsContext>(authority.material(authority.issue()), sealing);
    });
    world.install(1, world.everybody());
    sums(world, world.everybody(), 6, 70'001);
    for (const auto& engine : world.engines) CHECK(engine->stats().executor.lanes_lost == 0);
  }
}

namespace {

constexpr long short_s = 3;  // a certificate that is about to end is good so long, or one less

/// Steps go on while certificates are renewed and lanes die; then the first ones have ended.
bool goes_on(bool renews) {
  const rig_tls::Authority authority;
  std::vector<rig_tls::Who> whos;
  for (int i = 0; i < 2; ++i) whos.push_back(authority.issue(-300, short_s));
  const double made_s = monotonic_s();
  HarmedWorld world(2, 2, [&](std::size_t rank) { return authority.context(whos[rank]); });
  sums(world, world.everybody(), 1);
  std::atomic<bool> over{false};
  std::thread renewing([&] {
    for (int i = 0; !over; ++i) {
      for (std::size_t rank = 0; rank < 2 && renews; ++rank) {
        world.engines[rank]->set_tls(authority.context(authority.renew(whos[rank])));
      }
      if (i % 4 == 0) world.proxies[static_cast<std::size_t>(i / 4 % 2)]->cut(1000);
      ::poll(nullptr, 0, 10);
    }
  });
  while (monotonic_s() < made_s + 0.4 * static_cast<double>(short_s)) {
    sums(world, world.everybody(), 3);
  }
  over = true;
  renewing.join();
  while (monotonic_s() < made_s + static_cast<double>(short_s) + 1.2) ::poll(nullptr, 0, 20);
  for (const auto& proxy : world.proxies) proxy->cut_all();
  if (renews) {
    sums(world, world.everybody(), 3);
    CHECK(world.proxies[0]->cuts() + world.proxies[1]->cuts() > (check::sanitized ? 0 : 2));
    return world.engines[0]->stats().control.unproven == 0;
  }
  const auto unproven = [&] { return world.engines[0]->stats().control.unproven > 0; };
  const bool refused = eventually(unproven);
  CHECK(refused && world.engines[0]->stats().lanes == 0);
  for (const auto& engine : world.engines) engine->fail("closed", "the test is over");
  return !refused;
}

}  // namespace

TEST(renewed_certificates_open_the_next_lanes_while_steps_go_on) { CHECK(goes_on(true)); }

TEST(without_renewal_no_lane_comes_up_when_the_certificate_has_ended) { CHECK(!goes_on(false)); }

// --- harm on the way

TEST(a_bit_turned_in_a_lane_in_the_middle_of_an_all_reduce_costs_the_lane_and_no_sum) {
  const rig_tls::Authority authority;
  HarmedWorld world(2, 1, [&](std::size_t) { return authority.context(); });
  sums(world, world.everybody(), 1);
  TlsProxy& proxy = *world.proxies[0];
  TlsProxy& other = *world.proxies[1];
  const int rounds = check::sanitized ? 12 : 60;
  int turned = 0;
  for (int round = 0; round < rounds; ++round) {
    // Large blocks are payloads, small ones what is said around them; all over the block.
    const std::size_t least = round % 3 == 0 ? 60 : 20'000;
    const int before = proxy.flips() + other.flips();
    for (TlsProxy* one : {&proxy, &other}) {
      one->flip(least, static_cast<std::size_t>(round * 1000 / rounds));
    }
    std::atomic<bool> good{true};
    World::all(world.everybody(), [&](std::size_t rank) {
      Engine& engine = *world.engines[rank];
      std::vector<float> data(count, mark);
      const BegunStep begun = engine.begin_step("step", 20);
      engine.post(post_of(begun.step, 0, data.data(), data.data(), count, Dtype::f32,
                          ReduceOp::sum, Algorithm::direct));
      engine.seal(begun.step);
      good = engine.wait_step(begun.step, 20) && good;
      const StepResult result = engine.result(begun.step);
      good = result.state == StepState::committed && result.retries == 0 && good;
      good = std::all_of(data.begin(), data.end(), [](float x) { return x == 2 * mark; }) && good;
      engine.release(begun.step);
    });
    CHECK(good);
    if (!good) std::abort();
    turned += proxy.flips() + other.flips() - before;
  }
  const auto lost = world.engines[0]->stats().executor.lanes_lost +
                    world.engines[1]->stats().executor.lanes_lost;
  std::printf("  %d bits turned, %llu lanes lost\n", turned,
              static_cast<unsigned long long>(lost));
  CHECK(turned >= rounds);
  CHECK(lost > 0);
}

// --- fences while nothing moves

namespace {

constexpr double fence_s = check::sanitized ? 1.0 : 0.1;  // 10 ms, on a machine that is shared

double fenced(Engine& engine, Epoch target, Report& report) {
  const double began_s = monotonic_s();
  report = engine.fence_for_test(1, target);
  return monotonic_s() - began_s;
}

}  // namespace

TEST(a_fence_does_not_wait_for_a_sealed_write_that_stands_still) {
  const rig_tls::Authority authority;
  HarmedWorld world(2, 1, [&](std::size_t) { return authority.context(); });
  sums(world, world.everybody(), 1);
  constexpr std::size_t much = 4'000'000;
  std::vector<float> data[2];
  for (auto& one : data) one.assign(much, mark);
  for (const auto& proxy : world.proxies) proxy->stall(true);
  std::thread program([&] {
    World::all({0, 1}, [&](std::size_t rank) {
      CHECK(sum_step(*world.engines[rank], data[rank], Algorithm::direct, 40));
    });
  });
  // Each side has sent what the way takes, and is at a piece that does not go out.
  const auto all_posted = [&] {
    return world.engines[0]->stats().open_steps + world.engines[1]->stats().open_steps == 2;
  };
  CHECK(eventually(all_posted));
  ::poll(nullptr, 0, 150);
  Report reports[2];
  double slowest_s = 0;
  for (std::size_t rank = 0; rank < 2; ++rank) {
    slowest_s = std::max(slowest_s, fenced(*world.engines[rank], 2, reports[rank]));
  }
  std::printf("  fenced within %.2f ms\n", 1e3 * slowest_s);
  CHECK(slowest_s < fence_s);
  CHECK(reports[0].open.size() == 1 && !reports[0].open[0].complete);
  // Its memory is the caller's again: what it writes there now is not sent, and is what is summed.
  for (const auto& proxy : world.proxies) proxy->stall(false);
  world.install(2, world.everybody(),
                {{reports[0].open[0].step, Verdict::retry, SuspectCode::none, {}}});
  program.join();
  for (const auto& one : data) {
    CHECK(std::all_of(one.begin(), one.end(), [](float x) { return x == 2 * mark; }));
  }
}

TEST(a_fence_does_not_wait_for_a_handshake_that_stands_still) {
  const rig_tls::Authority authority;
  World world(2, 2, 9, false, [&](std::size_t) { return authority.context(); });
  rig::Gate deaf[2];  // takes connections, and says nothing
  for (std::size_t rank = 0; rank < 2; ++rank) {
    world.members[rank].endpoint.port = deaf[rank].port();
  }
  world.install(1, world.everybody());
  std::vector<rig::Wire> strangers;
  for (int i = 0; i < 8; ++i) {  // who begin a greeting, and do not end it
    strangers.push_back(rig::Wire::dial(world.engines[0]->port()));
    strangers.back().write(std::string("\x16\x03\x01\x02\x00\x01", 6));
  }
  std::vector<float> data(1000, mark);
  const BegunStep begun = world.engines[0]->begin_step("step", 5);
  world.engines[0]->post(post_of(begun.step, 0, data.data(), data.data(), data.size(), Dtype::f32,
                                 ReduceOp::sum, Algorithm::direct));
  world.engines[0]->seal(begun.step);
  CHECK(deaf[0].rings(2000) || deaf[1].rings(2000));
  for (Epoch epoch = 2; epoch < 12; ++epoch) {
    Report report;
    CHECK(fenced(*world.engines[0], epoch, report) < fence_s);
    ::poll(nullptr, 0, 5);
  }
  world.engines[0]->fail("closed", "the test is over");
}

// --- what is left over from an earlier view

namespace {

/// A lane by hand, over whatever conduit: it is opened by the book, with a true certificate and the
/// secret of an earlier view.
class Leftover {
 public:
  Leftover(World& world, std::size_t to, std::size_t from,
           const std::shared_ptr<const TlsContext>& tls)
      : conduit_(dialled(world.engines[to]->port(), tls)) {
    frames::Hello hello;
    hello.purpose = Purpose::data_lane;
    hello.peer = world.members[from].member.peer;
    hello.incarnation = from + 1;
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

}  // namespace

TEST(who_is_put_out_has_no_lane_no_byte_and_no_say_in_the_next_view) {
  const rig_tls::Authority authority;
  std::vector<std::shared_ptr<const TlsContext>> contexts;
  for (int i = 0; i < 3; ++i) contexts.push_back(authority.context());
  World world(3, 1, 9, false, [&](std::size_t rank) { return contexts[rank]; });
  std::unique_ptr<TlsProxy> before_2 = std::make_unique<TlsProxy>(world.engines[2]->port());
  world.members[2].endpoint.port = before_2->port();
  world.install(1, world.everybody());
  sums(world, world.everybody(), 2);

  // Rank 2 is out and is not told: it keeps its certificate, its lanes and what it knows.
  const std::vector<std::size_t> left = {0, 1};
  Report report;
  for (const std::size_t rank : left) fenced(*world.engines[rank], 2, report);
  world.install(2, left, {}, 2);
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
