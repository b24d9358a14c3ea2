// native/tests/letters_rig.hpp — peers with letters, and lanes that lose and reorder frames.
// Frames are in order on a lane and in none among lanes.  A frame's header arrives first, its
// payload later; what it is for may have ended in between.  A dead lane loses all that it carries;
// each end notices by itself, some time later.
// Ownership: the office owns its peers; every message has memory of its own, freed when its letter
//            ended.
// Threads:   the test's main thread.
// Errors:    CHECKs.
#pragma once

#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <set>
#include <vector>

#include "check.hpp"
#include "pccl/letters.hpp"
#include "pccl/xxh3.hpp"

namespace post {

using namespace pccl;

inline PeerId name_of(std::size_t peer) {
  PeerId id;
  id.bytes[0] = static_cast<std::uint8_t>(peer + 1);
  return id;
}

struct Frame {
  FrameHeader header;
  std::vector<std::byte> body;
};

/// One direction of a lane; `placement`: the header of the first frame has arrived.
struct Way {
  std::deque<Frame> frames;
  std::optional<Placement> placement;
};

class Office;

class Peer final : public LettersHost {
 public:
  Peer(Office& all, std::size_t number)
      : office(all), me(number), letters(name_of(number), *this) {}
  void say(Correspondent& to, FrameHeader header, std::span<const std::byte> body) override {
    header.length = static_cast<std::uint32_t>(body.size());
    control[number_of(to)].push_back({header, {body.begin(), body.end()}});
  }
  void has_chunks(Correspondent&) noexcept override {}
  void let_go(Correspondent& to, LetterId letter) noexcept override;
  void ended(const Letter& letter) override { over.insert(letter.id); }
  static std::size_t number_of(const Correspondent& mail) { return mail.peer.bytes[0] - 1u; }

