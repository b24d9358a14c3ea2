// emulator.cpp — links between network namespaces: a TUN device per host, a mesh of directed links.
//
//   emulator [--mtu BYTES] [--seed N] DEVICE...
//
// The last byte of a host's address is its number plus one: 10.77.0.1 is host 0.  So a packet finds
// its link.  It prints "ready" once all devices exist; whoever started it then moves them into
// their namespaces.  Commands are lines on standard input, in force from the next packet on:
//
//   SOURCE TARGET KEY=VALUE...    numbers of hosts, or * for all
//     delay=MS jitter=MS          time on the link; jitter is uniform and does not reorder
//     loss=P duplicate=P reorder=P  probabilities; a reordered packet skips the delay
//     rate=MBIT queue=KIB         0: unlimited; what waits longer than the queue holds is dropped
//     mtu=BYTES                   0: the device's; larger packets vanish, as in a black hole
//     cut=0|1                     nothing passes
//   stats                         prints one line per link that was used, then "."
//
// Ownership: every descriptor and packet has one owner; devices vanish with the process.
// Threads:   one.  It sleeps in epoll; a timer wakes it for the next departure.
// Errors:    what cannot be set up ends it with a message and code 1; a bad command is named on
//            stderr and changes nothing; end of input ends it with code 0.

#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <optional>
#include <queue>
#include <random>
#include <sstream>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace {

using Nanoseconds = std::int64_t;

constexpr std::size_t hosts_max = 64;
constexpr std::size_t packets_max = 1U << 17;  // on all links; a bound for memory, not a queue
constexpr int burst_max = 128;  // packets read from a device before others get a turn
constexpr std::size_t ipv4_header_bytes = 20;
constexpr std::size_t destination_last_byte = 19;
constexpr std::uint32_t timer_id = hosts_max;
constexpr std::uint32_t input_id = hosts_max + 1;

Nanoseconds now() noexcept {
  return std::chrono::steady_clock::now().time_since_epoch() / std::chrono::nanoseconds(1);
}

class Fd {
 public:
  explicit Fd(int fd) noexcept : fd_(fd) {}
  Fd(Fd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Fd(const Fd&) = delete;
  Fd& operator=(const Fd&) = delete;
  Fd& operator=(Fd&&) = delete;
  ~Fd() {
    if (fd_ >= 0) ::close(fd_);
  }
  [[nodiscard]] int get() const noexcept { return fd_; }

 private:
  int fd_;
};

struct Link {
  double delay_ms = 0, jitter_ms = 0, loss = 0, duplicate = 0, reorder = 0, rate_mbit = 0;
  double queue_kib = 1024, mtu = 0, cut = 0;
  Nanoseconds free_at = 0;     // when the last bit of what was accepted has left, for the rate
  Nanoseconds arrives_at = 0;  // of the latest packet: jitter must not reorder
  std::uint64_t passed = 0, dropped = 0, bytes = 0;

  double* field(std::string_view key) noexcept {
    const std::array<std::pair<std::string_view, double*>, 9> fields = {{
        {"delay", &delay_ms},
        {"jitter", &jitter_ms},
        {"loss", &loss},
        {"duplicate", &duplicate},
        {"reorder", &reorder},
        {"rate", &rate_mbit},
        {"queue", &queue_kib},
        {"mtu", &mtu},
        {"cut", &cut},
    }};
    for (const auto& [name, value] : fields)
      if (name == key) return value;
    return nullptr;
  }
};

struct Packet {
  Nanoseconds at = 0;
  std::uint64_t order = 0;  // equal times keep their order
  std::size_t target = 0;
  std::vector<std::byte> content;
};

using PacketPtr = std::unique_ptr<Packet>;

struct Later {
  bool operator()(const PacketPtr& one, const PacketPtr& two) const {
    return std::pair(one->at, one->order) > std::pair(two->at, two->order);
  }
};

class Emulator {
 public:
  Emulator(std::vector<Fd> devices, std::size_t mtu, std::uint64_t seed)
      : devices_(std::move(devices)),
        links_(devices_.size() * devices_.size()),
        dice_(seed),
        epoll_(::epoll_create1(0)),
        timer_(::timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK)),
        buffer_(mtu + 64) {
    for (std::size_t host = 0; host < devices_.size(); ++host)
      watch(devices_[host].get(), static_cast<std::uint32_t>(host));
    watch(timer_.get(), timer_id);
    watch(STDIN_FILENO, input_id);
  }

