// native/fuzz/fuzz_ucx.cpp — answers and active messages of a stranger, where lanes go through UCX.
//
// UCX is a stand-in that does what the input says: it completes sends and receives now, later, with
// errors or never, and hands on messages of any header.  Whatever comes, what is received is the
// messages' bytes in the order of their numbers, or, where the answer was none, the bytes of the
// connection; no message is changed while UCX holds it; and at most eight are under way.
//
// Ownership: worker and stand-in are made anew for each input.
// Threads:   one.
// Errors:    abort.
#include <deque>
#include <map>

#include "fuzz/pieces.hpp"
#include "fuzz/pipe.hpp"
#include "pccl/clock.hpp"
#include "ucx/worker.hpp"

using namespace pccl;
using fuzz::require;

namespace {

constexpr std::uint16_t version_major = 1;
constexpr std::uint16_t version_minor = 18;
constexpr std::size_t steps_max = 64;

/// What UCX would be.
struct Ucp {
  struct Sending {
    ucp::SendDone done;
    void* user;
    UcxStream::Header header;
    const std::byte* memory;
    fuzz::Bytes bytes;
  };
  struct Receiving {
    ucp::ReceiveDone done;
    void* user;
    std::byte* memory;
    std::size_t bytes;
    std::uint32_t sequence;
  };
  std::array<ucp::HandlerParam, 3> handlers{};
  ucp::ErrorHandler on_error{};
  std::deque<Sending> sending;
  std::deque<Receiving> receiving;
  std::deque<std::pair<ucp::SendDone, void*>> closing;
  std::uint32_t hearing = 0;  // the number of the message that is being handed on
  std::uint8_t refuses = 0;   // what the next call says no to
  std::uint32_t sent = 0;
  bool busy = true;           // requests stay open
  static inline Ucp* now = nullptr;
};

void* const request = &Ucp::now;  // any address that is none of an error
void* const error = reinterpret_cast<void*>(std::intptr_t{-3});
template <class... Args>
ucp::Ucs fine(Args...) {
  return ucp::Ucs::ok;
}
template <class... Args>
void nothing(Args...) {}
ucp::Ucs give(void** out) {
  *out = request;
  return ucp::Ucs::ok;
}

ucp::Ucs make_endpoint(ucp::Worker, const ucp::EndpointParams* params, ucp::Endpoint* out) {
  if (std::exchange(Ucp::now->refuses, 0) == 1) return ucp::Ucs::busy;
  Ucp::now->on_error = params->error_handler;
  // UCX reads as far as an address seems to go, which a stranger may have made longer than it is.
  const auto* address = static_cast<const volatile std::uint8_t*>(params->address);
  for (std::size_t i = 0; i < 256; ++i) static_cast<void>(address[i]);
  *out = request;
  return ucp::Ucs::ok;
}

void* send_message(ucp::Endpoint, unsigned id, const void* header, std::size_t header_bytes_sent,
                   const void* data, std::size_t bytes, const ucp::RequestParam* param) {
  Ucp& ucp = *Ucp::now;
  UcxStream::Header said;
  require(header_bytes_sent == sizeof said && bytes <= UcxStream::message_bytes);
  std::memcpy(&said, header, sizeof said);
  if (id == UcxStream::data_id) require(said.sequence == ucp.sent++ && bytes > 0);
  switch (std::exchange(ucp.refuses, 0)) {
    case 2: return error;
    case 3: return nullptr;  // it is sent
    default: break;
  }
  fuzz::Bytes copy;
  if (bytes > 0) fuzz::append(copy, {static_cast<const std::byte*>(data), bytes});
  ucp.sending.push_back({param->callback.send, param->user_data, said,
                         static_cast<const std::byte*>(data), std::move(copy)});
  require(ucp.sending.size() <= UcxStream::messages_max + 1);
  return request;
}

void* receive_message(ucp::Worker, void*, void* memory, std::size_t bytes,
                      const ucp::RequestParam* param) {
  if (std::exchange(Ucp::now->refuses, 0) == 4) return error;
  Ucp::now->receiving.push_back({param->callback.receive, param->user_data,
                                 static_cast<std::byte*>(memory), bytes, Ucp::now->hearing});
  return request;
}

void* close_endpoint(ucp::Endpoint, const ucp::RequestParam* param) {
  if (std::exchange(Ucp::now->refuses, 0) == 5) return nullptr;
  Ucp::now->closing.push_back({param->callback.send, param->user_data});
  return request;
}

void complete_send(ucp::Ucs status) {
  if (Ucp::now->sending.empty()) return;
  const Ucp::Sending sending = std::move(Ucp::now->sending.front());
  Ucp::now->sending.pop_front();
  require(fuzz::same(sending.bytes, {sending.memory, sending.bytes.size()}));
  sending.done(request, status, sending.user);
}

unsigned progress(ucp::Worker) {
  Ucp& ucp = *Ucp::now;
  if (ucp.busy) return 0;
  while (!ucp.sending.empty()) complete_send(ucp::Ucs::canceled);
  for (; !ucp.receiving.empty(); ucp.receiving.pop_front()) {
    const Ucp::Receiving receiving = ucp.receiving.front();
    receiving.done(request, ucp::Ucs::canceled, 0, receiving.user);
  }
  for (; !ucp.closing.empty(); ucp.closing.pop_front()) {
    ucp.closing.front().first(request, ucp::Ucs::ok, ucp.closing.front().second);
  }
  return 0;
}

std::unique_ptr<UcpLibrary> library() {
  static const std::array<std::byte, 40> address{};
  auto made = std::make_unique<UcpLibrary>();
  made->config_read = [](const char*, const char*, ucp::Config** out) { return give(out); };
  made->config_modify = &fine<ucp::Config*, const char*, const char*>;
  made->config_release = &nothing<ucp::Config*>;
  made->init_version = [](unsigned, unsigned, const ucp::Params*, const ucp::Config*,
                          ucp::Context* out) { return give(out); };
  made->cleanup = &nothing<ucp::Context>;
  made->worker_create = [](ucp::Context, const ucp::WorkerParams*, ucp::Worker* out) {
    return give(out);
  };
  made->worker_destroy = &nothing<ucp::Worker>;
  made->worker_query = [](ucp::Worker, ucp::WorkerAttr* attr) {
    attr->address = const_cast<std::byte*>(address.data());
    attr->address_length = address.size();
    attr->max_am_header = 4096;
    return ucp::Ucs::ok;
  };
  made->worker_release_address = &nothing<ucp::Worker, ucp::Address*>;
  made->worker_get_efd = [](ucp::Worker, int* out) {
    *out = -1;
    return ucp::Ucs::ok;
  };
  made->worker_arm = &fine<ucp::Worker>;
  made->worker_progress = &progress;
  made->worker_set_am_recv_handler = [](ucp::Worker, const ucp::HandlerParam* param) {
    Ucp::now->handlers.at(param->id) = *param;
    return ucp::Ucs::ok;
  };
  made->ep_create = &make_endpoint;
  made->ep_query = [](ucp::Endpoint, ucp::EndpointAttr* attr) {
    attr->transports.count = 1;
    attr->transports.entries[0] = {"tcp", "eth0"};
    return ucp::Ucs::ok;
  };
  made->ep_close_nbx = &close_endpoint;
  made->am_send_nbx = &send_message;
  made->am_recv_data_nbx = &receive_message;
  made->request_cancel = &nothing<ucp::Worker, void*>;
  made->request_free = &nothing<void*>;
  made->mem_map = [](ucp::Context, const ucp::MapParams*, ucp::Memory* out) { return give(out); };
  made->mem_unmap = &fine<ucp::Context, ucp::Memory>;
  made->version = "1.18.0";
  made->major_version = version_major;
  made->minor_version = version_minor;
  return made;
}

fuzz::Bytes answer(const WorkerBody& body, FrameType type) {
  const fuzz::Bytes said = worker_body(body);
  FrameHeader header;
  header.type = type;
  const bool empty = body.address.empty();
  sign(header, empty ? std::span<const std::byte>() : said);
  fuzz::Bytes out(header_bytes);
  encode(header, std::span<std::byte, header_bytes>(out.data(), header_bytes));
  if (!empty) fuzz::append(out, said);
  return out;
}

class Story {
 public:
  Story(const std::uint8_t* data, std::size_t size) : input_(data, size) { Ucp::now = &ucp_; }

