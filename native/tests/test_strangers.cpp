// native/tests/test_strangers.cpp — the door of a secured run: places, turns and time, told by hand.
// Ownership: each test owns its door.
// Threads:   the test's alone; time is what the test says.
// Errors:    CHECKs.
#include <array>
#include <string>
#include <vector>

#include "../fuzz/door.hpp"
#include "control_rig.hpp"
#include "tls_rig.hpp"

using namespace pccl;

namespace {

const std::string greeting("\x16\x03\x01\x02\x00\x01", 6);  // is begun, and not ended

struct Visitor {
  rig::Wire wire;
  std::uint64_t serial = 0;
  [[nodiscard]] bool is_in() const { return wire.silent_for(0); }
};

struct Street {
  explicit Street(ControlConfig config = {}) : door(authority().context()) {
    door.config = std::move(config);
    CHECK(listen_tcp("127.0.0.1", 0, 128, listener) == Status::ok);
  }
  static const rig_tls::Authority& authority() {
    static const rig_tls::Authority one;
    return one;
  }
  Visitor comes(const std::string& from, const std::string& says = {}) {
    Visitor visitor{rig::Wire::dial_from(from.c_str(), local_port(listener.get())), 0};
    if (!says.empty()) visitor.wire.write(says);
    pollfd waiting{listener.get(), POLLIN, 0};
    CHECK(::poll(&waiting, 1, 5000) == 1);
    Fd fd;
    CHECK(accept_tcp(listener.get(), fd) == Status::ok);
    visitor.serial = door.strangers.add(std::move(fd), now_s);
    return visitor;
  }
  /// What the control thread does when the poller tells of something; how often that was.
  int turns(int most = 20) {
    std::array<Poller::Event, 256> events;
    int told = 0;
    for (int i = 0; i < most; ++i) {
      const std::size_t count = door.poller.wait(events, 2);
      for (std::size_t at = 0; at < count; ++at) {
        door.strangers.on_ready(serial_of(events[at].token), events[at].bits, now_s);
      }
      told += static_cast<int>(count);
      door.strangers.on_time(now_s);
    }
    return told;
  }

  fuzz::Door door;
  Fd listener;
  double now_s = 100;
};

}  // namespace

TEST(who_says_a_part_of_the_mark_and_waits_is_told_of_once_and_not_for_ever) {
  for (const std::string& part : {std::string("P"), std::string("PCCLSTR")}) {
    Street street;
    Visitor visitor = street.comes("127.0.0.2", part);
    CHECK(street.turns() <= 2);
    CHECK(visitor.is_in() && street.door.host.streams == 0);
    CHECK(street.door.strangers.due_s() > street.now_s);
    // However long it waits, it is looked at a few times.
    int looks = 0;
    while (street.door.strangers.due_s() < 105) {
      street.now_s = street.door.strangers.due_s();
      street.door.strangers.on_time(street.now_s);
      ++looks;
    }
    CHECK(looks >= 3 && looks < 10);
    CHECK(street.turns() == 0);
    street.now_s = 105;
    street.door.strangers.on_time(street.now_s);
    CHECK(visitor.wire.ends());
  }
}

TEST(a_mark_that_comes_in_pieces_is_a_stream_all_the_same) {
  Street street;
  Visitor visitor = street.comes("127.0.0.2", "PCC");
  street.turns(3);
  visitor.wire.write("LSTR1");
  street.now_s += 0.06;
  street.turns(3);
  CHECK(street.door.host.streams == 1);
}

TEST(who_says_a_part_of_the_mark_and_resets_or_ends_does_not_keep_the_thread_busy) {
  for (const bool resets : {true, false}) {
    Street street;
    Visitor visitor = street.comes("127.0.0.2", "P");
    street.turns(3);
    const linger at_once{1, 0};
    if (resets) ::setsockopt(visitor.wire.fd(), SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
    visitor.wire.close();
    CHECK(street.turns() <= 2);
    if (resets) CHECK(street.door.counters.dropped == 1);
  }
}