  /// Runs until standard input ends.
  void run() {
    std::array<epoll_event, 64> events{};
    for (bool open = true; open;) {
      arm();
      const int count = ::epoll_wait(epoll_.get(), events.data(), events.size(), -1);
      for (int i = 0; i < count; ++i) {
        const std::uint32_t id = events[static_cast<std::size_t>(i)].data.u32;
        if (id == input_id) {
          open = take_input() && open;
        } else if (id == timer_id) {
          std::uint64_t ticks = 0;
          (void)!::read(timer_.get(), &ticks, sizeof ticks);
        } else {
          take_packets(id);
        }
      }
      deliver();
    }
  }

 private:
  void watch(int fd, std::uint32_t id) {
    epoll_event event{};
    event.events = EPOLLIN;
    event.data.u32 = id;
    ::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event);
  }

  /// Wakes up for the next departure; never at once for ever, because what is due was delivered.
  void arm() {
    if (packets_.empty()) return;
    const Nanoseconds wait = std::max<Nanoseconds>(packets_.top()->at - now(), 1);
    itimerspec spec{};
    spec.it_value.tv_sec = wait / 1'000'000'000;
    spec.it_value.tv_nsec = wait % 1'000'000'000;
    ::timerfd_settime(timer_.get(), 0, &spec, nullptr);
  }

  double chance() { return std::uniform_real_distribution<double>(0.0, 1.0)(dice_); }

  void take_packets(std::size_t source) {
    for (int i = 0; i < burst_max; ++i) {
      const ssize_t size = ::read(devices_[source].get(), buffer_.data(), buffer_.size());
      if (size <= 0) return;
      const auto bytes = static_cast<std::size_t>(size);
      const bool ipv4 = bytes >= ipv4_header_bytes && std::to_integer<int>(buffer_[0]) >> 4 == 4;
      if (!ipv4) continue;  // the kernel's IPv6 greetings
      const auto last = std::to_integer<std::size_t>(buffer_[destination_last_byte]);
      if (last == 0 || last > devices_.size() || last - 1 == source) continue;
      send(source, last - 1, bytes);
    }
  }

  void send(std::size_t source, std::size_t target, std::size_t bytes) {
    Link& link = links_[source * devices_.size() + target];
    const Nanoseconds time = now();
    const auto size = static_cast<double>(bytes);
    Nanoseconds departs = time;
    bool lost = link.cut != 0 || (link.mtu > 0 && size > link.mtu) ||
                (link.loss > 0 && chance() < link.loss) || packets_.size() >= packets_max;
    if (!lost && link.rate_mbit > 0) {
      const Nanoseconds starts = std::max(time, link.free_at);
      const double waiting_bytes = static_cast<double>(starts - time) * link.rate_mbit / 8000.0;
      lost = link.queue_kib > 0 && waiting_bytes > link.queue_kib * 1024.0;
      if (!lost) departs = link.free_at = starts + Nanoseconds(size * 8000.0 / link.rate_mbit);
    }
    if (lost) {
      ++link.dropped;
      return;
    }
    ++link.passed;
    link.bytes += bytes;
    const double on_link_ms = link.delay_ms + (link.jitter_ms > 0 ? link.jitter_ms * chance() : 0);
    Nanoseconds arrives = departs + Nanoseconds(on_link_ms * 1e6);
    if (link.reorder > 0 && chance() < link.reorder) {
      arrives = departs;
    } else {
      arrives = link.arrives_at = std::max(arrives, link.arrives_at);
    }
    const int copies = link.duplicate > 0 && chance() < link.duplicate ? 2 : 1;
    for (int i = 0; i < copies; ++i) {
      const auto end = buffer_.begin() + static_cast<std::ptrdiff_t>(bytes);
      packets_.push(std::make_unique<Packet>(
          Packet{arrives, order_++, target, std::vector<std::byte>(buffer_.begin(), end)}));
    }
  }

  void deliver() {
    const Nanoseconds time = now();
    while (!packets_.empty() && packets_.top()->at <= time) {
      const Packet& packet = *packets_.top();
      // A device that is down loses it, as a host that is gone would.
      (void)!::write(devices_[packet.target].get(), packet.content.data(), packet.content.size());
      packets_.pop();
    }
  }

  bool take_input() {
    std::array<char, 4096> part{};
    const ssize_t size = ::read(STDIN_FILENO, part.data(), part.size());
    if (size <= 0) return false;
    input_.append(part.data(), static_cast<std::size_t>(size));
    for (std::size_t end = 0; (end = input_.find('\n')) != std::string::npos;) {
      const std::string line = input_.substr(0, end);
      input_.erase(0, end + 1);
      if (!obey(line)) std::fprintf(stderr, "emulator: not understood: %s\n", line.c_str());
    }
    return true;
  }

  bool obey(const std::string& line) {
    std::istringstream words(line);
    std::string source, target, word;
    words >> source;
    if (source.empty()) return true;
    if (source == "stats") return print_stats();
    words >> target;
    const auto sources = hosts(source), targets = hosts(target);
    if (!sources || !targets) return false;
    std::vector<std::pair<std::string, double>> settings;
    while (words >> word) {
      const std::size_t equals = word.find('=');
      if (equals == std::string::npos) return false;
      const auto value = number(std::string_view(word).substr(equals + 1));
      const std::string key = word.substr(0, equals);
      if (!value || *value < 0 || links_.front().field(key) == nullptr) return false;
      settings.emplace_back(key, *value);
    }
    for (std::size_t one : *sources)
      for (std::size_t two : *targets)
        for (const auto& [key, value] : settings)
          *links_[one * devices_.size() + two].field(key) = value;
    return true;
  }

  [[nodiscard]] std::optional<std::vector<std::size_t>> hosts(const std::string& word) const {
    std::vector<std::size_t> found;
    if (word == "*") {
      for (std::size_t host = 0; host < devices_.size(); ++host) found.push_back(host);
      return found;
    }
    const auto value = number(word);
    if (!value || *value < 0 || *value >= static_cast<double>(devices_.size())) return {};
    found.push_back(static_cast<std::size_t>(*value));
    return found;
  }

  static std::optional<double> number(std::string_view text) {
    double value = 0;
    const auto result = std::from_chars(text.data(), text.data() + text.size(), value);
    if (result.ec != std::errc() || result.ptr != text.data() + text.size()) return {};
    return value;
  }

  bool print_stats() {
    for (std::size_t i = 0; i < links_.size(); ++i) {
      const Link& link = links_[i];
      if (link.passed + link.dropped == 0) continue;
      std::printf("%zu %zu passed=%llu dropped=%llu bytes=%llu\n", i / devices_.size(),
                  i % devices_.size(), static_cast<unsigned long long>(link.passed),
                  static_cast<unsigned long long>(link.dropped),
                  static_cast<unsigned long long>(link.bytes));
    }
    std::printf(".\n");
    std::fflush(stdout);
    return true;
  }

  std::vector<Fd> devices_;
  std::vector<Link> links_;  // [source * hosts + target]
  std::mt19937_64 dice_;
  Fd epoll_, timer_;
  std::vector<std::byte> buffer_;
  std::priority_queue<PacketPtr, std::vector<PacketPtr>, Later> packets_;
  std::uint64_t order_ = 0;
  std::string input_;
};

