// native/src/ucx/conduit.cpp — a conduit that begins on a connection and goes on through UCX.
//
//     asking ── the other end's name and address ──► through UCX ──► over
//        └───── anything else ──► as it was: all goes on through the connection
//
// Invariant: before the answer is here nothing is sent but the question, so no byte is sent twice.
// Ownership: owns the connection; its stream is the worker's.
// Threads:   see conduit.hpp.
// Errors:    see conduit.hpp.
#include <netinet/in.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "pccl/wire.hpp"
#include "ucx/worker.hpp"

namespace pccl {
namespace {

// Behind the longest address, too.
constexpr std::size_t zeros_behind = 1024;

std::vector<std::byte> question(const WorkerBody& of) {
  const std::vector<std::byte> body = worker_body(of);
  FrameHeader header;
  header.type = FrameType::worker;
  sign(header, body);
  std::vector<std::byte> bytes(header_bytes);
  encode(header, std::span<std::byte, header_bytes>(bytes.data(), header_bytes));
  bytes.insert(bytes.end(), body.begin(), body.end());
  return bytes;
}

/// The address at the other end of a socket, without its port.
std::string machine_at(int socket) {
  sockaddr_storage address{};
  socklen_t length = sizeof address;
  if (::getpeername(socket, reinterpret_cast<sockaddr*>(&address), &length) != 0) return {};
  const auto text = [](const void* bytes, std::size_t count) {
    return std::string(static_cast<const char*>(bytes), count);
  };
  if (address.ss_family == AF_INET) {
    return text(&reinterpret_cast<const sockaddr_in&>(address).sin_addr, sizeof(in_addr));
  }
  if (address.ss_family == AF_INET6) {
    return text(&reinterpret_cast<const sockaddr_in6&>(address).sin6_addr, sizeof(in6_addr));
  }
  return {};
}

class UcxConduit final : public Conduit {
 public:
  UcxConduit(UcxWorkerImpl& worker, std::unique_ptr<Conduit> signal, UcxStream* stream,
             std::string machine)
      : worker_(worker), signal_(std::move(signal)), stream_(stream),
        machine_(std::move(machine)) {
    const std::vector<std::byte> bytes = question(worker.body(stream->name));
    const iovec part{const_cast<std::byte*>(bytes.data()), bytes.size()};
    std::size_t sent = 0;
    // It is the first on this connection, and small: it goes whole, or the connection is broken.
    broken_ = signal_->send({&part, 1}, sent) != Status::ok || sent != bytes.size();
  }
  ~UcxConduit() override {
    doubt();
    if (stream_ != nullptr) worker_.give_back(stream_);
  }

  int fd() const noexcept override { return signal_->fd(); }

  Status watch(Poller& poller, std::uint64_t token) noexcept override {
    poller_ = &poller;
    token_ = token;
    if (stream_ != nullptr) {
      stream_->token = token;
      stream_->watched = true;
    }
    return signal_->watch(poller, token);
  }
  void unwatch(Poller& poller) noexcept override {
    signal_->unwatch(poller);
    if (stream_ != nullptr) stream_->watched = false;
  }
  Status want_write(Poller& poller, std::uint64_t token, bool wanted) noexcept override {
    wants_write_ = wanted;
    if (stage_ == Stage::as_it_was) return signal_->want_write(poller, token, wanted);
    stream_->wants_write = wanted;
    return Status::ok;
  }

  Status send(std::span<const iovec> parts, std::size_t& sent) noexcept override {
    if (broken_) return Status::closed;
    if (stage_ == Stage::as_it_was) return signal_->send(parts, sent);
    if (stage_ == Stage::asking) return Status::would_block;
    const Status status = stream_->send(parts, sent);
    if (status != Status::ok) doubt();
    return status;
  }
  Status flush() noexcept override { return signal_->flush(); }
  bool wants_write() const noexcept override { return signal_->wants_write(); }

  Status receive(std::span<const iovec> parts, std::size_t& got, bool& drained) noexcept override {
    if (broken_) return Status::closed;
    if (stage_ == Stage::asking) {
      if (const Status status = hear_answer(); status != Status::ok) return status;
    }
    if (stage_ == Stage::as_it_was) {
      return begun() ? give_begun(parts, got, drained) : signal_->receive(parts, got, drained);
    }
    const Status status = stream_->receive(parts, got, drained);
    if (status == Status::would_block) return look_at_signal(parts, got, drained);
    if (status != Status::ok) doubt();
    return status;
  }
  bool holds_received() const noexcept override {
    return stage_ == Stage::as_it_was && (begun() || signal_->holds_received());
  }

  std::uint64_t acknowledged() noexcept override {
    if (stage_ == Stage::as_it_was) return signal_->acknowledged();
    // Also the time to say what this side has taken: in a quiet stream nothing else does.
    stream_->tell_taken();
    return acknowledged_ = stream_->taken_bytes();
  }
  bool owing() const noexcept override {
    return stage_ == Stage::as_it_was ? signal_->owing() : acknowledged_ != stream_->sent_bytes();
  }
  bool unread() const noexcept override {
    return stage_ == Stage::as_it_was ? signal_->unread() : stream_->readable();
  }
  /// How the way is that UCX has chosen it does not tell; peers' beats show when it is cut.
  PathState path() const noexcept override {
    return stage_ == Stage::as_it_was ? signal_->path() : PathState{};
  }
  bool local() const noexcept override { return signal_->local(); }
  void shut() noexcept override {
    doubt();
    broken_ = broken_ || stage_ != Stage::as_it_was;
    signal_->shut();
  }