  Office& office;
  const std::size_t me;
  BufferPool buffers;
  EagerBudget budget{1u << 20};
  Letters letters;
  std::map<std::size_t, Correspondent*> mail;
  std::map<std::size_t, std::deque<Frame>> control;
  std::map<std::size_t, std::set<std::uint32_t>> lanes;  // as this end sees them
  std::map<std::size_t, bool> lost_lane;
  std::set<LetterId> over;
  bool gone = false;
};

class Office {
 public:
  static constexpr std::uint64_t staged_max = 1u << 20;
  Office(std::size_t size, std::size_t lanes, unsigned seed) : dice(seed) {
    for (std::size_t i = 0; i < size; ++i) peers.push_back(std::make_unique<Peer>(*this, i));
    for (std::size_t a = 0; a < size; ++a) {
      for (std::size_t b = 0; b < size; ++b) {
        if (a == b) continue;
        peers[a]->mail[b] =
            &peers[a]->letters.meet(name_of(b), b + 1, peers[a]->budget, nullptr);
      }
      for (std::size_t b = a + 1; b < size; ++b) {
        for (std::size_t i = 0; i < lanes; ++i) add_lane(a, b);
      }
    }
    std::vector<std::size_t> all(size);
    for (std::size_t i = 0; i < size; ++i) all[i] = i;
    for (const std::size_t peer : all) view(peer, 1, all);
  }
  void view(std::size_t peer, Epoch epoch, const std::vector<std::size_t>& members,
            const std::map<std::size_t, StepId>& first_steps = {}) {
    std::vector<Member> list;
    for (const std::size_t member : members) {
      const auto first = first_steps.find(member);
      list.push_back({name_of(member), member + 1, first == first_steps.end() ? 0 : first->second});
    }
    peers[peer]->letters.view(epoch, list);
  }
  void add_lane(std::size_t a, std::size_t b) {
    const std::uint32_t id = ++last_lane;
    peers[a]->lanes[b].insert(id);
    peers[b]->lanes[a].insert(id);
    alive.insert(id);
  }
  /// What is on its way is lost; the ends do not know yet.
  void kill(std::uint32_t lane) {
    alive.erase(lane);
    for (auto& [key, way] : ways) {
      if (std::get<2>(key) == lane) lose(std::get<1>(key), std::get<0>(key), way);
    }
  }
  /// This end finds out, and another lane comes in its place.
  void notice(std::size_t at, std::size_t other, std::uint32_t lane) {
    Peer& peer = *peers[at];
    if (peer.lanes[other].erase(lane) == 0) return;
    peer.lost_lane[other] = true;
    peer.letters.resynchronise(*peer.mail[other]);
    FrameHeader ask;
    ask.type = FrameType::ask;
    peer.control[other].push_back({ask, {}});
  }
  /// Gives some lane from a to b its next frame.
  bool send(std::size_t a, std::size_t b) {
    Peer& peer = *peers[a];
    const auto& lanes = peer.lanes[b];
    if (peer.gone || lanes.empty()) return false;
    const std::uint32_t lane = *std::next(lanes.begin(), static_cast<long>(dice() % lanes.size()));
    Frame frame;
    if (auto& control = peer.control[b]; !control.empty()) {
      frame = std::move(control.front());
      control.pop_front();
    } else {
      Chunk chunk;
      if (!peer.mail[b]->outbox.next(true, lane, chunk) &&
          !peer.mail[b]->outbox.next(false, lane, chunk)) {
        return false;
      }
      frame.body.assign(chunk.data, chunk.data + chunk.length);
      frame.header.type = FrameType::message;
      frame.header.epoch = peer.mail[b]->inbox.era;
      frame.header.step = chunk.number;
      frame.header.tag = chunk.tag;
      frame.header.slice = chunk.index;
      frame.header.length = chunk.length;
      frame.header.payload_hash =
          xxh3_128(frame.body, chunk_seed(chunk.number, chunk.index)).low;
    }
    if (alive.contains(lane)) ways[{a, b, lane}].frames.push_back(std::move(frame));
    return true;
  }
  /// The next half of the first frame of some lane from a arrives at b.
  bool arrive(std::size_t a, std::size_t b) {
    std::vector<Way*> full;
    for (auto& [key, way] : ways) {
      if (std::get<0>(key) == a && std::get<1>(key) == b && !way.frames.empty()) {
        full.push_back(&way);
      }
    }
    if (full.empty() || peers[b]->gone) return false;
    Way& way = *full[dice() % full.size()];
    Peer& peer = *peers[b];
    Correspondent& from = *peer.mail[a];
    const FrameHeader header = way.frames.front().header;
    if (header.type == FrameType::message && !way.placement) {
      way.placement.emplace();
      CHECK(peer.letters.place(from, header, 0, staged_max, peer.buffers, *way.placement) ==
            Status::ok);
      return true;
    }
    const Frame frame = std::move(way.frames.front());
    way.frames.pop_front();
    if (header.type == FrameType::message) {
      Placement placement = std::move(*way.placement);
      way.placement.reset();
      if (placement.kind == Placement::Kind::discard) return true;
      std::memcpy(placement.target, frame.body.data(), frame.body.size());
      CHECK(peer.letters.delivered(from, header, placement) == Status::ok);
    } else if (header.type == FrameType::ask) {
      peer.letters.resynchronise(from);
    } else {
      CHECK(peer.letters.heard(from, header, frame.body.data(), peer.lost_lane[a],
                               [&](std::uint32_t lane) { return peer.lanes[a].contains(lane); }) ==
            Status::ok);
    }
    CHECK(from.inbox.staged() + from.staging <= staged_max);
    return true;
  }
  /// Something moves somewhere; false: nothing can.
  bool move() {
    const std::size_t size = peers.size();
    const std::size_t begin = dice() % (size * size * 2);
    for (std::size_t i = 0; i < size * size * 2; ++i) {
      const std::size_t at = (begin + i) % (size * size * 2);
      const std::size_t a = at / 2 / size, b = at / 2 % size;
      if (a == b) continue;
      if (at % 2 == 0 ? send(a, b) : arrive(a, b)) return true;
    }
    return false;
  }
  void settle() {
    for (std::size_t a = 0; a < peers.size(); ++a) {
      for (auto& [b, lanes] : peers[a]->lanes) {
        for (const std::set<std::uint32_t> all = lanes; const std::uint32_t lane : all) {
          if (!alive.contains(lane)) notice(a, b, lane);
        }
      }
    }
    while (move()) continue;
  }
  /// A lane dies, and its ends notice when chance wants it; another takes its place.
  void break_a_lane() {
    if (alive.empty()) return;
    const auto victim = *std::next(alive.begin(), static_cast<long>(dice() % alive.size()));
    for (std::size_t a = 0; a < peers.size(); ++a) {
      for (std::size_t b = a + 1; b < peers.size(); ++b) {
        if (peers[a]->lanes[b].contains(victim)) add_lane(a, b);
      }
    }
    kill(victim);
  }
  void notice_something() {
    const std::size_t a = dice() % peers.size();
    for (auto& [b, lanes] : peers[a]->lanes) {
      for (const std::uint32_t lane : lanes) {
        if (!alive.contains(lane)) return notice(a, b, lane);
      }
    }
  }
  void lose(std::size_t at, std::size_t from, Way& way) {
    if (way.placement && way.placement->kind == Placement::Kind::staged) {
      peers[at]->mail[from]->staging -= way.frames.front().header.length;
    }
    way.frames.clear();
    way.placement.reset();
  }

