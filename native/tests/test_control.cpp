// native/tests/test_control.cpp — the control thread towards peers: strangers, lanes, beats.
// Ownership: see control_rig.hpp.
// Threads:   the test's and each Control's own.
// Errors:    CHECK.
#include <sys/resource.h>

#include <map>
#include <set>
#include <system_error>
#include <thread>
#include <utility>

#include "control_rig.hpp"

namespace {

using namespace rig;

constexpr std::uint16_t nowhere = 1;  // nobody listens there: the coordinator is away

ControlConfig hasty() {
  ControlConfig config;
  config.handshake_timeout_s = 0.2;
  config.peer_beat_s = 0.02;
  return config;
}

/// A peer that is admitted and known to be so.
void settle(Peer& peer) {
  peer.admit(nowhere);
  CHECK(eventually([&] {
    Wire probe = Wire::dial(peer.control.port());
    probe.write(peer.hello(Purpose::peer_control));
    return probe.next<frames::Welcome>().has_value();
  }));
}

bool gets_a_lane(Peer& peer) {
  const std::size_t before = peer.host.look([](auto& seen) { return seen.lanes.size(); });
  Wire wire = Wire::dial(peer.control.port());
  wire.write(peer.hello(Purpose::data_lane));
  return wire.next<frames::Welcome>().has_value() &&
         peer.host.sees([&](auto& seen) { return seen.lanes.size() > before; });
}

TEST(two_controls_open_three_lanes_and_beat) {
  Peer a(1, hasty());
  Peer b(2, hasty());
  b.host.beating.watermark = 42;
  a.admit(nowhere);
  b.admit(nowhere);
  a.control.connect({b.endpoint(), 3, patience_s, 5.0, 7});

  const auto three = [](auto& seen) { return seen.lanes.size() == 3; };
  CHECK(a.host.sees(three));
  CHECK(b.host.sees(three));
  a.host.look([&](auto& seen) {
    for (const auto& lane : seen.lanes) {
      CHECK(lane.hello.dialled && lane.hello.peer == id<PeerId>(2) && lane.hello.incarnation == 2);
      CHECK(lane.hello.series == 7 && !lane.hello.relayed && lane.socket);
    }
  });
  b.host.look([&](auto& seen) {
    for (const auto& lane : seen.lanes) {
      CHECK(!lane.hello.dialled && lane.hello.peer == id<PeerId>(1) && lane.hello.incarnation == 1);
      CHECK(lane.hello.series == 7 && !lane.hello.relayed && lane.socket);
    }
  });

  CHECK(b.host.sees([](auto& seen) { return seen.beats.size() >= 5; }));
  CHECK(a.host.sees([](auto& seen) { return seen.beats.size() >= 5; }));
  CHECK(a.host.look([](auto& seen) { return seen.beats[0] == id<PeerId>(2); }));
  CHECK(a.host.look([](auto& seen) { return seen.watermarks[0] == 42; }));
  CHECK(b.host.look([](auto& seen) { return seen.beats[0] == id<PeerId>(1); }));
  CHECK(b.control.counters().accepted == 4);  // three lanes and peer control
  CHECK(a.control.counters().dropped == 0 && b.control.counters().dropped == 0);
}

TEST(a_lane_that_both_adopted_is_the_same_connection_with_nothing_read_beyond_the_handshake) {
  Peer b(2, hasty());
  settle(b);
  Wire wire = Wire::dial(b.control.port());
  Bytes bytes;
  CHECK(frames::encode(b.hello(Purpose::data_lane), bytes) == Status::ok);
  for (const char c : std::string("first data")) bytes.push_back(static_cast<std::byte>(c));
  wire.write(bytes.data(), bytes.size());  // HELLO and data in one segment
  CHECK(wire.next<frames::Welcome>().has_value());
  CHECK(b.host.sees([](auto& seen) { return seen.lanes.size() == 1; }));
  char data[16] = {};
  const ssize_t got = b.host.look([&](auto& seen) {
    const int fd = seen.lanes[0].socket.get();
    CHECK((::fcntl(fd, F_GETFL) & O_NONBLOCK) != 0);
    CHECK((::fcntl(fd, F_GETFD) & FD_CLOEXEC) != 0);
    return ::recv(fd, data, sizeof data, 0);
  });
  CHECK(got == 10 && std::string(data) == "first data");
}

TEST(a_dialled_lane_reads_the_welcome_and_not_a_byte_more) {
  Peer a(1, hasty());
  Gate gate;
  a.admit(nowhere);
  a.control.connect({{id<PeerId>(2), 2, id<Secret>(2), "127.0.0.1", gate.port()}, 1,
                    patience_s});
  std::map<Purpose, Wire> wires;
  for (int i = 0; i < 2; ++i) {
    Wire wire = gate.accept();
    const auto hello = wire.next<frames::Hello>();
    CHECK(hello && hello->secret == id<Secret>(2) && hello->run_id == id<RunId>(9));
    CHECK(hello && hello->peer == id<PeerId>(1) && hello->incarnation == 1);
    if (hello) wires[hello->purpose] = std::move(wire);
  }
  CHECK(wires.contains(Purpose::data_lane) && wires.contains(Purpose::peer_control));
  Bytes bytes;
  CHECK(frames::encode(frames::Welcome{}, bytes) == Status::ok);
  bytes.push_back(std::byte{'x'});
  wires[Purpose::data_lane].write(bytes.data(), bytes.size());
  CHECK(a.host.sees([](auto& seen) { return seen.lanes.size() == 1; }));
  char data[4] = {};
  CHECK(a.host.look([&](auto& seen) {
    return ::recv(seen.lanes[0].socket.get(), data, sizeof data, 0);
  }) == 1);
  CHECK(data[0] == 'x');
}

TEST(before_admission_a_hello_is_refused_and_the_dialler_tries_again_until_it_is_welcome) {
  Peer a(1, hasty());
  Peer b(2, hasty());
  Wire early = Wire::dial(b.control.port());
  early.write(b.hello(Purpose::data_lane));
  const auto refusal = early.next<frames::Refused>();
  CHECK(refusal && refusal->code == 4);
  CHECK(early.ends());

  a.admit(nowhere);
  a.control.connect({b.endpoint(), 1, patience_s});
  b.admit(nowhere);
  CHECK(a.host.sees([](auto& seen) { return seen.lanes.size() == 1; }));
  CHECK(a.host.look([](auto& seen) { return seen.failed.empty(); }));
}

TEST(hostile_first_frames_are_dropped_and_counted_while_a_good_peer_gets_its_lane) {
  Peer peer(2, hasty());
  settle(peer);
  std::uint64_t dropped = 0;
  const auto drops = [&](const char* what, Wire wire) {
    ++dropped;
    const bool gone = wire.ends() &&
                      eventually([&] { return peer.control.counters().dropped == dropped; });
    if (!gone) std::fprintf(stderr, "not dropped and counted: %s\n", what);
    CHECK(gone);
    CHECK(gets_a_lane(peer));
  };
  const auto sending = [&](const std::string& bytes) {
    Wire wire = Wire::dial(peer.control.port());
    wire.write(bytes);
    return wire;
  };
  drops("another protocol", sending("GET / HTTP/1.1\r\n\r\n"));
  drops("an oversized length", sending(std::string("\x01\x10\x00\x00\xC1", 5)));
  drops("a huge length", sending(std::string("\xFF\xFF\xFF\xFF", 4)));
  drops("a length of nothing", sending(std::string("\x00\x00\x00\x00", 4)));
  Bytes whole;
  CHECK(frames::encode(peer.hello(Purpose::data_lane), whole) == Status::ok);
  const auto part = [&](std::size_t bytes) {
    return std::string(reinterpret_cast<const char*>(whole.data()), bytes);
  };
  const Bytes messagepack = framed(Bytes(64, std::byte{0x93}));
  drops("a body of MessagePack",
        sending({reinterpret_cast<const char*>(messagepack.data()), frames::head_bytes + 1}));
  drops("a frame that never ends", sending(part(frames::head_bytes + 2)));
  for (std::size_t at = 0; at < whole.size(); ++at) {
    std::string damaged = part(whole.size());
    damaged[at] = static_cast<char>(damaged[at] ^ 1 << at % 8);
    Wire wire = sending(damaged);
    wire.close();  // a length that grew would wait for more
    ++dropped;
    CHECK(eventually([&] { return peer.control.counters().dropped == dropped; }));
  }
  drops("silence", Wire::dial(peer.control.port()));
  Wire other_type = Wire::dial(peer.control.port());
  other_type.write(frames::Flush{1, 2});
  drops("a frame that is no HELLO", std::move(other_type));
  Wire cut = sending(part(frames::head_bytes + 3));
  cut.close();
  ++dropped;
  CHECK(eventually([&] { return peer.control.counters().dropped == dropped; }));
}

TEST(a_hello_that_does_not_belong_here_is_told_why) {
  Peer peer(2, hasty());
  settle(peer);
  std::uint64_t dropped = 0;
  const auto refused_with = [&](const Bytes& bytes) {
    Wire wire = Wire::dial(peer.control.port());
    wire.write(bytes.data(), bytes.size());
    const auto refusal = wire.next<frames::Refused>();
    CHECK(wire.ends());
    ++dropped;
    CHECK(peer.control.counters().dropped == dropped);
    CHECK(refusal && !refusal->text.empty());
    return refusal ? refusal->code : 0;
  };
  const auto changed = [&](auto change) {
    frames::Hello hello = peer.hello(Purpose::data_lane);
    change(hello);
    Bytes bytes;
    CHECK(frames::encode(hello, bytes) == Status::ok);
    return bytes;
  };
  const auto raw = [&](std::size_t at, int value) {
    Bytes bytes = changed([](frames::Hello&) {});
    bytes[frames::head_bytes + at] = static_cast<std::byte>(value);
    return framed(std::span(bytes).subspan(frames::head_bytes));
  };
  CHECK(refused_with(raw(2, frames::version_known + 1)) == 1);
  CHECK(refused_with(raw(3, 6)) == 6);  // a purpose nobody knows
  CHECK(refused_with(changed([](auto& hello) { hello.purpose = Purpose::coordinator; })) == 6);
  CHECK(refused_with(changed([](auto& hello) { hello.run_id = id<RunId>(8); })) == 2);
  CHECK(refused_with(changed([](auto& hello) { hello.secret = id<Secret>(3); })) == 3);
  CHECK(refused_with(changed([](auto& hello) { hello.secret.bytes[15] ^= 1; })) == 3);
  CHECK(peer.host.look([](auto& seen) { return seen.lanes.empty(); }));
  CHECK(gets_a_lane(peer));
}

TEST(a_probe_that_says_nothing_and_leaves_is_not_counted_as_hostile) {
  Peer peer(2, hasty());
  settle(peer);
  Wire::dial(peer.control.port()).close();
  CHECK(gets_a_lane(peer));
  CHECK(peer.control.counters().dropped == 0);
}

TEST(running_out_of_descriptors_neither_spins_nor_deafens_the_listener) {
  Peer peer(2, hasty());
  settle(peer);
  rlimit before{};
  ::getrlimit(RLIMIT_NOFILE, &before);
  Wire wire = Wire::dial(peer.control.port());
  wire.write(peer.hello(Purpose::data_lane));
  CHECK(wire.next<frames::Welcome>().has_value());
  Wire waiting(Fd{::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)});
  rlimit none = before;
  none.rlim_cur = 3;  // descriptors that are open stay so; no new one can be made
  ::setrlimit(RLIMIT_NOFILE, &none);
  CHECK(::dup(0) < 0 && errno == EMFILE);
  waiting.dial_to(peer.control.port());
  timespec cpu_before{};
  ::clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &cpu_before);
  CHECK(waiting.silent_for(300));  // neither accepted nor lost, and no reason to spin meanwhile
  timespec cpu_after{};
  ::clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &cpu_after);
  ::setrlimit(RLIMIT_NOFILE, &before);
  const double used_s = static_cast<double>(cpu_after.tv_sec - cpu_before.tv_sec) +
                        static_cast<double>(cpu_after.tv_nsec - cpu_before.tv_nsec) * 1e-9;
  CHECK(used_s < 0.15);
  waiting.write(peer.hello(Purpose::data_lane));
  CHECK(waiting.next<frames::Welcome>().has_value());
}