 private:
  enum class Stage : std::uint8_t { asking, through_ucx, as_it_was };

  [[nodiscard]] bool begun() const noexcept { return given_ < heard_; }

  Status give_begun(std::span<const iovec> parts, std::size_t& got, bool& drained) noexcept {
    got = 0;
    drained = false;
    for (const iovec& part : parts) {
      const std::size_t bytes = std::min(part.iov_len, heard_ - given_);
      std::memcpy(part.iov_base, answer_.data() + given_, bytes);
      given_ += bytes;
      got += bytes;
    }
    return Status::ok;
  }

  /// ok: the answer is here, and the stage another one.
  Status hear_answer() noexcept {
    for (;;) {
      std::size_t wanted = header_bytes;
      if (heard_ >= header_bytes) {
        FrameHeader header;
        const auto bytes = std::span<const std::byte, header_bytes>(answer_.data(), header_bytes);
        if (decode(bytes, header) != Status::ok) return Status::protocol;
        if (header.type != FrameType::worker || header.length == 0) return stay(header);
        wanted += header.length;
        if (heard_ == wanted) return go(header);
      }
      const iovec part{answer_.data() + heard_, wanted - heard_};
      std::size_t got = 0;
      bool drained = false;
      const Status status = signal_->receive({&part, 1}, got, drained);
      if (status != Status::ok) return status;
      heard_ += got;
    }
  }

  /// The other end does without UCX, or has another version; a frame that is no answer is for
  /// whoever reads here.
  Status stay(const FrameHeader& header) noexcept {
    if (header.type == FrameType::worker) given_ = heard_;
    worker_.count(false);
    stage_ = Stage::as_it_was;
    worker_.give_back(std::exchange(stream_, nullptr));
    if (wants_write_ && poller_ != nullptr) return signal_->want_write(*poller_, token_, true);
    return Status::ok;
  }

  Status go(const FrameHeader& header) noexcept {
    std::byte* bytes = answer_.data() + header_bytes;
    WorkerBody body;
    if (!intact(header, bytes)) return Status::protocol;
    const Status status = decode({bytes, header.length}, body);
    if (status != Status::ok) return status;
    const WorkerBody own = worker_.body(stream_->name);
    // Of another version's address UCX may think anything.  The other end sees the same and stays.
    if (body.ucx_major != own.ucx_major || body.ucx_minor != own.ucx_minor) return stay(header);
    // UCX is told no length: what it reads behind an address that promises more are zeros.
    std::fill(bytes + header.length, answer_.data() + answer_.size(), std::byte{0});
    if (!stream_->connect(body.name, body.address.data())) {
      worker_.give_up(machine_);  // the next connection to there goes on as it is
      return Status::closed;
    }
    worker_.count(true);
    stage_ = Stage::through_ucx;
    return Status::ok;
  }

  /// UCX may make an endpoint and yet reach nobody: its ports are not let through, its device is
  /// not the others'.  Where it ends, or says nothing for long, before it has brought a word, while
  /// the other end is still there, the next connection to there goes on as it is.
  void doubt() noexcept {
    if (stage_ != Stage::through_ucx || stream_->heard() || !stream_->doubtful()) return;
    std::byte byte{};
    const iovec part{&byte, 1};
    std::size_t count = 0;
    bool none = false;
    if (signal_->receive({&part, 1}, count, none) == Status::would_block) {
      worker_.give_up(machine_);
    }
  }

  /// Nothing has come through UCX: perhaps because the other end is gone.
  Status look_at_signal(std::span<const iovec> parts, std::size_t& got, bool& drained) noexcept {
    std::byte byte{};
    const iovec part{&byte, 1};
    std::size_t count = 0;
    bool none = false;
    const Status status = signal_->receive({&part, 1}, count, none);
    if (status == Status::would_block) return status;
    if (status == Status::ok) return Status::protocol;  // it has nothing to say there
    worker_.look();  // what came before the end
    const Status last = stream_->receive(parts, got, drained);
    return last == Status::ok ? last : status;
  }

  UcxWorkerImpl& worker_;
  std::unique_ptr<Conduit> signal_;
  UcxStream* stream_;
  std::string machine_;  // that of the other end
  Poller* poller_ = nullptr;
  std::uint64_t token_ = 0;
  Stage stage_ = Stage::asking;
  bool broken_ = false;
  bool wants_write_ = false;
  std::uint64_t acknowledged_ = 0;
  std::size_t heard_ = 0;  // of the answer
  std::size_t given_ = 0;  // of it, to whoever reads here
  std::array<std::byte, header_bytes + worker_bytes_max + zeros_behind> answer_;
};

}  // namespace

std::unique_ptr<Conduit> UcxWorkerImpl::conduit(std::unique_ptr<Conduit> signal) {
  std::string machine = machine_at(signal->fd());
  if (worker_fixed_bytes + address_.size() > worker_bytes_max || gave_up(machine)) {
    count(false);
    return signal;
  }
  UcxStream* stream = open_stream();
  try {
    return std::make_unique<UcxConduit>(*this, std::move(signal), stream, std::move(machine));
  } catch (...) {
    give_back(stream);
    throw;
  }
}

}  // namespace pccl
