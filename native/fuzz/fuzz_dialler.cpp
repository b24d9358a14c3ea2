// native/fuzz/fuzz_dialler.cpp — whoever answers a dial, also through a relay, says anything.
//
// Whatever that is: a lane is adopted only where WELCOME came first, and of as many as were asked
// for; a peer's secret is told to the peer, and a relay hears only its own before it has said that
// it leads on; what is not up at the deadline is given up, told once, and leaves nothing behind.
// In a secured run nobody who has no keys hears a word.
//
// Ownership: two sets of parts for all inputs, plain and secured: none leaves anything behind.
// Threads:   one.
// Errors:    abort.
#include "control/dialler.hpp"

#include "fuzz/door.hpp"
#include "fuzz/frames_of.hpp"
#include "fuzz/pipe.hpp"
#define main main_of_tests  // libFuzzer brings its own
#include "tests/tls_rig.hpp"
#undef main

using namespace pccl;
using fuzz::id;
using fuzz::require;

namespace {

constexpr std::size_t steps_max = 64;
constexpr std::uint64_t call_number = 5;
const PeerEndpoint peer{id<PeerId>(3), 30, id<Secret>(0x33), "127.0.0.1", 9};
const PeerEndpoint relay{id<PeerId>(4), 40, id<Secret>(0x44), "127.0.0.1", 10};

struct Parts : fuzz::Door {
  explicit Parts(std::shared_ptr<const TlsContext> tls = {}) : Door(std::move(tls)) {}
  Dialler dialler{context, peers, strangers};
  double now_s = 0;  // never goes back
};

Parts& plain() {
  static Parts parts;
  return parts;
}

Parts& secured() {
  static const rig_tls::Authority authority;
  static Parts parts(authority.context());
  return parts;
}

class Story {
 public:
  Story(Parts& parts, fuzz::Pieces input, std::uint8_t shape)
      : parts_(parts), input_(input), through_((shape & 2) != 0),
        awaits_(through_ && (shape & 4) != 0), called_(awaits_ && (shape & 8) != 0) {
    parts_.host.lanes = parts_.host.streams = parts_.host.failed = 0;
    request_.peer = peer;
    request_.lanes = static_cast<std::uint16_t>(1 + (shape & 1));
    request_.try_s = 1.5;
    request_.series = 7;
    if (through_) request_.via = relay;
    request_.awaits = awaits_;
  }

  void run() {
    if (called_) {
      parts_.dialler.answer(peer, relay, call_number, parts_.now_s);
    } else {
      parts_.dialler.connect(request_, parts_.now_s);
    }
    for (std::size_t i = 0; i < steps_max && !input_.empty(); ++i) step();
    pass(1e4);
    require(parts_.dialler.due_s() == no_deadline);
    check();
    parts_.peers.clear();
  }

 private:
  void step() {
    const auto kind = input_.number<std::uint8_t>();
    if ((kind & 15) == 0) return pass(input_.number<std::uint8_t>() / 16.0);
    if (dialled_.pipes.empty()) return;
    const std::size_t at = (kind >> 4) % dialled_.pipes.size();
    said_.resize(dialled_.pipes.size());
    tokens_.resize(dialled_.pipes.size());
    if (dialled_.pipes[at].far) tokens_[at] = dialled_.pipes[at].token();
    switch (kind & 15) {
      case 1: dialled_.pipes[at].far.reset(); break;
      case 2: break;  // nothing but an event
      case 3: say(at, fuzz::bytes_of(frames::Refused{input_.number<std::uint8_t>(), "no"})); break;
      case 4: say(at, fuzz::framed(input_.take(input_.number<std::uint8_t>()))); break;
      case 5: say(at, input_.take(input_.number<std::uint8_t>())); break;
      case 6:
      case 7: say(at, fuzz::bytes_of(greeting())); break;
      case 8: say(at, fuzz::bytes_of(frames::PeerBeat{1, 2, 3})); break;
      case 9: say(at, fuzz::bytes_of(frames::Call{relay.peer, 40, 1})); break;
      default: say(at, fuzz::bytes_of(frames::Welcome{})); break;
    }
    const auto broken = dialled_.pipes[at].far ? 0u : ready::error;
    deliver(tokens_[at], ready::read | ready::write | broken);
  }

  /// What the other one of two that meet at a relay says, or something near it.
  frames::Hello greeting() {
    const auto which = input_.number<std::uint8_t>();
    frames::Hello hello;
    hello.purpose = static_cast<Purpose>(which % 6);
    hello.run_id = parts_.context.identity->run_id;
    hello.peer = peer.peer;
    hello.incarnation = peer.incarnation;
    hello.secret = which < 200 ? parts_.context.identity->secret : id<Secret>(which);
    return hello;
  }