std::optional<Fd> make_device(const char* name) {
  Fd device(::open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC));
  ifreq request{};
  request.ifr_flags = IFF_TUN | IFF_NO_PI;
  std::strncpy(request.ifr_name, name, IFNAMSIZ - 1);
  if (device.get() < 0 || ::ioctl(device.get(), TUNSETIFF, &request) != 0) return {};
  return device;
}

}  // namespace

int main(int argc, char** argv) {
  std::size_t mtu = 1500;
  std::uint64_t seed = 1;
  std::vector<Fd> devices;
  for (int i = 1; i < argc; ++i) {
    const std::string_view word = argv[i];
    if ((word == "--mtu" || word == "--seed") && i + 1 < argc) {
      (word == "--mtu" ? mtu : seed) = std::strtoull(argv[++i], nullptr, 10);
      continue;
    }
    auto device = make_device(argv[i]);
    if (!device || devices.size() == hosts_max) {
      std::fprintf(stderr, "emulator: no device %s: %s\n", argv[i], std::strerror(errno));
      return 1;
    }
    devices.push_back(std::move(*device));
  }
  if (devices.size() < 2) {
    std::fprintf(stderr, "usage: emulator [--mtu BYTES] [--seed N] DEVICE DEVICE...\n");
    return 1;
  }
  Emulator emulator(std::move(devices), mtu, seed);
  std::printf("ready\n");
  std::fflush(stdout);
  emulator.run();
  return 0;
}
