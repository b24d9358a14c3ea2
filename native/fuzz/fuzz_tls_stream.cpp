// native/fuzz/fuzz_tls_stream.cpp — two ends of an encrypted connection, and a hand on the wire.
//
// Both ends are the shipped ones, with certificates of one CA.  The input says where the wire's
// bytes are changed, lost, repeated or put, in the handshake or behind it, and in what portions
// they travel.  Whatever it does, each end hears only what the other has said, from its beginning
// and without a gap; an end that is established knows the other's true name; and with no hand on
// the wire all arrives.  Where no OpenSSL is found, nothing is tried.
//
// Ownership: contexts serve all inputs, connections one.
// Threads:   one.
// Errors:    abort.
#include "fuzz/pieces.hpp"
#include "fuzz/pipe.hpp"
#define main main_of_tests  // libFuzzer brings its own
#include "tests/tls_rig.hpp"
#undef main

using namespace pccl;
using fuzz::require;

namespace {

constexpr std::size_t changes_max = 4;
constexpr std::size_t rounds_max = 300;
constexpr std::size_t said_max = 4000;
constexpr LaneSealing sealing{true, 512, 3};  // small pieces, new keys soon

struct Ends {
  Ends()
      : listener(std::make_shared<const TlsContext>(authority.material(authority.issue()),
                                                    sealing)),
        dialler(std::make_shared<const TlsContext>(authority.material(authority.issue()),
                                                   sealing)) {}
  rig_tls::Authority authority;
  std::shared_ptr<const TlsContext> listener;
  std::shared_ptr<const TlsContext> dialler;
};

struct Change {
  std::size_t at;  // in the bytes of its direction
  std::uint8_t how;
};

struct End {
  End() : pipe(true) {}
  fuzz::Pipe pipe;
  std::unique_ptr<Conduit> conduit;
  std::vector<Change> changes;  // of what it says
  std::size_t travelled = 0;
  fuzz::Bytes wire;             // said, and not there yet
  fuzz::Bytes said;
  fuzz::Bytes heard;
  bool established = false;
  bool over = false;
};

class Story {
 public:
  Story(const Ends& ends, fuzz::Pieces input) : input_(input), contexts_(ends) {
    ends_[0].conduit = ends.dialler->dial(std::move(ends_[0].pipe.near),
                                          {.peer = ends.listener->peer(), .coordinator_of = {}});
    ends_[1].conduit = ends.listener->accept(std::move(ends_[1].pipe.near));
  }

  void run() {
    const auto how = input_.number<std::uint8_t>();
    portion_ = (how & 1) != 0 ? 16u + input_.number<std::uint8_t>() * 4u : 1u << 16;
    for (std::size_t left = (how >> 1) % (changes_max + 1); left > 0; --left) {
      const auto at = input_.number<std::uint16_t>() % 3000u;
      const auto which = input_.number<std::uint8_t>();
      ends_[which & 1].changes.push_back({at, static_cast<std::uint8_t>(which >> 1)});
    }
    const bool honest = ends_[0].changes.empty() && ends_[1].changes.empty();
    for (std::size_t i = 0; i < rounds_max && !both(&End::established) && go_on(); ++i) shake();
    if (both(&End::established) && (how & 128) != 0) {
      for (End& end : ends_) {
        const Status status = end.conduit->seal_in_bulk();
        // Not in the middle of a record, which a hand on the wire may have put there.
        require(status == Status::ok || (!honest && status == Status::usage));
      }
    }
    for (std::size_t i = 0; i < rounds_max && both(&End::established) && go_on(); ++i) {
      if (!talk()) break;
    }
    for (int i = 0; i < 2; ++i) check(ends_[i], ends_[1 - i], honest);
  }

 private:
  bool both(bool End::* what) const { return ends_[0].*what && ends_[1].*what; }
  bool go_on() const { return !(ends_[0].over || ends_[1].over); }

  void shake() {
    for (int i = 0; i < 2; ++i) {
      End& end = ends_[i];
      if (end.established || end.over) continue;
      const Status status = end.conduit->establish();
      end.established = status == Status::ok;
      end.over = status != Status::ok && status != Status::would_block;
      if (end.over) require(!end.conduit->refusal().empty() || status != Status::protocol);
      const TlsContext& other = i == 0 ? *contexts_.listener : *contexts_.dialler;
      require(end.conduit->proves(other.peer()) == end.established);
    }
    carry();
  }

  /// False: all is said, and has arrived.
  bool talk() {
    for (End& end : ends_) {
      if (end.said.size() < said_max && !input_.empty()) {
        const std::size_t size = 1u + input_.number<std::uint8_t>() * 3u;
        fuzz::Bytes bytes(size, static_cast<std::byte>(end.said.size() + size));
        const iovec part{bytes.data(), bytes.size()};
        std::size_t sent = 0;
        const Status status = end.conduit->send({&part, 1}, sent);
        end.over = status != Status::ok && status != Status::would_block;
        if (status == Status::ok) fuzz::append(end.said, std::span(bytes).first(sent));
      }
    }
    carry();
    const std::size_t before = ends_[0].heard.size() + ends_[1].heard.size();
    for (End& end : ends_) hear(end);
    return !input_.empty() || !ends_[0].wire.empty() || !ends_[1].wire.empty() ||
           before != ends_[0].heard.size() + ends_[1].heard.size();
  }

  static void hear(End& end) {
    fuzz::Bytes memory(700);
    for (std::size_t i = 0; i < rounds_max && !end.over; ++i) {
      const iovec part{memory.data(), memory.size()};
      std::size_t got = 0;
      bool drained = false;
      const Status status = end.conduit->receive({&part, 1}, got, drained);
      if (status == Status::would_block) return;
      end.over = status != Status::ok;
      if (status == Status::ok) fuzz::append(end.heard, std::span(memory).first(got));
    }
  }

  /// What the one has said goes on its way to the other.
  void carry() {
    for (int i = 0; i < 2; ++i) {
      End& from = ends_[i];
      const fuzz::Bytes spoken = from.pipe.hear();
      if (from.changes.empty()) {
        fuzz::append(from.wire, spoken);
      } else {
        for (const std::byte byte : spoken) change(from, byte);
      }
      const std::size_t here = std::min(portion_, from.wire.size());
      ends_[1 - i].pipe.say(std::span(from.wire).first(here));
      from.wire.erase(from.wire.begin(), from.wire.begin() + static_cast<std::ptrdiff_t>(here));
    }
  }

  static void change(End& from, std::byte byte) {
    const std::size_t at = from.travelled++;
    for (const Change& one : from.changes) {
      if (one.at != at) continue;
      switch (one.how % 4) {
        case 0: byte ^= static_cast<std::byte>(1u << one.how / 4 % 8); break;
        case 1: return;                               // lost
        case 2: from.wire.push_back(byte); break;     // repeated
        default: from.wire.push_back(static_cast<std::byte>(one.how)); break;  // put
      }
    }
    from.wire.push_back(byte);
  }

  static void check(const End& end, const End& other, bool honest) {
    require(end.heard.size() <= other.said.size());
    require(fuzz::same(end.heard, std::span(other.said).first(end.heard.size())));
    require(!honest || (end.established && !end.over));
    if (honest && other.wire.empty()) require(end.heard.size() == other.said.size());
  }

  fuzz::Pieces input_;
  const Ends& contexts_;
  End ends_[2];  // who dialled, and who was dialled
  std::size_t portion_ = 0;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (tls_library().version.empty()) return 0;
  static const Ends ends;
  Story(ends, fuzz::Pieces(data, size)).run();
  return 0;
}