TEST(a_closed_port_fails_a_connect_once_by_its_deadline) {
  Peer a(1, hasty());
  a.admit(nowhere);
  const double start_s = monotonic_s();
  a.control.connect({{id<PeerId>(2), 2, id<Secret>(2), "127.0.0.1", nowhere}, 3, 0.3});
  CHECK(a.host.sees([](auto& seen) { return seen.failed.size() == 1; }));
  const double took_s = monotonic_s() - start_s;
  CHECK(took_s >= 0.3 && took_s < 3.0);
  // A later connect fails later: had the first one told twice, there would be three by now.
  a.control.connect({{id<PeerId>(3), 3, id<Secret>(3), "127.0.0.1", nowhere}, 2, 0.1});
  CHECK(a.host.sees([](auto& seen) { return seen.failed.size() >= 2; }));
  CHECK(a.host.look([](auto& seen) { return seen.failed; }) ==
        (std::vector<PeerId>{id<PeerId>(2), id<PeerId>(3)}));
}

TEST(a_listener_that_never_answers_fails_a_connect_once_and_the_lanes_that_are_up_stay) {
  Peer a(1);  // the handshake timeout is longer than the deadline below
  a.admit(nowhere);
  Gate gate;
  a.control.connect({{id<PeerId>(2), 2, id<Secret>(2), "127.0.0.1", gate.port()}, 2, 0.5});
  std::vector<Wire> wires;
  bool welcomed = false;
  for (int i = 0; i < 3; ++i) {
    wires.push_back(gate.accept());
    const auto hello = wires.back().next<frames::Hello>();
    if (hello && hello->purpose == Purpose::data_lane && !std::exchange(welcomed, true)) {
      wires.back().write(frames::Welcome{});
    }
  }
  CHECK(a.host.sees([](auto& seen) { return seen.lanes.size() == 1; }));
  CHECK(a.host.sees([](auto& seen) { return seen.failed.size() == 1; }));
  CHECK(a.host.look([](auto& seen) { return seen.lanes.size() == 1; }));
}

