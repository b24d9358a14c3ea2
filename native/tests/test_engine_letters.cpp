// native/tests/test_engine_letters.cpp — messages between real engines over loopback.
// Ownership: each test owns its world and its arrays.
// Threads:   one per rank, and the engines' own.
// Errors:    CHECKs.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <numeric>
#include <vector>

#include "fragile_world.hpp"
#include "pccl/wire.hpp"
#include "raw_peer.hpp"

namespace {

using namespace world;

constexpr double patience_s = check::sanitized ? 120 : 30;
using Ints = std::vector<std::uint32_t>;

Ints values(std::size_t count, std::uint32_t of) {
  Ints made(count);
  for (std::size_t i = 0; i < count; ++i) {
    made[i] = static_cast<std::uint32_t>(i * 2654435761u) ^ of;
  }
  return made;
}

LetterId post(Engine& engine, bool sends, int rank, Tag tag, Ints& data,
              double timeout_s = patience_s) {
  PostedLetter posted;
  posted.sends = sends;
  posted.rank = rank;
  posted.tag = tag;
  posted.what = {Dtype::u32, data.size()};
  posted.memory = reinterpret_cast<std::byte*>(data.data());
  return engine.post(posted, timeout_s);
}

Letter finish(Engine& engine, LetterId id, double timeout_s = patience_s) {
  CHECK(engine.wait_letter(id, timeout_s));
  Letter letter = engine.letter(id);
  CHECK(letter.state != LetterState::open);
  engine.release_letter(id);
  return letter;
}

bool send(Engine& engine, int to, Tag tag, Ints data) {
  return finish(engine, post(engine, true, to, tag, data)).state == LetterState::done;
}

/// The rank that it came from; -1 if it failed or is not what it should be.
int receive(Engine& engine, int from, Tag tag, std::size_t count, std::uint32_t of) {
  Ints data(count, 7);
  const Letter letter = finish(engine, post(engine, false, from, tag, data));
  if (letter.state != LetterState::done || data != values(count, of)) return -1;
  return letter.rank;
}

std::string code_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const EngineFailure& failure) {
    return failure.code();
  }
  return "";
}

