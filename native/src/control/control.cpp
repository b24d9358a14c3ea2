// native/src/control/control.cpp — the control thread itself: mailbox, loop, life and death.
// Ownership: see control.hpp.
// Threads:   see control.hpp; the mailbox and the counters are all that threads share.
// Errors:    see control.hpp.
#include "pccl/control.hpp"
#include "pccl/quiet_thread.hpp"

#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <cmath>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>
#include <variant>
#include <vector>

#include "control/context.hpp"
#include "control/coordinator_link.hpp"
#include "control/dialler.hpp"
#include "control/peer_links.hpp"
#include "control/relay.hpp"
#include "control/strangers.hpp"
#include "pccl/clock.hpp"

namespace pccl {
namespace {

constexpr std::size_t events_per_turn_max = 64;
constexpr double wait_s_max = 60.0;  // keeps the milliseconds within an int
constexpr int breather_ms = 50;      // after a turn that ran out of memory

struct AdmitCommand {
  Identity identity;
  CoordinatorEndpoint coordinator;
};
struct ForgetCommand {
  PeerId peer;
  Incarnation incarnation = 0;
};
struct ExpectCommand {
  std::vector<Origin> origins;
};
struct BeatCommand {};
struct TlsCommand {
  std::shared_ptr<const TlsContext> tls;
};
using Command =
    std::variant<AdmitCommand, DialRequest, ForgetCommand, Suspect, BeatCommand, TlsCommand,
                 ExpectCommand>;

Fd make_eventfd() {
  Fd fd{::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)};
  if (!fd) throw std::system_error(errno, std::system_category(), "eventfd");
  return fd;
}

}  // namespace

class Control::Impl {
 public:
  Impl(const ControlConfig& config, ControlHost& host)
      : config_(config),
        wake_(make_eventfd()),
        context_{config_, host, poller_, counters_, std::nullopt, 0, config.tls},
        port_(strangers_.listen()) {
    if (poller_.add(wake_.get(), ready::read, token_of(Part::mailbox, 0)) != Status::ok) {
      throw std::system_error(errno, std::system_category(), "cannot watch the mailbox");
    }
    thread_ = quiet_thread([this]() noexcept { run(); });
  }
  ~Impl() { stop(); }
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;

  [[nodiscard]] std::uint16_t port() const noexcept { return port_; }
  [[nodiscard]] const Counters& counters() const noexcept { return counters_; }
  [[nodiscard]] const Relay& relay() const noexcept { return relay_; }
  void post(Command command);
  void stop() noexcept;
  void end() noexcept;

 private:
  void run() noexcept;
  void turn();
  void wake() noexcept;
  void read_mailbox();
  void obey(Command& command, double now_s);
  void admit(const AdmitCommand& command, double now_s);
  void dispatch(const Poller::Event& event);
  void answer(const Called& called, double now_s);
  [[nodiscard]] int wait_ms() const noexcept;

  const ControlConfig config_;
  Counters counters_;
  Poller poller_;
  Fd wake_;
  Context context_;
  PeerLinks peers_{context_};
  Relay relay_{config_.handshake_timeout_s};
  Strangers strangers_{context_, peers_, relay_};
  Dialler dialler_{context_, peers_, strangers_};
  CoordinatorLink coordinator_{context_};
  std::uint16_t port_;

  std::mutex mailbox_mutex_;
  std::vector<Command> mailbox_;  // under mailbox_mutex_; the agent calls a few times a second
  bool stopping_ = false;         // under mailbox_mutex_
  bool stop_seen_ = false;        // the control thread's copy
  std::atomic<std::thread::id> loop_thread_;
  std::mutex join_mutex_;
  std::thread thread_;
};

void Control::Impl::wake() noexcept {
  const std::uint64_t one = 1;
  // It fails only when the counter is full, and then the thread is awake already.
  static_cast<void>(!::write(wake_.get(), &one, sizeof one));
}

void Control::Impl::post(Command command) {
  {
    const std::lock_guard lock(mailbox_mutex_);
    if (stopping_) return;
    mailbox_.push_back(std::move(command));
  }
  wake();
}

void Control::Impl::end() noexcept {
  {
    const std::lock_guard lock(mailbox_mutex_);
    stopping_ = true;
  }
  wake();
}

void Control::Impl::stop() noexcept {
  end();
  if (loop_thread_ == std::this_thread::get_id()) return;  // a callback: the thread ends by itself
  const std::lock_guard lock(join_mutex_);
  if (thread_.joinable()) thread_.join();
}

void Control::Impl::run() noexcept {
  loop_thread_ = std::this_thread::get_id();
  ::pthread_setname_np(::pthread_self(), "pccl-control");
  while (!stop_seen_) {
    try {
      turn();
    } catch (...) {
      // Out of memory.  At most one frame is lost; who sent it repeats it or redials.
      ::poll(nullptr, 0, breather_ms);
    }
  }
  strangers_.close();
  dialler_.close();
  coordinator_.shut();
  peers_.clear();
  relay_.stop();
}

void Control::Impl::turn() {
  std::array<Poller::Event, events_per_turn_max> events;
  const std::size_t count = poller_.wait(events, wait_ms());
  // Input before timers: what arrived while this thread was not running must not count as late.
  for (std::size_t i = 0; i < count && !stop_seen_; ++i) dispatch(events[i]);
  if (stop_seen_) return;
  const double now_s = monotonic_s();
  strangers_.on_time(now_s);
  dialler_.on_time(now_s);
  coordinator_.on_time(now_s);
  peers_.on_time(now_s);
}

