// native/tests/test_control_coordinator.cpp — the control thread towards the coordinator.
// Ownership: see control_rig.hpp.
// Threads:   the test's (it plays the coordinator) and each Control's own.
// Errors:    CHECK.
#include <array>

#include "control_rig.hpp"

namespace {

using namespace rig;

/// A coordinator's side of one connection, after HELLO and WELCOME.
Wire welcomed(Gate& gate) {
  Wire wire = gate.accept();
  CHECK(wire.next<frames::Hello>().has_value());
  wire.write(frames::Welcome{5});
  return wire;
}

TEST(the_peer_says_hello_with_its_own_secret_and_beats_at_once_and_again) {
  Gate gate;
  Peer peer(1);
  peer.host.beating = {5, 7, 11, 13, 17, 11, Waiting::gate, {}, {id<PeerId>(3)}, {}};
  peer.admit(gate.port());
  Wire wire = gate.accept();
  const auto hello = wire.read_frame();
  const frames::Hello expected{Purpose::coordinator, id<RunId>(9), id<PeerId>(1), 1,
                               id<Secret>(1), 0, 5, 7};
  CHECK(hello && std::get<frames::Hello>(*hello) == expected);
  CHECK(wire.silent_for(30));  // nothing before the answer
  CHECK(peer.host.look([](auto& seen) { return seen.connected.empty(); }));
  wire.write(frames::Welcome{5});
  for (int i = 0; i < 3; ++i) {
    const auto frame = wire.read_frame();
    CHECK(frame.has_value());
    const auto* beat = frame ? std::get_if<frames::Heartbeat>(&*frame) : nullptr;
    CHECK(beat != nullptr);
    if (beat == nullptr) continue;
    CHECK(beat->status.generation == 5 && beat->status.epoch == 7 && beat->status.watermark == 11);
    CHECK(beat->status.next_step == 13 && beat->status.progress == 17);
    CHECK(beat->status.waiting == Waiting::gate);
    CHECK(beat->status.down == (std::vector<PeerId>{id<PeerId>(3)}));
    CHECK(beat->lag_ms < 5000);
    wire.write(frames::Pong{5, 7});
  }
  CHECK(peer.host.look([](auto& seen) { return seen.connected; }) == (std::vector<bool>{true}));
  CHECK(peer.control.counters().heartbeats >= 3);
}

TEST(a_damaged_word_of_the_coordinator_costs_the_connection_and_is_not_obeyed) {
  Gate gate;
  Peer peer(1);
  peer.admit(gate.port(), 60.0);
  const std::vector<frames::Frame> words = {
      frames::Flush{5, 4}, frames::Evicted{5, "it was silent"}, frames::Refused{4, "gone"},
      frames::Routes{5, 4, {{id<PeerId>(2), id<PeerId>(3)}}}};
  unsigned bit = 0;
  for (const frames::Frame& word : words) {
    Bytes whole;
    CHECK(frames::encode(word, whole) == Status::ok);
    for (std::size_t at = 0; at < whole.size(); at += check::sanitized ? 7 : 3) {
      Wire wire = welcomed(gate);
      Bytes damaged = whole;
      damaged[at] ^= static_cast<std::byte>(1u << bit++ % 8);
      wire.write(damaged.data(), damaged.size());
      CHECK(wire.ends());  // at once, whatever the length says now; and it dials again
    }
  }
  CHECK(peer.host.look([](auto& seen) {
    return seen.fences.empty() && seen.evicted.empty() && seen.refused.empty() &&
           seen.routes.empty();
  }));
  Wire wire = welcomed(gate);
  wire.write(words[3]);
  wire.write(words[0]);
  CHECK(wire.next<Report>().has_value());
  CHECK(peer.host.look([](auto& seen) { return seen.routes.size() == 1; }));
}

TEST(every_flush_is_fenced_and_answered_with_what_the_fence_found) {
  Gate gate;
  Peer peer(1);
  peer.host.report.epoch = 3;
  peer.host.report.watermark = 20;
  peer.host.report.next_step = 24;
  peer.host.report.committed = {21, 22};
  peer.host.report.open.push_back({23, 3, true, true, false, {1, 2}, {3, 4}, 99});
  peer.admit(gate.port(), 60.0);
  Wire wire = welcomed(gate);
  CHECK(wire.next<frames::Heartbeat>().has_value());
  wire.write(frames::Flush{5, 4});
  wire.write(frames::Flush{5, 4});  // the coordinator repeats it until it is answered
  wire.write(frames::Flush{5, 6});
  for (const Epoch target : {Epoch{4}, Epoch{4}, Epoch{6}}) {
    const auto frame = wire.read_frame();  // the very next frame
    const Report* report = frame ? std::get_if<Report>(&*frame) : nullptr;
    CHECK(report != nullptr);
    if (report == nullptr) continue;
    CHECK(report->generation == 5 && report->target == target && report->epoch == 3);
    CHECK(!report->switched && report->watermark == 20 && report->next_step == 24);
    CHECK(report->committed == (std::vector<StepId>{21, 22}) && report->open.size() == 1);
    CHECK(report->open[0].step == 23 && report->open[0].complete && report->open[0].sealed);
    CHECK(report->open[0].digest == (Digest{3, 4}) && report->open[0].name_hash == 99);
  }
  CHECK(peer.host.look([](auto& seen) { return seen.fences; }) == (std::vector<Epoch>{4, 4, 6}));
  CHECK(peer.control.counters().flushes == 3);
}

TEST(beat_now_does_not_wait_for_the_timer) {
  Gate gate;
  Peer peer(1);
  peer.admit(gate.port(), 60.0);
  Wire wire = welcomed(gate);
  CHECK(wire.next<frames::Heartbeat>().has_value());
  CHECK(wire.silent_for(30));
  peer.control.beat_now();
  CHECK(wire.next<frames::Heartbeat>().has_value());
}

TEST(a_lost_connection_is_told_and_dialled_again) {
  Gate gate;
  Peer peer(1);
  peer.admit(gate.port());
  welcomed(gate).close();
  CHECK(peer.host.sees([](auto& seen) { return seen.connected.size() == 2; }));
  Wire wire = welcomed(gate);
  CHECK(wire.next<frames::Heartbeat>().has_value());
  CHECK(peer.host.look([](auto& seen) { return seen.connected; }) ==
        (std::vector<bool>{true, false, true}));
}

TEST(a_coordinator_that_is_away_is_dialled_until_it_is_back_ever_less_often) {
  std::uint16_t port = 0;
  { port = Gate().port(); }
  Peer peer(1);
  peer.admit(port, 1.0);
  Gate gate(port);
  Wire wire = gate.accept();
  for (const double pause_s : {0.1, 0.2, 0.4}) {  // no WELCOME: no fresh start of the back-off
    const double closed_s = monotonic_s();
    wire.close();
    wire = gate.accept();
    CHECK(monotonic_s() - closed_s >= pause_s);
  }
  CHECK(wire.next<frames::Hello>().has_value());
  wire.write(frames::Welcome{6});
  CHECK(wire.next<frames::Heartbeat>().has_value());
}

TEST(many_losses_in_a_row_do_not_keep_a_peer_away_for_longer_than_a_few_heartbeats) {
  Gate gate;
  Peer peer(1);
  peer.admit(gate.port(), 0.1);
  const double begun_s = monotonic_s();
  for (int loss = 0; loss < 6; ++loss) gate.accept().close();  // twice as long each: 3.2 s by then
  CHECK(welcomed(gate).next<frames::Heartbeat>().has_value());
  CHECK(monotonic_s() - begun_s < 3.0);  // 1.1 s on a quiet machine
}

TEST(suspicions_wait_for_a_connection_and_the_oldest_give_way) {
  Gate gate;
  Peer peer(1);
  for (StepId step = 0; step < 70; ++step) {
    if (step == 1) peer.admit(gate.port());  // a new incarnation: step 0 was the one before's
    peer.control.suspect({2, step, SuspectCode::deadline, {id<PeerId>(3)}, "too slow"});
  }
  Wire wire = gate.accept();
  CHECK(wire.next<frames::Hello>().has_value());
  // The mailbox is read in order: what was posted is queued once a later connect() has failed.
  peer.control.connect({{id<PeerId>(4), 4, id<Secret>(4), "127.0.0.1", 1}, 1, 0.01});
  CHECK(peer.host.sees([](auto& seen) { return seen.failed.size() == 1; }));
  wire.write(frames::Welcome{5});
  for (StepId step = 6; step < 70; ++step) {
    const auto suspect = wire.next<Suspect>();
    CHECK(suspect && suspect->step == step && suspect->epoch == 2);
    CHECK(suspect && suspect->code == SuspectCode::deadline && suspect->text == "too slow");
    CHECK(suspect && suspect->peers == (std::vector<PeerId>{id<PeerId>(3)}));
  }
  peer.control.suspect({2, 70, SuspectCode::digest, {}, ""});
  const auto last = wire.next<Suspect>();
  CHECK(last && last->step == 70);
}

TEST(a_suspicion_is_told_again_to_the_coordinator_that_comes_next) {
  Gate gate;
  Peer peer(1);
  peer.admit(gate.port());
  {
    Wire wire = welcomed(gate);
    CHECK(wire.next<frames::Heartbeat>().has_value());
    peer.control.suspect({99, 7, SuspectCode::deadline, {}, "too slow"});
    CHECK(wire.next<Suspect>().has_value());
  }  // it dies before it has done anything about it
  Wire wire = welcomed(gate);
  CHECK(wire.next<frames::Heartbeat>().has_value());
  const auto again = wire.next<Suspect>();
  CHECK(again && again->epoch == 99 && again->step == 7 && again->text == "too slow");
}

TEST(of_an_earlier_view_only_the_suspicions_of_open_steps_are_told_again) {
  Gate gate;
  Peer peer(1);
  peer.host.beating.epoch = 3;
  peer.host.beating.watermark = 7;
  peer.admit(gate.port());
  {
    Wire wire = welcomed(gate);
    CHECK(wire.next<frames::Heartbeat>().has_value());
    for (const StepId step : {6, 7}) {
      peer.control.suspect({2, step, SuspectCode::local, {}, "no memory"});
      CHECK(wire.next<Suspect>().has_value());
    }
  }
  Wire wire = welcomed(gate);
  const auto again = wire.next<Suspect>();  // of step 6 it would have come first
  CHECK(again && again->epoch == 2 && again->step == 7);
}

TEST(an_evicted_peer_is_told_once_and_does_not_dial_again_until_it_is_admitted_anew) {
  Gate gate;
  Peer peer(1);
  peer.admit(gate.port());
  Wire wire = welcomed(gate);
  CHECK(wire.next<frames::Heartbeat>().has_value());
  wire.write(frames::Evicted{5, "too late"});
  CHECK(wire.ends());
  CHECK(peer.host.sees([](auto& seen) { return seen.evicted.size() == 1; }));
  CHECK(peer.host.look([](auto& seen) { return seen.evicted[0]; }) == "too late");
  CHECK(!gate.rings(300));  // the first pause would have been 0.1 s
  CHECK(peer.host.look([](auto& seen) { return seen.connected; }) ==
        (std::vector<bool>{true, false}));
  peer.admit(gate.port());
  CHECK(welcomed(gate).next<frames::Heartbeat>().has_value());
  CHECK(peer.host.look([](auto& seen) { return seen.evicted.size(); }) == 1);
}

TEST(a_refused_incarnation_is_an_eviction_and_other_refusals_are_tried_again) {
  Gate gate;
  Peer peer(1);
  peer.admit(gate.port());
  for (const std::uint8_t code : std::array<std::uint8_t, 2>{5, 4}) {
    Wire wire = gate.accept();
    CHECK(wire.next<frames::Hello>().has_value());
    wire.write(frames::Refused{code, "no"});
    CHECK(wire.ends());
  }
  CHECK(peer.host.sees([](auto& seen) { return seen.evicted.size() == 1; }));
  CHECK(peer.host.look([](auto& seen) { return seen.refused; }) ==
        (std::vector<std::uint8_t>{5, 4}));
  CHECK(!gate.rings(500));  // the next pause would have been 0.2 s
  CHECK(peer.host.look([](auto& seen) { return seen.connected.empty(); }));
}

TEST(a_coordinator_is_followed_from_its_first_order_or_pong_on_and_not_for_its_welcome) {
  Gate gate;
  Peer peer(1);
  peer.admit(gate.port(), 60.0);
  Generation followed = 0;
  for (const frames::Frame& word :
       std::array<frames::Frame, 2>{frames::Pong{9, 0}, frames::Flush{11, 4}}) {
    const Generation next = followed == 0 ? 9 : 11;
    Wire doubtful = gate.accept();
    const auto hello = doubtful.next<frames::Hello>();
    CHECK(hello && hello->generation == followed);
    doubtful.write(frames::Welcome{20});
    CHECK(doubtful.next<frames::Heartbeat>().has_value());
    doubtful.write(frames::Pong{0, 0});         // it is not sure of its journal
    peer.admit(gate.port(), 60.0, next);        // the agent has found another one
    Wire wire = gate.accept();
    const auto again = wire.next<frames::Hello>();
    CHECK(again && again->generation == followed);
    wire.write(frames::Welcome{next});
    CHECK(wire.next<frames::Heartbeat>().has_value());
    wire.write(word);
    CHECK(peer.host.sees([&](auto& seen) {
      return !seen.followed.empty() && seen.followed.back() == next;
    }));
    followed = next;
    wire = Wire();
  }
  CHECK(peer.host.look([](auto& seen) { return seen.followed; }) ==
        (std::vector<Generation>{9, 11}));
}

TEST(a_coordinator_of_an_older_generation_is_told_of_the_newest_and_not_obeyed) {
  Gate gate;
  Peer peer(1);
  peer.admit(gate.port());
  Wire newest = gate.accept();
  CHECK(newest.next<frames::Hello>().has_value());
  newest.write(frames::Welcome{7});
  CHECK(newest.next<frames::Heartbeat>().has_value());
  newest.write(frames::Pong{7, 0});
  newest.write(frames::Evicted{6, "said by another"});
  CHECK(newest.ends());
  peer.admit(gate.port(), 1.0);  // as the agent does: what is known does not go down
  const std::array<frames::Frame, 3> older = {
      frames::Welcome{6}, frames::Evicted{6, "not in the run"}, frames::Refused{8, "old copy"}};
  double closed_s = 0;
  for (std::size_t i = 0; i < older.size(); ++i) {
    Wire wire = gate.accept();
    // The first connection follows at once, the others wait longer each time, to 2 s.
    CHECK(i == 0 || monotonic_s() - closed_s >= 0.05 * static_cast<double>(1 << i));
    const auto hello = wire.next<frames::Hello>();
    CHECK(hello && hello->generation == 7);
    wire.write(older[i]);
    CHECK(wire.ends());
    closed_s = monotonic_s();
  }
  Wire wire = gate.accept();
  CHECK(wire.next<frames::Hello>().has_value());
  wire.write(frames::Welcome{8});
  CHECK(wire.next<frames::Heartbeat>().has_value());
  CHECK(peer.host.look([](auto& seen) { return seen.evicted.empty(); }));
  CHECK(peer.host.look([](auto& seen) { return seen.refused; }) == (std::vector<std::uint8_t>{8}));
  CHECK(peer.host.look([](auto& seen) { return seen.connected; }) ==
        (std::vector<bool>{true, false, true}));
}

TEST(a_coordinator_that_breaks_the_protocol_is_left_and_dialled_again) {
  const std::array<frames::Frame, 3> wrong = {
      frames::Welcome{1}, frames::Hello{}, frames::PeerBeat{1, 2, 3}};
  Gate gate;
  Peer peer(1);
  peer.admit(gate.port());
  for (const frames::Frame& frame : wrong) {
    Wire wire = welcomed(gate);
    CHECK(wire.next<frames::Heartbeat>().has_value());
    wire.write(frame);
    CHECK(wire.ends());
  }
  Wire garbage = welcomed(gate);
  garbage.write(std::string("\xFF\xFF\xFF\x7F", 4));
  CHECK(garbage.ends());
  Wire impatient = gate.accept();
  CHECK(impatient.next<frames::Hello>().has_value());
  impatient.write(frames::Flush{5, 4});  // before the WELCOME
  CHECK(impatient.ends());
  CHECK(welcomed(gate).next<frames::Heartbeat>().has_value());
  CHECK(peer.host.look([](auto& seen) { return seen.fences.empty(); }));
}

TEST(a_coordinator_that_accepts_and_is_silent_is_given_up_after_the_handshake_timeout) {
  ControlConfig config;
  config.handshake_timeout_s = 0.2;
  Gate gate;
  Peer peer(1, config);
  peer.admit(gate.port());
  Wire silent = gate.accept();
  CHECK(silent.ends());
  CHECK(welcomed(gate).next<frames::Heartbeat>().has_value());
}

TEST(a_second_admission_moves_the_connection_to_the_new_coordinator) {
  Gate before;
  Gate after;
  Peer peer(1);
  peer.admit(before.port());
  Wire old = welcomed(before);
  CHECK(old.next<frames::Heartbeat>().has_value());
  peer.admit(after.port());
  CHECK(old.ends());
  Wire wire = welcomed(after);
  CHECK(wire.next<frames::Heartbeat>().has_value());
  CHECK(peer.host.look([](auto& seen) { return seen.connected; }) ==
        (std::vector<bool>{true, false, true}));
}

TEST(stop_in_the_midst_of_things_ends_the_connection_without_a_word_to_the_host) {
  Gate gate;
  Peer peer(1);
  peer.admit(gate.port());
  Wire wire = welcomed(gate);
  CHECK(wire.next<frames::Heartbeat>().has_value());
  peer.control.stop();
  CHECK(wire.ends());
  CHECK(peer.host.look([](auto& seen) { return seen.connected; }) == (std::vector<bool>{true}));
}

}  // namespace