  void run() {
    std::string obstacle;
    worker_ = std::make_unique<UcxWorkerImpl>(library());
    require(worker_->open(false, obstacle));
    conduit_ = worker_->conduit(make_socket_conduit(std::move(pipe_.near)));
    const fuzz::Bytes asked = pipe_.hear();
    WorkerBody body;
    require(asked.size() > header_bytes &&
            decode(std::span(asked).subspan(header_bytes), body) == Status::ok);
    name_ = body.name;
    for (std::size_t i = 0; i < steps_max && !input_.empty(); ++i) step();
    ucp_.busy = false;
    conduit_.reset();
    worker_.reset();  // waits for what UCX holds, which is nothing any more
    require(ucp_.sending.empty() && ucp_.receiving.empty() && ucp_.closing.empty());
  }

 private:
  void step() {
    const auto kind = input_.number<std::uint8_t>();
    switch (kind % 16) {
      case 0: reply(); break;
      case 1:
      case 2:
      case 3: message(UcxStream::data_id); break;
      case 4: message(UcxStream::taken_id); break;
      case 5:
      case 6: receive(); break;
      case 7:
      case 8: send(); break;
      case 9:
      case 10: complete_send(kind < 240 ? ucp::Ucs::ok : ucp::Ucs::canceled); break;
      case 11:
      case 12: complete_receive(); break;
      case 13: {
        std::array<Poller::Event, 2> events;
        now_s_ += kind / 16 * 0.1;
        require(worker_->progress(events, now_s_) <= events.size());
        static_cast<void>(worker_->arm());
        break;
      }
      case 14: ucp_.refuses = kind / 16; break;
      default: end(kind / 16); break;
    }
  }