TEST(every_peer_sends_to_every_other_exactly_and_in_order) {
  for (const std::uint16_t lanes : {std::uint16_t{1}, std::uint16_t{3}}) {
    World world(4, lanes);
    world.install(1, world.everybody());
    World::all(world.everybody(), [&](std::size_t me) {
      Engine& engine = *world.engines[me];
      const std::size_t sizes[] = {0, 1, 1000, 65536, 65537, 200'000};
      std::vector<std::pair<LetterId, Ints>> sent;
      sent.reserve(4 * 6);
      for (std::uint32_t i = 0; i < 6; ++i) {
        for (int to = 0; to < 4; ++to) {
          if (to == static_cast<int>(me)) continue;
          auto& [id, data] = sent.emplace_back();
          data = values(sizes[i], i * 100 + static_cast<std::uint32_t>(me));
          id = post(engine, true, to, 1, data);
        }
      }
      for (std::uint32_t i = 0; i < 6; ++i) {
        for (int from = 3; from >= 0; --from) {
          if (from == static_cast<int>(me)) continue;
          const auto of = i * 100 + static_cast<std::uint32_t>(from);
          CHECK(receive(engine, from, 1, sizes[i], of) == from);
        }
      }
      for (auto& [id, data] : sent) CHECK(finish(engine, id).state == LetterState::done);
    });
    for (const auto& engine : world.engines) {
      const EngineStats stats = engine->stats();
      CHECK(stats.open_letters == 0 && stats.letters_sent == 18 && stats.letters_received == 18);
      CHECK(stats.tile_bytes == 0);
    }
  }
}

TEST(tags_do_not_wait_for_one_another_and_any_source_says_whose_it_was) {
  World world(3);
  world.install(1, world.everybody());
  World::all(world.everybody(), [&](std::size_t me) {
    Engine& engine = *world.engines[me];
    if (me != 0) {
      Ints late = values(10, 50), soon = values(100'000, static_cast<std::uint32_t>(me));
      const LetterId first = post(engine, true, 0, 9, late);
      const LetterId second = post(engine, true, 0, 8, soon);
      CHECK(finish(engine, second).state == LetterState::done);
      CHECK(finish(engine, first).state == LetterState::done);
      return;
    }
    std::vector<int> from;
    for (int i = 0; i < 2; ++i) {
      Ints data(100'000);
      const Letter letter = finish(engine, post(engine, false, -1, 8, data));
      CHECK(data == values(100'000, static_cast<std::uint32_t>(letter.rank)));
      CHECK(letter.peer == peer_id(static_cast<std::size_t>(letter.rank)));
      from.push_back(letter.rank);
    }
    CHECK(from[0] + from[1] == 3 && from[0] != from[1]);
    CHECK(receive(engine, 2, 9, 10, 50) == 2 && receive(engine, 1, 9, 10, 50) == 1);
  });
}

TEST(a_message_goes_on_while_steps_run_and_neither_waits_for_the_other) {
  World world(2, 2);
  world.install(1, world.everybody());
  World::all(world.everybody(), [&](std::size_t me) {
    Engine& engine = *world.engines[me];
    Ints data = me == 0 ? values(4u << 20, 3) : Ints(4u << 20);
    const LetterId id = post(engine, me == 0, me == 0 ? 1 : 0, 0, data);
    std::vector<float> sums(300'000);
    for (int step = 0; step < 5; ++step) {
      std::fill(sums.begin(), sums.end(), 1.0f);
      CHECK(sum_step(engine, sums, Algorithm::direct, patience_s));
      CHECK(sums.front() == 2.0f && sums.back() == 2.0f);
    }
    CHECK(finish(engine, id).state == LetterState::done);
    CHECK(data == values(4u << 20, 3));
  });
}

TEST(what_does_not_fit_is_told_to_both_with_both) {
  World world(2);
  world.install(1, world.everybody());
  std::string texts[2];
  World::all(world.everybody(), [&](std::size_t me) {
    Engine& engine = *world.engines[me];
    Ints data(me == 0 ? 100'000 : 5, 4);
    const Letter letter = finish(engine, post(engine, me == 0, me == 0 ? 1 : 0, 6, data));
    CHECK(letter.end == LetterEnd::differs);
    CHECK(std::all_of(data.begin(), data.end(), [](std::uint32_t x) { return x == 4; }));
    texts[me] = letter.text;
    CHECK(me == 0 ? send(engine, 1, 6, values(9, 1)) : receive(engine, 0, 6, 9, 1) == 0);
  });
  CHECK(texts[0] == texts[1]);
  CHECK(texts[0] == "tag 6: peer 01000000 sends u32[100000], peer 02000000 receives u32[5]");
}

TEST(sixty_four_megabytes_come_whole_though_lanes_die_in_the_middle) {
  const std::size_t count = check::sanitized ? 2u << 20 : 16u << 20;
  for (unsigned round = 0; round < 3; ++round) {
    FragileWorld world(2, 3);
    std::atomic<bool> over{false};
    World::all({0, 1, 2}, [&](std::size_t me) {
      if (me == 2) {
        for (int cut = 1; cut <= 3 && !over; ++cut) {
          world.proxies[1]->cut();  // rank 0 dials rank 1
          while (world.cuts() < cut && !over) std::this_thread::yield();
        }
        return;
      }
      Ints data = me == 0 ? values(count, round) : Ints(count);
      Engine& engine = *world.engines[me];
      const LetterId id = post(engine, me == 0, me == 0 ? 1 : 0, 2, data);
      CHECK(finish(engine, id).state == LetterState::done);
      over = true;
      CHECK(data == values(count, round));
    });
    std::printf("  %d lanes cut\n", world.cuts());
    CHECK(world.cuts() > 0);
  }
}

TEST(many_small_messages_survive_lanes_that_die_all_the_time) {
  FragileWorld world(3, 2);
  std::atomic<int> running{3};
  const std::uint32_t rounds = check::sanitized ? 100 : 600;
  World::all({0, 1, 2, 3}, [&](std::size_t me) {
    if (me == 3) {
      for (std::size_t turn = 0; running > 0; ++turn) {
        world.proxies[1 + turn % 2]->cut();
        ::poll(nullptr, 0, 20);
      }
      return;
    }
    Engine& engine = *world.engines[me];
    const int next = static_cast<int>((me + 1) % 3), before = static_cast<int>((me + 2) % 3);
    for (std::uint32_t i = 0; i < rounds; ++i) {
      const std::size_t size = i % 10 == 9 ? 100'000 : i % 300;
      Ints sent = values(size, i), got(size);
      const LetterId out = post(engine, true, next, i % 4, sent);
      const LetterId in = post(engine, false, before, i % 4, got);
      CHECK(finish(engine, in).state == LetterState::done && got == sent);
      CHECK(finish(engine, out).state == LetterState::done);
    }
    --running;
  });
  std::printf("  %d lanes cut\n", world.cuts());
}

TEST(a_bit_that_flips_on_the_way_costs_a_lane_and_the_content_is_right) {
  for (const FrameType type : {FrameType::offer, FrameType::message, FrameType::grant,
                               FrameType::received}) {
    for (const std::size_t at : {std::size_t{20}, header_bytes + 1}) {
      const bool bodiless = type == FrameType::grant || type == FrameType::received;
      if (bodiless && at >= header_bytes) continue;
      FragileWorld world(2, 2);
      world.proxies[1]->flip({type, Phase::reduce, at, 3});
      World::all({0, 1}, [&](std::size_t me) {
        Engine& engine = *world.engines[me];
        CHECK(me == 0 ? send(engine, 1, 0, values(300'000, 8))
                      : receive(engine, 0, 0, 300'000, 8) == 0);
      });
      CHECK(world.proxies[1]->flips() == 1);
    }
  }
}

TEST(who_is_in_no_view_any_more_ends_what_waits_for_it_at_once) {
  World world(3);
  world.install(1, world.everybody());
  std::atomic<int> ended{0};
  std::thread coordinator([&] {
    ::poll(nullptr, 0, 200);
    CHECK(ended == 0);
    world.engines[2]->close();
    ::poll(nullptr, 0, 200);
    CHECK(ended == 0);  // its lanes are gone; that proves nothing
    for (const std::size_t rank : {0u, 1u}) (void)world.engines[rank]->fence_for_test(1, 2);
    world.install(2, {0, 1});
  });
  World::all({0, 1}, [&](std::size_t me) {
    Engine& engine = *world.engines[me];
    Ints big(1u << 20), small(10);
    const LetterId lost = me == 0 ? post(engine, true, 2, 0, big) : post(engine, false, 2, 0, big);
    const LetterId any = post(engine, false, -1, 5, small);
    Ints kept = values(500'000, 2), got(500'000);
    const LetterId between = me == 0 ? post(engine, true, 1, 1, kept) : 0;
    for (const LetterId id : {lost, any}) {
      const Letter letter = finish(engine, id);
      CHECK(letter.end == LetterEnd::lost && letter.peer == peer_id(2) && letter.epoch == 1);
      ++ended;
    }
    if (me == 0) CHECK(finish(engine, between).state == LetterState::done);
    if (me == 1) CHECK(receive(engine, 0, 1, 500'000, 2) == 0);
  });
  coordinator.join();
}

TEST(what_a_leaver_said_last_is_heard_before_its_messages_are_given_up) {
  // The answer lies in a socket when the view without its sender comes: rounds, since an engine may
  // be quick enough to have read it.
  for (int round = 0; round < (check::sanitized ? 20 : 100); ++round) {
    World world(1);
    install_with_raw(world, 1);
    RawPeer raw(world, 0);
    Engine& engine = *world.engines[0];
    Ints data = values(100, 1);
    const LetterId id = post(engine, true, 0, 3, data);
    std::optional<Heard> heard;
    do {
      heard = raw.hear(5000);
    } while (heard && heard->header.type != FrameType::message);
    CHECK(heard.has_value());
    if (!heard) return;
    (void)engine.fence_for_test(1, 2);
    FrameHeader answer = heard->header;
    answer.type = FrameType::received;
    answer.length = answer.slice = 0;
    answer.flags = 0;
    answer.payload_hash = 0;
    raw.say(answer);
    world.install(2, {0});
    CHECK(finish(engine, id).state == LetterState::done);
  }
}

TEST(a_deadline_ends_a_message_here_and_the_other_end_waits_on) {
  World world(2);
  world.install(1, world.everybody());
  Ints big = values(100'000, 1), got(100'000);
  const LetterId late = post(*world.engines[0], true, 1, 0, big, 0.2);
  CHECK(finish(*world.engines[0], late).end == LetterEnd::late);
  const LetterId never = post(*world.engines[1], false, 0, 4, got, 0.2);
  CHECK(finish(*world.engines[1], never).end == LetterEnd::late);
  World::all({0, 1}, [&](std::size_t me) {
    CHECK(me == 0 ? send(*world.engines[0], 1, 0, values(9, 5))
                  : receive(*world.engines[1], 0, 0, 9, 5) == 0);
  });
}

TEST(close_ends_every_wait_and_gives_the_memory_back_first) {
  World world(2);
  world.install(1, world.everybody());
  auto data = std::make_unique<Ints>(values(4u << 20, 1));
  const LetterId id = post(*world.engines[0], true, 1, 0, *data);
  auto got = std::make_unique<Ints>(4u << 20);
  (void)post(*world.engines[1], false, 0, 0, *got);
  std::thread waiter([&] {
    bool whole = false;  // where this thread was kept waiting for long enough
    const std::string code =
        code_of([&] { whole = finish(*world.engines[0], id).state == LetterState::done; });
    CHECK(code == "closed" || whole);
  });
  ::poll(nullptr, 0, 2);
  world.engines[0]->close();
  data.reset();
  waiter.join();
  world.engines[1]->close();
  got.reset();
  CHECK(code_of([&] {
    Ints more(1);
    (void)post(*world.engines[1], true, 0, 0, more);
  }) == "closed");
}

TEST(whoever_is_named_and_is_no_member_any_more_is_lost_at_once) {
  Ints data(3, 8);
  World world(3);
  world.install(1, {0, 1});
  const PeerId gone = world.view_of(1, world.everybody(), Pause::none).members[2].peer;
  for (const bool sends : {true, false}) {
    PostedLetter posted;
    posted.sends = sends;
    posted.peer = gone;
    posted.what = {Dtype::u32, data.size()};
    posted.memory = reinterpret_cast<std::byte*>(data.data());
    const Letter letter = finish(*world.engines[0], world.engines[0]->post(posted, patience_s), 0);
    CHECK(letter.end == LetterEnd::lost && letter.peer == gone);
  }
  CHECK(data == Ints(3, 8) && world.engines[0]->stats().open_letters == 0);
}

TEST(whom_one_can_send_to_is_said_before_anything_is_sent) {
  Ints data(1);  // before the engines: one of them still has it at the end
  World world(2);
  const auto refused = [&](int rank) {
    return code_of([&] { (void)post(*world.engines[0], true, rank, 0, data); }) == "usage";
  };
  CHECK(refused(1));  // no view yet
  world.install(1, world.everybody());
  CHECK(refused(0) && refused(2) && refused(-1) && !refused(1));
}

}  // namespace