int Control::Impl::wait_ms() const noexcept {
  const double due_s = std::min(std::min(strangers_.due_s(), dialler_.due_s()),
                                std::min(coordinator_.due_s(), peers_.due_s()));
  // Rounded up: waking a little early would only mean waking twice.
  const double wait_s = std::clamp(due_s - monotonic_s(), 0.0, wait_s_max);
  return static_cast<int>(std::ceil(wait_s * 1e3));
}

void Control::Impl::dispatch(const Poller::Event& event) {
  const std::uint64_t serial = serial_of(event.token);
  const double now_s = monotonic_s();
  switch (part_of(event.token)) {
    case Part::mailbox: read_mailbox(); break;
    case Part::listener: strangers_.on_listener_ready(now_s); break;
    case Part::strangers: strangers_.on_ready(serial, event.bits, now_s); break;
    case Part::dialler: dialler_.on_ready(serial, event.bits, now_s); break;
    case Part::coordinator: coordinator_.on_ready(serial, event.bits, now_s); break;
    case Part::peers:
      peers_.on_ready(serial, event.bits, now_s);
      for (const Called& called : peers_.take_calls()) answer(called, now_s);
      break;
  }
}

/// Of members only, and to a relay that can be dialled: nobody else can send this peer anywhere.
void Control::Impl::answer(const Called& called, double now_s) {
  PeerEndpoint caller, relay;
  ControlHost& host = context_.host;
  if (host.endpoint_of(called.call.peer, called.call.incarnation, caller) &&
      host.endpoint_of(called.relay, called.incarnation, relay) && relay.dialable()) {
    dialler_.answer(caller, relay, called.call.call, now_s);
  }
}

void Control::Impl::read_mailbox() {
  std::uint64_t posts = 0;
  static_cast<void>(!::read(wake_.get(), &posts, sizeof posts));
  std::vector<Command> commands;
  {
    const std::lock_guard lock(mailbox_mutex_);
    commands.swap(mailbox_);
    stop_seen_ = stopping_;
  }
  const double now_s = monotonic_s();
  bool beat = false;
  for (Command& command : commands) {
    if (stop_seen_) return;
    beat = beat || std::holds_alternative<BeatCommand>(command);
    obey(command, now_s);
  }
  if (beat) coordinator_.beat(now_s);  // once, with the status after all else
}

void Control::Impl::obey(Command& command, double now_s) {
  if (auto* suspicion = std::get_if<Suspect>(&command)) {
    coordinator_.suspect(std::move(*suspicion), now_s);
  } else if (const auto* dial = std::get_if<DialRequest>(&command)) {
    dialler_.connect(*dial, now_s);
  } else if (const auto* forget = std::get_if<ForgetCommand>(&command)) {
    dialler_.forget(forget->peer, forget->incarnation);
    peers_.forget(forget->peer, forget->incarnation);
  } else if (const auto* admitted = std::get_if<AdmitCommand>(&command)) {
    admit(*admitted, now_s);
  } else if (auto* renewed = std::get_if<TlsCommand>(&command)) {
    context_.tls = std::move(renewed->tls);
  } else if (auto* expected = std::get_if<ExpectCommand>(&command)) {
    strangers_.expect(std::move(expected->origins));
  }
}

void Control::Impl::admit(const AdmitCommand& command, double now_s) {
  const bool new_incarnation =
      !context_.identity || context_.identity->incarnation != command.identity.incarnation;
  context_.identity = command.identity;
  if (new_incarnation) {
    peers_.clear();  // they speak for the one before
    coordinator_.forget();
  }
  coordinator_.admit(command.coordinator, now_s);
}

Control::Control(const ControlConfig& config, ControlHost& host)
    : impl_(std::make_unique<Impl>(config, host)) {}
Control::~Control() = default;

std::uint16_t Control::port() const noexcept { return impl_->port(); }

void Control::admit(const Identity& identity, const CoordinatorEndpoint& coordinator) {
  impl_->post(AdmitCommand{identity, coordinator});
}

void Control::connect(const DialRequest& request) { impl_->post(request); }

void Control::forget(PeerId peer, Incarnation incarnation) {
  impl_->post(ForgetCommand{peer, incarnation});
}

void Control::expect(const std::vector<std::string>& hosts) {
  std::vector<Origin> origins;
  for (const std::string& host : hosts) {
    const auto origin = origin_of(host);
    if (origin && std::find(origins.begin(), origins.end(), *origin) == origins.end()) {
      origins.push_back(*origin);
    }
  }
  impl_->post(ExpectCommand{std::move(origins)});
}

void Control::suspect(Suspect suspicion) { impl_->post(std::move(suspicion)); }

void Control::set_tls(std::shared_ptr<const TlsContext> tls) {
  impl_->post(TlsCommand{std::move(tls)});
}

void Control::beat_now() { impl_->post(BeatCommand{}); }

ControlCounters Control::counters() const noexcept {
  const Counters& counters = impl_->counters();
  return {counters.accepted, counters.dropped,          counters.heartbeats,
          counters.flushes,  impl_->relay().tunnels(), impl_->relay().bytes(),
          counters.unproven};
}

void Control::stop() noexcept { impl_->stop(); }

void Control::end() noexcept { impl_->end(); }

}  // namespace pccl
