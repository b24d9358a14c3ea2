// native/tests/test_control_silence.cpp — peers that are not heard, and dials that get no answer.
// Ownership: see control_rig.hpp.
// Threads:   see control_rig.hpp.
// Errors:    CHECK.
#include <csignal>
#include <map>
#include <string>
#include <sys/wait.h>
#include <unistd.h>

#include <vector>

#include "control_rig.hpp"

namespace {

using namespace rig;

constexpr std::uint16_t nowhere = 9;

ControlConfig strict() {
  ControlConfig config;
  config.peer_beat_s = 0.02;
  config.peer_silence_s = 0.15;
  return config;
}

PeerEndpoint stranger_at(std::uint16_t port) {
  return {id<PeerId>(2), 2, id<Secret>(2), "127.0.0.1", port};
}

TEST(a_peer_whose_beats_stop_is_silent_and_its_connection_ends) {
  Peer a(1, strict());
  a.admit(nowhere);
  Gate gate;
  a.control.connect({stranger_at(gate.port()), 0, patience_s});
  Wire wire = gate.accept();
  CHECK(wire.next<frames::Hello>().has_value());
  wire.write(frames::Welcome{});
  for (int i = 0; i < 20; ++i) {  // far longer than the silence allowed
    wire.write(frames::PeerBeat{1, 2, 3});
    ::poll(nullptr, 0, 20);
  }
  CHECK(a.host.look([](auto& seen) { return seen.silent.empty() && seen.beats.size() == 20; }));
  CHECK(a.host.sees([](auto& seen) { return !seen.silent.empty(); }));
  CHECK(wire.ends());
  CHECK(a.host.look([](auto& seen) { return seen.silent; }) ==
        (std::vector<PeerId>{id<PeerId>(2)}));
}

TEST(of_a_peer_two_incarnations_that_nobody_knows_are_heard_for_a_while_and_those_known_for_good) {
  ControlConfig config = strict();
  config.peer_silence_s = patience_s;
  config.stranger_age_s = 0.5;
  Peer a(1, config);
  PeerEndpoint member;
  member.peer = id<PeerId>(77);
  member.incarnation = 70;
  a.host.met.push_back(member);
  a.admit(nowhere);
  const auto call = [&](Incarnation incarnation, std::uint8_t peer = 77) {
    auto hello = a.hello(Purpose::peer_control);
    hello.incarnation = incarnation;
    hello.peer = id<PeerId>(peer);
    Wire wire = Wire::dial(a.control.port());
    wire.write(hello);
    return wire;
  };
  CHECK(eventually([&] { return call(1, 78).next<frames::Welcome>().has_value(); }));
  Wire known = call(70);
  CHECK(known.next<frames::PeerBeat>().has_value());
  const double began_s = monotonic_s();
  std::vector<Wire> made_up;
  for (Incarnation incarnation = 71; incarnation < 81; ++incarnation) {
    made_up.push_back(call(incarnation));
    CHECK(made_up.back().next<frames::PeerBeat>().has_value());
  }
  const double all_s = monotonic_s() - began_s;
  for (std::size_t i = 0; i < 8; ++i) CHECK(made_up[i].ends());
  CHECK(monotonic_s() - began_s < 0.5 || all_s > 0.25);  // at once: for want of room
  for (std::size_t i = 8; i < 10; ++i) {
    CHECK(made_up[i].ends());
    CHECK(monotonic_s() - began_s >= 0.5);
  }
  for (int i = 0; i < 10; ++i) CHECK(known.next<frames::PeerBeat>().has_value());
  CHECK(a.host.look([](auto& seen) { return seen.silent.empty(); }));
}

TEST(two_peers_that_beat_are_never_silent_and_one_that_is_stopped_is_silent_to_the_other) {
  Peer a(1, strict());
  auto b = std::make_unique<Peer>(std::uint8_t{2}, strict());
  a.admit(nowhere);
  b->admit(nowhere);
  a.control.connect({b->endpoint(), 0, patience_s});
  CHECK(a.host.sees([](auto& seen) { return seen.beats.size() > 30; }));
  CHECK(a.host.look([](auto& seen) { return seen.silent.empty(); }));
  CHECK(b->host.look([](auto& seen) { return seen.silent.empty(); }));
}

/// The process is stopped for longer than the silence allowed, while its peer goes on beating.
TEST(a_process_that_was_stopped_does_not_take_its_own_absence_for_the_peers_silence) {
  Gate gate;
  const pid_t child = ::fork();
  if (child == 0) {
    Peer a(1, strict());
    a.admit(nowhere);
    a.control.connect({stranger_at(gate.port()), 0, patience_s});
    const bool silent = a.host.sees([](auto& seen) { return !seen.silent.empty(); });
    std::_Exit(silent ? 1 : 0);
  }
  Wire wire = gate.accept();
  CHECK(wire.next<frames::Hello>().has_value());
  wire.write(frames::Welcome{});
  for (int i = 0; i < 60; ++i) {
    wire.write(frames::PeerBeat{1, 2, 3});
    if (i == 10) ::kill(child, SIGSTOP);
    if (i == 40) ::kill(child, SIGCONT);
    ::poll(nullptr, 0, 20);
    // Its connection, and so its trust in us, must outlive the stop.
    int ended = 0;
    CHECK(::waitpid(child, &ended, WNOHANG) == 0);
  }
  wire.close();
  ::kill(child, SIGKILL);
  ::waitpid(child, nullptr, 0);
}

TEST(a_dial_without_an_answer_is_tried_again_long_before_the_deadline) {
  Peer a(1, strict());
  a.admit(nowhere);
  Gate gate;
  a.control.connect({stranger_at(gate.port()), 1, patience_s, 0.1});
  std::map<Purpose, int> tries;
  for (int i = 0; i < 6; ++i) {
    Wire mute = gate.accept();  // it is heard, and gets no answer
    const auto hello = mute.next<frames::Hello>();
    CHECK(hello.has_value());
    if (hello) ++tries[hello->purpose];
    CHECK(mute.ends());
  }
  CHECK(tries[Purpose::data_lane] == 3 && tries[Purpose::peer_control] == 3);
  CHECK(a.host.look([](auto& seen) { return seen.failed.empty(); }));
}

TEST(a_second_connect_takes_the_place_of_lanes_that_are_still_dialled) {
  Peer a(1, strict());
  Peer b(2, strict());
  a.admit(nowhere);
  const PeerEndpoint elsewhere{id<PeerId>(2), 2, id<Secret>(2), "127.0.0.1", nowhere};
  a.control.connect({elsewhere, 3, 0.2});
  b.admit(nowhere);
  a.control.connect({b.endpoint(), 2, patience_s});
  CHECK(a.host.sees([](auto& seen) { return seen.lanes.size() == 2; }));
  ::poll(nullptr, 0, 300);  // the first call's deadline passes
  CHECK(a.host.look([](auto& seen) { return seen.failed.empty() && seen.lanes.size() == 2; }));
}

TEST(a_round_trip_to_the_coordinator_is_measured_and_told) {
  Gate gate;
  Peer peer(1);
  peer.admit(gate.port());
  Wire wire = gate.accept();
  CHECK(wire.next<frames::Hello>().has_value());
  wire.write(frames::Welcome{5});
  auto beat = wire.next<frames::Heartbeat>();
  CHECK(beat && beat->rtt_us == 0);
  CHECK(eventually([&] {
    ::poll(nullptr, 0, 5);
    wire.write(frames::Pong{5, 1});
    beat = wire.next<frames::Heartbeat>();
    return !beat || beat->rtt_us > 0;
  }));
  CHECK(beat && beat->rtt_us >= 5000 && beat->rtt_us < 2'000'000);
}

TEST(a_coordinator_that_stood_still_is_not_taken_for_a_distant_one) {
  Gate gate;
  Peer peer(1);
  peer.admit(gate.port());
  Wire wire = gate.accept();
  CHECK(wire.next<frames::Hello>().has_value());
  wire.write(frames::Welcome{5});
  auto beat = wire.next<frames::Heartbeat>();
  ::poll(nullptr, 0, 1000);
  CHECK(eventually([&] {
    wire.write(frames::Pong{5, 1});
    beat = wire.next<frames::Heartbeat>();
    return !beat || (beat->rtt_us > 0 && beat->rtt_us < 200'000);
  }));
  int later = 0;  // and it stays so: the pause is forgotten, not averaged in
  for (int i = 0; i < 4; ++i) {
    wire.write(frames::Pong{5, 1});
    beat = wire.next<frames::Heartbeat>();
    later += beat && beat->rtt_us < 200'000;
  }
  CHECK(later == 4);
}

}  // namespace