  void say(std::size_t at, std::span<const std::byte> bytes) {
    if (!dialled_.pipes[at].far) return;
    dialled_.pipes[at].say(bytes);
    fuzz::append(said_[at], bytes);
  }

  void deliver(std::uint64_t token, std::uint32_t bits) {
    switch (part_of(token)) {
      case Part::dialler: parts_.dialler.on_ready(serial_of(token), bits, parts_.now_s); break;
      case Part::strangers: parts_.strangers.on_ready(serial_of(token), bits, parts_.now_s); break;
      case Part::peers: parts_.peers.on_ready(serial_of(token), bits, parts_.now_s); break;
      default: break;
    }
    static_cast<void>(parts_.peers.take_calls());
  }

  void pass(double seconds) {
    parts_.now_s += seconds;
    parts_.strangers.on_time(parts_.now_s);
    parts_.dialler.on_time(parts_.now_s);
    parts_.peers.on_time(parts_.now_s);
  }

  void check() {
    const fuzz::Host& host = parts_.host;
    said_.resize(dialled_.pipes.size());
    std::size_t may = 0;
    for (std::size_t at = 0; at < dialled_.pipes.size(); ++at) {
      const fuzz::Bytes heard = dialled_.pipes[at].far ? dialled_.pipes[at].hear() : fuzz::Bytes{};
      if (parts_.context.tls) {
        require(heard.empty() || heard.front() == std::byte{0x16});
        require(!contains(heard, peer.secret) && !contains(heard, relay.secret));
      } else {
        const auto answers = fuzz::frames_of(said_[at]);
        check_told(fuzz::frames_of(heard), answers);
        may += may_adopt(answers);
      }
    }
    require(host.lanes + host.streams <= static_cast<int>(may));
    require(awaits_ || host.lanes <= request_.lanes);
    require(host.failed <= (called_ ? 0 : 1));
    require(awaits_ || called_ || (host.failed == 1) == (host.lanes < request_.lanes));
  }

  static bool contains(const fuzz::Bytes& heard, const Secret& secret) {
    const auto* begin = reinterpret_cast<const std::byte*>(secret.bytes.data());
    return std::search(heard.begin(), heard.end(), begin, begin + secret.bytes.size()) !=
           heard.end();
  }

  static bool is_welcome(const std::vector<frames::Frame>& answers, std::size_t at) {
    return at < answers.size() && std::holds_alternative<frames::Welcome>(answers[at]);
  }

  /// Whether a lane or a stream may come of a connection on which this was answered.
  bool may_adopt(const std::vector<frames::Frame>& answers) const {
    if (!is_welcome(answers, 0)) return false;
    if (!through_) return true;
    if (!awaits_) return is_welcome(answers, 1);
    const auto* hello = answers.size() > 1 ? std::get_if<frames::Hello>(&answers[1]) : nullptr;
    return hello != nullptr && hello->secret == parts_.context.identity->secret;
  }

  void check_told(const std::vector<frames::Frame>& told,
                  const std::vector<frames::Frame>& answers) const {
    if (told.empty()) return;
    const auto* first = std::get_if<frames::Hello>(&told[0]);
    require(first != nullptr && first->secret == (through_ ? relay : peer).secret);
    require((first->purpose == Purpose::relay) == through_);
    const std::size_t greeted = through_ ? 2 : 1;  // a relay hears RELAY with it
    require(told.size() >= greeted);
    if (through_) {
      const auto* order = std::get_if<frames::Relay>(&told[1]);
      require(order != nullptr && order->peer == peer.peer && order->answers == called_);
    }
    if (told.size() == greeted) return;
    require(is_welcome(answers, 0));
    const auto* second = std::get_if<frames::Hello>(&told[greeted]);
    if (through_ && !awaits_) {
      require(second != nullptr && second->secret == peer.secret &&
              second->purpose == Purpose::relayed_lane);
    } else {
      require(second == nullptr);  // as a listener it answers; to a peer it beats
    }
  }

  Parts& parts_;
  fuzz::Pieces input_;
  bool through_;
  bool awaits_;
  bool called_;
  DialRequest request_;
  fuzz::Dialled dialled_;
  std::vector<fuzz::Bytes> said_;
  std::vector<std::uint64_t> tokens_;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  fuzz::Pieces input(data, size);
  const auto shape = input.number<std::uint8_t>();
  // To begin a handshake of TLS costs more than all else here.
  const bool in_secret = shape >= 240 && !tls_library().version.empty();
  Story(in_secret ? secured() : plain(), input, shape).run();
  return 0;
}
