// native/fuzz/fuzz_coordinator_link.cpp — a peer's half of its native connection to a coordinator.
//
// Whoever answers there says anything, in any order and pieces.  Whatever that is: the link greets
// first, and obeys nothing before WELCOME; FLUSH is fenced and answered with a REPORT; generations
// that are followed only grow; it is up or down, never twice the same; after EVICTED it is off; and
// it dials no more often than its patience allows.
//
// Ownership: one poller for all inputs.
// Threads:   one.
// Errors:    abort.
#include "control/coordinator_link.hpp"

#include "fuzz/door.hpp"
#include "fuzz/frames_of.hpp"
#include "fuzz/pipe.hpp"

using namespace pccl;
using fuzz::id;
using fuzz::require;

namespace {

constexpr std::size_t steps_max = 96;
constexpr double shortest_pause_s = 0.1;

/// What the link tells, held to its word.
class Witness final : public fuzz::Host {
 public:
  Report fence(Generation, Epoch) noexcept override {
    require(up);
    ++fences;
    return {};
  }
  HeartbeatStatus status() noexcept override {
    HeartbeatStatus now;
    now.generation = followed;
    return now;
  }
  void coordinator_connected(bool connected, Generation generation) noexcept override {
    require(connected != up);
    require(!connected || generation >= followed);
    up = connected;
  }
  void coordinator_followed(Generation generation) noexcept override {
    require(up && generation > followed);
    followed = generation;
  }
  void routes(Generation, const std::vector<Route>&) noexcept override { require(up); }
  void evicted(std::string) noexcept override {
    require(!over && !up);
    over = true;
  }
  bool up = false;
  bool over = false;  // until it is admitted again
  Generation followed = 0;
  int fences = 0;
};

class Story {
 public:
  explicit Story(fuzz::Pieces input, Poller& poller)
      : input_(input),
        context_{config_, host_, poller, counters_, Identity{id<RunId>(9), 1, id<Secret>(1), 1}} {}

  void run() {
    admit();
    for (std::size_t i = 0; i < steps_max && !input_.empty(); ++i) {
      step();
      require(!host_.over || link_.due_s() == no_deadline);
    }
    check();
    link_.shut();
  }

 private:
  void admit() {
    host_.over = false;
    ++admissions_;
    link_.admit({"127.0.0.1", 9, 0.25}, now_s_);
  }

  void step() {
    const auto kind = input_.number<std::uint8_t>();
    switch (kind % 16) {
      case 0: return pass(input_.number<std::uint8_t>() / 64.0);
      case 1: return suspect();
      case 2: return link_.beat(now_s_);
      case 3: return admit_again();
      case 4:
        if (!dialled_.pipes.empty()) dialled_.pipes.back().far.reset();
        break;
      case 5: say(input_.take(input_.number<std::uint8_t>())); break;
      case 6: say(fuzz::framed(input_.take(input_.number<std::uint8_t>()))); break;
      case 7: say(fuzz::bytes_of(frames::Refused{input_.number<std::uint8_t>(), "no"})); break;
      case 8: say(fuzz::bytes_of(frames::Evicted{number(), "out"})); break;
      case 9: say(fuzz::bytes_of(frames::Pong{number(), 1})); break;
      case 10:
      case 11: say(fuzz::bytes_of(frames::Flush{number(), input_.number<std::uint8_t>()})); break;
      case 12: {
        say(fuzz::bytes_of(frames::Routes{number(), 1, {{id<PeerId>(3), id<PeerId>(4)}}}));
        break;
      }
      default: say(fuzz::bytes_of(frames::Welcome{number()})); break;
    }
    if (dialled_.pipes.empty()) return;
    const auto& pipe = dialled_.pipes.back();
    const auto broken = pipe.far ? 0u : ready::error;
    if (pipe.far) token_ = pipe.token();
    link_.on_ready(serial_of(token_), ready::read | ready::write | broken, now_s_);
  }

  Generation number() { return input_.number<std::uint8_t>() % 8u; }

  void pass(double seconds) {
    now_s_ += seconds;
    passed_s_ += seconds;
    link_.on_time(now_s_);
  }

  void suspect() {
    const auto code = static_cast<SuspectCode>(input_.number<std::uint8_t>() % 8u);
    link_.suspect({1, 2, code, {id<PeerId>(3)}, "slow"}, now_s_);
  }

  /// As another incarnation: what was followed before is void.
  void admit_again() {
    link_.forget();
    host_.followed = 0;
    ++context_.identity->incarnation;
    admit();
  }

  void say(std::span<const std::byte> bytes) {
    if (dialled_.pipes.empty() || !dialled_.pipes.back().far) return;
    said_.resize(dialled_.pipes.size());
    dialled_.pipes.back().say(bytes);
    fuzz::append(said_.back(), bytes);
  }

  void check() {
    said_.resize(dialled_.pipes.size());
    int reports = 0;
    for (std::size_t at = 0; at < dialled_.pipes.size(); ++at) {
      if (!dialled_.pipes[at].far) continue;
      const auto told = fuzz::frames_of(dialled_.pipes[at].hear());
      const auto answers = fuzz::frames_of(said_[at]);
      reports += check_told(told, answers);
    }
    require(reports <= host_.fences);
    const double dials = admissions_ + 1 + passed_s_ / shortest_pause_s;
    require(static_cast<double>(dialled_.pipes.size()) <= dials);
  }

  /// Returns how many reports are among it.
  static int check_told(const std::vector<frames::Frame>& told,
                        const std::vector<frames::Frame>& answers) {
    if (told.empty()) return 0;
    const auto* hello = std::get_if<frames::Hello>(&told[0]);
    require(hello != nullptr && hello->purpose == Purpose::coordinator);
    require(hello->secret == id<Secret>(1));
    if (told.size() == 1) return 0;
    require(!answers.empty() && std::holds_alternative<frames::Welcome>(answers[0]));
    int reports = 0;
    for (std::size_t i = 1; i < told.size(); ++i) {
      const bool report = std::holds_alternative<Report>(told[i]);
      require(report || std::holds_alternative<frames::Heartbeat>(told[i]) ||
              std::holds_alternative<Suspect>(told[i]));
      reports += report ? 1 : 0;
    }
    const auto flushes = std::count_if(answers.begin(), answers.end(), [](const auto& frame) {
      return std::holds_alternative<frames::Flush>(frame);
    });
    require(reports <= flushes);
    return reports;
  }

  fuzz::Pieces input_;
  ControlConfig config_;
  Counters counters_;
  Witness host_;
  Context context_;
  fuzz::Dialled dialled_;
  CoordinatorLink link_{context_};
  std::vector<fuzz::Bytes> said_;
  std::uint64_t token_ = 0;
  double now_s_ = 1;
  double passed_s_ = 0;
  int admissions_ = 0;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static Poller poller;
  Story(fuzz::Pieces(data, size), poller).run();
  return 0;
}