TEST(a_forgotten_incarnation_is_neither_dialled_nor_reported) {
  Peer a(1, hasty());
  a.admit(nowhere);
  a.control.connect({{id<PeerId>(2), 2, id<Secret>(2), "127.0.0.1", nowhere}, 1, 0.2});
  a.control.forget(id<PeerId>(2), 2);
  a.control.connect({{id<PeerId>(3), 3, id<Secret>(3), "127.0.0.1", nowhere}, 1, 0.3});
  CHECK(a.host.sees([](auto& seen) { return !seen.failed.empty(); }));
  CHECK(a.host.look([](auto& seen) { return seen.failed; }) ==
        (std::vector<PeerId>{id<PeerId>(3)}));
}

TEST(forget_closes_the_peer_control_connection_on_both_ends) {
  Peer a(1, hasty());
  a.admit(nowhere);
  Gate gate;
  a.control.connect({{id<PeerId>(2), 2, id<Secret>(2), "127.0.0.1", gate.port()}, 0,
                    patience_s});
  Wire wire = gate.accept();
  CHECK(wire.next<frames::Hello>().has_value());
  wire.write(frames::Welcome{});
  CHECK(wire.next<frames::PeerBeat>().has_value());
  a.control.connect({{id<PeerId>(2), 2, id<Secret>(2), "127.0.0.1", gate.port()}, 0,
                    patience_s});  // there is one: no second
  CHECK(wire.next<frames::PeerBeat>().has_value());
  CHECK(!gate.rings(50));
  a.control.forget(id<PeerId>(2), 2);
  CHECK(wire.ends());
}