  /// The other end's WORKER, something else, or bytes as they are.
  void reply() {
    const auto how = input_.number<std::uint8_t>();
    if (how % 8 == 7) return say(input_.take(input_.number<std::uint8_t>()));
    const auto address = how % 8 == 6 ? std::span<const std::byte>() : input_.take(how);
    const bool other = how % 8 == 5;
    const WorkerBody body{name_ + how, static_cast<std::uint16_t>(version_major + other),
                          version_minor, address};
    fuzz::Bytes frame = answer(body, how == 255 ? FrameType::ask : FrameType::worker);
    if (how % 8 == 4) frame[how % frame.size()] ^= std::byte{4};
    say(frame);
  }

  void say(std::span<const std::byte> bytes) {
    if (!pipe_.far) return;
    fuzz::append(said_, bytes);
    pipe_.say(bytes);
  }

  /// As UCX hands it on: to whom it is, its number, and what it says was taken.
  void message(unsigned id) {
    const auto how = input_.number<std::uint8_t>();
    UcxStream::Header header{how == 255 ? ~name_ : name_, 0, 0};
    header.sequence = (how & 1) != 0 ? input_.number<std::uint8_t>() : next_;
    header.taken = (how & 2) != 0 ? input_.number<std::uint8_t>() : ucp_.sent - (how >> 2) % 4u;
    if (header.taken > ucp_.sent && (how & 2) == 0) header.taken = 0;
    fuzz::Bytes bytes;
    fuzz::append(bytes, input_.take(1u + input_.number<std::uint8_t>() % 40u));
    if (how == 252 && input_.number<std::uint8_t>() >= 224) {  // rarely: it takes long to fill
      bytes.resize(UcxStream::message_bytes + input_.number<std::uint8_t>() % 2u);
    } else if ((how & 64) != 0) {
      bytes.resize(how * 3u);
    }
    const bool whole = (how & 16) != 0;
    const std::uint64_t kind = ucp::ReceivedParam::rendezvous;
    const ucp::ReceivedParam param{whole ? 0 : kind, nullptr};
    const std::size_t header_size = how == 254 ? 15 : sizeof header;
    const ucp::HandlerParam& handler = ucp_.handlers.at(id);
    ucp_.hearing = header.sequence;
    const std::size_t before = ucp_.receiving.size();
    require(handler.callback(handler.arg, &header, header_size, bytes.data(), bytes.size(),
                             &param) >= ucp::Ucs::ok);
    if (id != UcxStream::data_id) return;
    if (header.stream == name_ && header_size == sizeof header) next_ = header.sequence + 1;
    if (header.stream != name_ || header_size != sizeof header) return;
    if (ucp_.receiving.size() > before) {
      coming_.emplace(header.sequence, std::move(bytes));
    } else if (whole && !bytes.empty() && bytes.size() <= UcxStream::message_bytes &&
               !coming_.contains(header.sequence)) {  // else it is a second one: not taken
      heard_.emplace(header.sequence, std::move(bytes));
    }
  }