  std::mt19937 dice;
  std::vector<std::unique_ptr<Peer>> peers;
  std::map<std::tuple<std::size_t, std::size_t, std::uint32_t>, Way> ways;
  std::set<std::uint32_t> alive;
  std::uint32_t last_lane = 0;
};

inline void Peer::let_go(Correspondent& to, LetterId letter) noexcept {
  for (auto& [key, way] : office.ways) {
    const bool here = std::get<0>(key) == number_of(to) && std::get<1>(key) == me;
    if (here && way.placement && way.placement->letter == letter) way.placement->kind = {};
  }
}

inline constexpr double never_s = 1e9;
inline constexpr std::size_t chunk = chunk_bytes_max;

inline std::byte byte_of(std::uint64_t message, std::size_t at) {
  return static_cast<std::byte>((message * 131 + at * 7 + at / 251) & 0xff);
}

/// One end of a message; the memory goes as soon as its letter has ended.
struct End {
  End(Peer& owner, std::size_t size) : peer(owner), memory(size, std::byte{0xee}) {}
  /// Says whether it has ended, and keeps what it was.
  bool over() {
    if (result) return true;
    const Letter* letter = peer.letters.find(id);
    if (letter->state == LetterState::open) return false;
    result = *letter;
    content = memory;
    std::vector<std::byte>().swap(memory);  // whoever writes there now is found by a sanitizer
    peer.letters.release(id);
    return true;
  }
  bool done() { return over() && result->state == LetterState::done; }
  bool holds(std::uint64_t message) const {
    for (std::size_t i = 0; i < content.size(); ++i) {
      if (content[i] != byte_of(message, i)) return false;
    }
    return true;
  }
  Peer& peer;
  LetterId id = 0;
  std::vector<std::byte> memory;
  std::vector<std::byte> content;
  std::optional<Letter> result;
};

using Ends = std::vector<std::unique_ptr<End>>;

inline End& send(Office& office, Ends& ends, std::size_t from, std::size_t to, Tag tag,
                 std::size_t size, std::uint64_t message, double deadline_s = never_s) {
  Peer& peer = *office.peers[from];
  End& end = *ends.emplace_back(std::make_unique<End>(peer, size));
  for (std::size_t i = 0; i < size; ++i) end.memory[i] = byte_of(message, i);
  end.id = peer.letters.send(*peer.mail[to], tag, {Dtype::u8, size}, end.memory.data(), deadline_s);
  return end;
}

inline End& receive(Office& office, Ends& ends, std::size_t at, std::optional<std::size_t> from,
                    Tag tag, std::size_t size, double deadline_s = never_s) {
  Peer& peer = *office.peers[at];
  End& end = *ends.emplace_back(std::make_unique<End>(peer, size));
  end.id = peer.letters.receive(from ? peer.mail[*from] : nullptr, tag, {Dtype::u8, size},
                                end.memory.data(), deadline_s);
  return end;
}

/// Notes what has ended.
inline void look_at(const Ends& ends) {
  for (const auto& end : ends) (void)end->over();
}

}  // namespace post