TEST(a_port_in_use_or_an_address_that_is_none_throws_at_once) {
  Gate gate;
  FakeHost host;
  for (const std::string& address : {std::string("127.0.0.1"), std::string("localhost")}) {
    ControlConfig config;
    config.listen_host = address;
    config.listen_port = gate.port();
    bool thrown = false;
    try {
      Control control(config, host);
    } catch (const std::system_error& error) {
      thrown = std::string(error.what()).find(address) != std::string::npos;
    }
    CHECK(thrown);
  }
}

TEST(stop_closes_the_listener_and_is_idempotent_from_two_threads) {
  Peer peer(2, hasty());
  settle(peer);
  Wire wire = Wire::dial(peer.control.port());
  wire.write(peer.hello(Purpose::peer_control));
  CHECK(wire.next<frames::PeerBeat>().has_value());
  std::thread other([&] { peer.control.stop(); });
  peer.control.stop();
  other.join();
  CHECK(wire.ends());
  peer.control.connect({peer.endpoint(), 1, 0.01});  // after the end: ignored
  Fd fd;
  CHECK(connect_tcp("127.0.0.1", peer.control.port(), fd) == Status::ok);
  pollfd ready_fd{fd.get(), POLLOUT, 0};
  CHECK(::poll(&ready_fd, 1, 5000) == 1);
  CHECK(connect_result(fd.get()) == Status::io_error);
}

TEST(an_empty_host_listens_for_ipv4_too) {
  ControlConfig config = hasty();
  config.listen_host = "";
  Peer peer(2, config);
  settle(peer);
  CHECK(gets_a_lane(peer));
}

}  // namespace
