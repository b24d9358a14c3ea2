// native/tests/test_strangers.cpp — the door of a secured run: places, turns and time.
// Ownership: each test owns its door.
// Threads:   the test's alone; time is what the test says.
// Errors:    CHECKs.
#include <sys/resource.h>

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
  /// What the control thread does when the poller tells of something; of how much it told.
  int told(int wait_ms) {
    std::array<Poller::Event, 256> events;
    const std::size_t count = door.poller.wait(events, wait_ms);
    for (std::size_t at = 0; at < count; ++at) {
      door.strangers.on_ready(serial_of(events[at].token), events[at].bits, now_s);
    }
    return static_cast<int>(count);
  }
  int turns(int most = 20) {
    int count = 0;
    for (int i = 0; i < most; ++i) {
      count += told(2);
      door.strangers.on_time(now_s);
    }
    return count;
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

TEST(in_a_crowd_of_one_origin_who_is_amid_its_handshake_is_left_to_end_it) {
  ControlConfig config;
  config.half_open_max = 4;
  Street street(config);
  std::vector<Visitor> under_way;
  for (int i = 0; i < 3; ++i) under_way.push_back(street.comes("127.0.0.2", greeting));
  street.turns(3);
  Visitor silent = street.comes("127.0.0.2");
  Visitor instead = street.comes("127.0.0.2");
  CHECK(silent.wire.ends() && instead.serial != 0);
  instead.wire.write(greeting);
  street.turns(3);
  for (int i = 0; i < 5; ++i) CHECK(street.comes("127.0.0.2").serial == 0);
  for (Visitor& one : under_way) CHECK(one.is_in());
  CHECK(instead.is_in());
}

TEST(a_handshake_has_its_whole_time_from_its_turn_on) {
  Street street;
  Visitor visitor = street.comes("127.0.0.2");
  street.now_s += 4;  // late to say what it wants, and in time
  visitor.wire.write(greeting);
  street.told(1000);
  street.now_s += 2;  // six after it came, it has its turn
  street.turns();
  CHECK(visitor.is_in());
  street.now_s += 4.9;
  street.door.strangers.on_time(street.now_s);
  CHECK(visitor.is_in());
  street.now_s += 0.2;
  street.door.strangers.on_time(street.now_s);
  CHECK(visitor.wire.ends());
}

TEST(nobody_waits_for_its_turn_for_longer_than_two_handshakes_may_take) {
  Street street;
  Visitor visitor = street.comes("127.0.0.2", greeting);
  CHECK(street.told(1000) == 1);
  CHECK(street.door.strangers.due_s() <= street.now_s);  // its turn is due at once
  street.now_s += 10.1;  // and did not come
  street.door.strangers.on_time(street.now_s);
  CHECK(visitor.wire.ends());
}

TEST(a_crowd_where_a_member_is_takes_a_quarter_of_the_descriptors_and_no_more) {
  rlimit before{};
  ::getrlimit(RLIMIT_NOFILE, &before);
  rlimit few = before;
  few.rlim_cur = 160;
  ::setrlimit(RLIMIT_NOFILE, &few);
  {
    Street street;
    street.door.strangers.expect({*origin_of(std::string("127.0.0.2")),
                                  *origin_of(std::string("127.0.0.3"))});
    std::vector<Visitor> crowd;
    for (int i = 0; i < 45; ++i) crowd.push_back(street.comes("127.0.0.2"));
    CHECK(street.door.counters.dropped == 5);
    for (int i = 0; i < 5; ++i) CHECK(crowd[static_cast<std::size_t>(i)].wire.ends());
    Visitor other = street.comes("127.0.0.3");
    CHECK(other.is_in() && crowd[5].wire.ends() && crowd[6].is_in());
  }
  ::setrlimit(RLIMIT_NOFILE, &before);
}

TEST(of_one_member_s_address_no_more_come_than_so_many) {
  rlimit before{};
  ::getrlimit(RLIMIT_NOFILE, &before);
  rlimit many = before;
  many.rlim_cur = before.rlim_max;
  ::setrlimit(RLIMIT_NOFILE, &many);
  const std::size_t most = Strangers::expected_half_open_per_origin_max;
  if (many.rlim_cur / 4 > most) {
    Street street;
    street.door.strangers.expect({*origin_of(std::string("127.0.0.2"))});
    std::vector<Visitor> crowd;
    for (std::size_t i = 0; i < most + 3; ++i) crowd.push_back(street.comes("127.0.0.2"));
    CHECK(street.door.counters.dropped == 3);
    CHECK(crowd[2].wire.ends() && crowd[3].is_in());
  }
  ::setrlimit(RLIMIT_NOFILE, &before);
}