  void complete_receive() {
    if (ucp_.receiving.empty()) return;
    const auto how = input_.number<std::uint8_t>();
    const std::size_t which = how % ucp_.receiving.size();
    const Ucp::Receiving done = ucp_.receiving[which];
    ucp_.receiving.erase(ucp_.receiving.begin() + static_cast<std::ptrdiff_t>(which));
    const fuzz::Bytes& bytes = coming_.at(done.sequence);
    require(bytes.size() == done.bytes && done.bytes <= UcxStream::message_bytes);
    std::memcpy(done.memory, bytes.data(), done.bytes);
    if (how < 250) {
      heard_.emplace(done.sequence, bytes);
      done.done(request, ucp::Ucs::ok, done.bytes, done.user);
    } else {
      done.done(request, how < 253 ? ucp::Ucs::canceled : ucp::Ucs::ok, done.bytes - 1, done.user);
    }
    coming_.erase(done.sequence);
  }

  void receive() {
    fuzz::Bytes memory(1u + input_.number<std::uint16_t>() % 1000u);
    const std::size_t half = memory.size() / 2;
    const std::array<iovec, 2> parts = {iovec{memory.data(), half},
                                        iovec{memory.data() + half, memory.size() - half}};
    std::size_t got = 0;
    bool drained = false;
    if (conduit_->receive(parts, got, drained) != Status::ok) return;
    require(got <= memory.size());
    check(std::span(memory).first(got));
  }

  void send() {
    const auto size = 1u + input_.number<std::uint16_t>() % 500u;
    const fuzz::Bytes bytes(size, static_cast<std::byte>(size));
    const iovec part{const_cast<std::byte*>(bytes.data()), bytes.size()};
    std::size_t sent = 0;
    if (conduit_->send({&part, 1}, sent) == Status::ok) require(sent <= size);
  }

  void end(unsigned how) {
    switch (how % 8) {
      case 0: pipe_.far.reset(); break;
      case 1:
        if (ucp_.on_error.call != nullptr) {
          ucp_.on_error.call(ucp_.on_error.arg, request, ucp::Ucs::canceled);
        }
        break;
      case 2: conduit_->shut(); break;
      default: static_cast<void>(conduit_->acknowledged()); break;
    }
  }

  /// What is received next is what comes next.
  void check(std::span<const std::byte> got) {
    if (got.empty()) return;
    if (worker_->report().declined > 0) {
      if (taken_ == 0) taken_ = skipped();
      require(taken_ + got.size() <= said_.size());
      require(fuzz::same(got, std::span(said_).subspan(taken_, got.size())));
      taken_ += got.size();
      return;
    }
    while (!got.empty()) {
      const fuzz::Bytes& message = heard_.at(number_);
      const std::size_t here = std::min(got.size(), message.size() - taken_);
      require(fuzz::same(got.first(here), std::span(message).subspan(taken_, here)));
      got = got.subspan(here);
      taken_ += here;
      if (taken_ < message.size()) continue;
      ++number_;
      taken_ = 0;
    }
  }

  /// Of what was said on the connection: an answer is nobody's but the conduit's.
  std::size_t skipped() const {
    FrameHeader header;
    require(said_.size() >= header_bytes &&
            decode(std::span<const std::byte>(said_).first<header_bytes>(), header) == Status::ok);
    return header.type == FrameType::worker ? header_bytes + header.length : 0;
  }

  fuzz::Pieces input_;
  Ucp ucp_;
  fuzz::Pipe pipe_{true};
  std::unique_ptr<UcxWorkerImpl> worker_;
  std::unique_ptr<Conduit> conduit_;
  std::uint64_t name_ = 0;
  std::uint32_t next_ = 0;
  double now_s_ = 1;
  fuzz::Bytes said_;           // on the connection
  std::uint32_t number_ = 0;   // of the message that is being received
  std::size_t taken_ = 0;      // of it, or of what was said
  std::map<std::uint32_t, fuzz::Bytes> heard_;   // by number, the first of each
  std::map<std::uint32_t, fuzz::Bytes> coming_;  // UCX has only announced them
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  Story(data, size).run();
  return 0;
}
