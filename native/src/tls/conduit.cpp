// native/src/tls/conduit.cpp — a TCP socket with TLS 1.3 on it, and sealed pieces for lanes.
//
// OpenSSL never sees the socket: it reads whole records from one window and writes to another, so
// that one system call carries many of them.  It is asked only while a whole record is here; hence
// what lies in the window always begins with a record, and can be looked at before OpenSSL does.
//
// Ownership: see conduit.hpp; the session borrows the library.
// Threads:   see conduit.hpp.
// Errors:    see conduit.hpp.
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "tls/bulk.hpp"
#include "tls/context.hpp"
#include "tls/window.hpp"

namespace pccl {
namespace {

using namespace openssl;

constexpr std::size_t record_head_bytes = 5;
constexpr std::size_t record_body_max = 16384 + 256;
constexpr std::size_t record_bytes_max = record_head_bytes + record_body_max;
constexpr std::size_t batch_bytes = 256 * 1024;      // of plaintext, in one system call
constexpr std::size_t in_bulk_bytes = 512 * 1024;    // of the window that lanes receive into
constexpr std::size_t large_part = 8 * 1024;         // gets pieces of its own
constexpr unsigned char alert_type = 20;             // ... to 23: what a record may begin with
constexpr unsigned char data_type = 23;

Status status_of(int error) noexcept {
  if (error == EAGAIN || error == EWOULDBLOCK) return Status::would_block;
  return error == ECONNRESET || error == EPIPE ? Status::closed : Status::io_error;
}

/// The parts from a place in them on.
struct Parts {
  std::span<const iovec> all;
  std::size_t index = 0;
  std::size_t offset = 0;
  [[nodiscard]] bool done() {
    while (index < all.size() && offset == all[index].iov_len) {
      ++index;
      offset = 0;
    }
    return index == all.size();
  }
  [[nodiscard]] std::byte* at() const {
    return static_cast<std::byte*>(all[index].iov_base) + offset;
  }
  [[nodiscard]] std::size_t here() const { return all[index].iov_len - offset; }
};

class TlsConduit final : public Conduit {
 public:
  TlsConduit(const TlsContext::Impl& context, Fd socket, SslPtr ssl, bool dialled,
             const TlsExpectation& expected) noexcept
      : lib_(*context.lib),
        ssl_(std::move(ssl)),
        socket_(std::move(socket)),
        dialled_(dialled),
        expected_(expected) {}

  Status establish() noexcept override;
  std::string_view refusal() const noexcept override { return refusal_; }
  bool proves(const PeerId& peer) const noexcept override { return established_ && peer == key_; }
  Status seal_in_bulk() noexcept override;

  int fd() const noexcept override { return socket_.get(); }
  Status send(std::span<const iovec> parts, std::size_t& sent) noexcept override;
  Status flush() noexcept override;
  bool wants_write() const noexcept override { return out_.held() > 0; }
  Status receive(std::span<const iovec> parts, std::size_t& got, bool& drained) noexcept override;
  bool holds_received() const noexcept override;

  std::uint64_t acknowledged() noexcept override {
    if (acknowledged_ != sent_) {
      acknowledged_ = sent_ - std::min(unacknowledged_bytes(socket_.get()), sent_);
    }
    return acknowledged_;
  }
  bool owing() const noexcept override { return acknowledged_ != sent_; }
  bool unread() const noexcept override {
    return plain_bytes_ > 0 || in_.held() > 0 || unread_bytes(socket_.get()) > 0;
  }
  PathState path() const noexcept override { return path_state(socket_.get()); }
  bool local() const noexcept override { return is_local(socket_.get()); }
  void shut() noexcept override { (void)::shutdown(socket_.get(), SHUT_RDWR); }
  Fd release() noexcept override { return {}; }
  Fd strip() noexcept override {
    if (in_.held() > 0 || out_.held() > 0 || bulk_in_) return {};
    return std::move(socket_);
  }

  // What OpenSSL calls.
  std::size_t give(char* to, std::size_t bytes) noexcept;
  bool take(const char* from, std::size_t bytes) noexcept;

 private:
  /// protocol: what lies here is no record (or piece).  Else `bytes`: of the first whole one, or 0.
  Status first_whole(std::size_t& bytes) const noexcept;
  /// More from the socket, once.
  Status pull(bool& drained) noexcept;
  Status judge() noexcept;
  Status refuse(const char* text) noexcept;
  Status failed(int result) noexcept;
  bool names_coordinator(const X509* certificate) const noexcept;
  Status send_records(std::span<const iovec> parts, std::size_t& taken) noexcept;
  Status send_pieces(std::span<const iovec> parts, std::size_t& taken) noexcept;
  Status read_records(std::span<const iovec> parts, std::size_t& got) noexcept;
  Status read_piece(std::span<const iovec> parts, std::size_t& got) noexcept;
  static bool key_of(void* self, std::uint64_t generation, BulkKey& out, bool of_dialler) noexcept;

  const Functions& lib_;
  SslPtr ssl_;
  Fd socket_;
  const bool dialled_;
  const TlsExpectation expected_;
  bool established_ = false;
  PeerId key_;
  const char* refusal_ = "";
  Window in_;
  Window out_;
  std::size_t record_left_ = 0;  // of the record that OpenSSL is reading
  std::size_t plain_bytes_ = 0;  // opened, at the front of in_, nobody's yet
  std::unique_ptr<Bulk> bulk_in_;
  std::unique_ptr<Bulk> bulk_out_;
  std::uint64_t sent_ = 0;
  std::uint64_t acknowledged_ = 0;
};

Status TlsConduit::first_whole(std::size_t& bytes) const noexcept {
  bytes = 0;
  const std::size_t held = in_.held();
  if (bulk_in_) {
    std::size_t plain = 0;
    const Status status = piece_length({in_.front(), held}, plain);
    if (plain > 0 && held >= plain + piece_overhead) bytes = plain + piece_overhead;
    return status;
  }
  const auto* head = reinterpret_cast<const unsigned char*>(in_.front());
  if (held > 0 && (head[0] < alert_type || head[0] > data_type)) return Status::protocol;
  if (held > 1 && head[1] != 3) return Status::protocol;
  if (held < record_head_bytes) return Status::ok;
  const std::size_t body = static_cast<std::size_t>(head[3]) << 8 | head[4];
  if (body > record_body_max) return Status::protocol;
  if (held >= record_head_bytes + body) bytes = record_head_bytes + body;
  return Status::ok;
}

Status TlsConduit::pull(bool& drained) noexcept {
  const std::size_t wanted = bulk_in_ ? piece_bytes_max + piece_overhead : record_bytes_max;
  const std::size_t missing = wanted - std::min(in_.held(), wanted - 1);
  if (!in_.reserve(missing)) return Status::exhausted;
  const std::size_t room = in_.room();
  ssize_t count = 0;
  do {
    count = ::recv(socket_.get(), in_.back(), room, MSG_DONTWAIT);
  } while (count < 0 && errno == EINTR);
  if (count == 0) return Status::closed;
  if (count < 0) return status_of(errno);
  in_.grow(static_cast<std::size_t>(count));
  drained = static_cast<std::size_t>(count) < room;
  return Status::ok;
}

std::size_t TlsConduit::give(char* to, std::size_t bytes) noexcept {
  if (record_left_ == 0 && first_whole(record_left_) != Status::ok) record_left_ = 0;
  const std::size_t count = std::min(bytes, record_left_);
  if (count == 0) return 0;
  std::memcpy(to, in_.front(), count);
  in_.drop(count);
  record_left_ -= count;
  return count;
}

bool TlsConduit::take(const char* from, std::size_t bytes) noexcept {
  if (!out_.reserve(bytes)) return false;
  std::memcpy(out_.back(), from, bytes);
  out_.grow(bytes);
  return true;
}

Status TlsConduit::flush() noexcept {
  while (out_.held() > 0) {
    const ssize_t count =
        ::send(socket_.get(), out_.front(), out_.held(), MSG_DONTWAIT | MSG_NOSIGNAL);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) {
      const Status status = status_of(errno);
      return status == Status::would_block ? Status::ok : status;
    }
    out_.drop(static_cast<std::size_t>(count));
    sent_ += static_cast<std::uint64_t>(count);
  }
  return Status::ok;
}

Status TlsConduit::refuse(const char* text) noexcept {
  refusal_ = text;
  return Status::protocol;
}

/// What stopped OpenSSL, other than that it waits.
Status TlsConduit::failed(int result) noexcept {
  const int error = lib_.SSL_get_error(ssl_.get(), result);
  if (error == error_zero_return) return Status::closed;
  const char* reason = lib_.ERR_reason_error_string(lib_.ERR_peek_error());
  const long verdict = lib_.SSL_get_verify_result(ssl_.get());
  if (verdict != 0) reason = lib_.X509_verify_cert_error_string(verdict);
  lib_.ERR_clear_error();
  (void)flush();  // the alert that says why
  return refuse(reason != nullptr ? reason : "the TLS connection failed");
}

Status TlsConduit::establish() noexcept {
  if (established_) return Status::ok;
  for (;;) {
    lib_.ERR_clear_error();
    const int result = lib_.SSL_do_handshake(ssl_.get());
    if (result != 1 && lib_.SSL_get_error(ssl_.get(), result) != error_want_read) {
      return failed(result);
    }
    if (const Status status = flush(); status != Status::ok) return status;
    if (result == 1) return judge();
    bool drained = false;
    if (const Status status = pull(drained); status != Status::ok) return status;
    std::size_t whole = 0;
    if (first_whole(whole) != Status::ok) {
      return refuse("the other end speaks no TLS: it is not of a secured run");
    }
    if (whole == 0 && drained) return Status::would_block;
  }
}

Status TlsConduit::judge() noexcept {
  const X509Ptr certificate(lib_.SSL_get1_peer_certificate(ssl_.get()));
  if (!certificate || lib_.SSL_version(ssl_.get()) != version_tls13 ||
      lib_.SSL_get_verify_result(ssl_.get()) != 0) {
    return refuse("the other end has shown no certificate");
  }
  if (!peer_of(lib_, lib_.X509_get0_pubkey(certificate.get()), key_)) {
    return refuse("the other end's key is not Ed25519");
  }
  if (expected_.peer && *expected_.peer != key_) {
    return refuse("the other end is another peer than the one that was dialled");
  }
  if (expected_.coordinator_of && !names_coordinator(certificate.get())) {
    return refuse("the other end's certificate is not of this run's coordinator");
  }
  established_ = true;
  return Status::ok;
}

bool TlsConduit::names_coordinator(const X509* certificate) const noexcept {
  constexpr std::string_view before = "pccl://run/";
  constexpr std::string_view after = "/coordinator";
  constexpr std::string_view digits = "0123456789abcdef";
  std::array<char, before.size() + 32 + after.size()> wanted{};
  auto to = std::copy(before.begin(), before.end(), wanted.begin());
  for (const std::uint8_t byte : expected_.coordinator_of->bytes) {
    *to++ = digits[byte >> 4];
    *to++ = digits[byte & 15];
  }
  std::copy(after.begin(), after.end(), to);
  auto* names = static_cast<Stack*>(
      lib_.X509_get_ext_d2i(certificate, nid_subject_alt_name, nullptr, nullptr));
  if (names == nullptr) return false;
  bool found = false;
  for (int i = 0; i < lib_.OPENSSL_sk_num(names); ++i) {
    int kind = 0;
    const auto* text = static_cast<const Asn1String*>(
        lib_.GENERAL_NAME_get0_value(lib_.OPENSSL_sk_value(names, i), &kind));
    if (kind != name_uri || text == nullptr) continue;
    const std::string_view uri(reinterpret_cast<const char*>(lib_.ASN1_STRING_get0_data(text)),
                               static_cast<std::size_t>(lib_.ASN1_STRING_length(text)));
    found = found || uri == std::string_view(wanted.data(), wanted.size());
  }
  lib_.GENERAL_NAMES_free(names);
  return found;
}

bool TlsConduit::key_of(void* self, std::uint64_t generation, BulkKey& out,
                        bool of_dialler) noexcept {
  auto& conduit = *static_cast<TlsConduit*>(self);
  constexpr std::string_view label = "EXPORTER-pccl-lane";
  // Context: the direction, then the generation.
  std::array<unsigned char, 9> context{};
  context[0] = of_dialler ? 1 : 2;
  for (std::size_t i = 0; i < 8; ++i) {
    context[1 + i] = static_cast<unsigned char>(generation >> (8 * i));
  }
  std::array<unsigned char, sizeof out.key + sizeof out.nonce> bytes{};
  const bool made = conduit.lib_.SSL_export_keying_material(
                        conduit.ssl_.get(), bytes.data(), bytes.size(), label.data(), label.size(),
                        context.data(), context.size(), 1) == 1;
  std::copy_n(bytes.begin(), out.key.size(), out.key.begin());
  std::copy_n(bytes.begin() + out.key.size(), out.nonce.size(), out.nonce.begin());
  conduit.lib_.OPENSSL_cleanse(bytes.data(), bytes.size());
  return made;
}

Status TlsConduit::seal_in_bulk() noexcept {
  if (!established_ || bulk_in_ || record_left_ > 0) return Status::usage;
  if (!in_.reserve(in_bulk_bytes - in_.held())) return Status::exhausted;
  if (!out_.reserve(batch_bytes + 64 * piece_overhead)) return Status::exhausted;
  const KeySource of_dialler = [](void* self, std::uint64_t generation, BulkKey& out) noexcept {
    return key_of(self, generation, out, true);
  };
  const KeySource of_listener = [](void* self, std::uint64_t generation, BulkKey& out) noexcept {
    return key_of(self, generation, out, false);
  };
  bulk_in_.reset(new (std::nothrow) Bulk(lib_, false, dialled_ ? of_listener : of_dialler, this));
  bulk_out_.reset(new (std::nothrow) Bulk(lib_, true, dialled_ ? of_dialler : of_listener, this));
  return bulk_in_ && bulk_out_ ? Status::ok : Status::exhausted;
}

Status TlsConduit::send(std::span<const iovec> parts, std::size_t& sent) noexcept {
  if (!established_) return Status::would_block;
  if (const Status status = flush(); status != Status::ok) return status;
  if (out_.held() > 0) return Status::would_block;
  std::size_t taken = 0;
  const Status status = bulk_out_ ? send_pieces(parts, taken) : send_records(parts, taken);
  if (status != Status::ok) return status;
  sent = taken;
  return flush();
}

Status TlsConduit::send_records(std::span<const iovec> parts, std::size_t& taken) noexcept {
  for (const iovec& part : parts) {
    const auto* from = static_cast<const std::byte*>(part.iov_base);
    std::size_t left = std::min(part.iov_len, batch_bytes - taken);
    while (left > 0) {
      lib_.ERR_clear_error();
      std::size_t written = 0;
      const int result = lib_.SSL_write_ex(ssl_.get(), from, left, &written);
      if (result != 1) return failed(result);
      from += written;
      left -= written;
      taken += written;
    }
  }
  return Status::ok;
}

/// Small parts share a piece; a large one has its own, so that the other side can open it straight
/// into where it belongs.
Status TlsConduit::send_pieces(std::span<const iovec> parts, std::size_t& taken) noexcept {
  constexpr std::size_t parts_per_piece_max = 32;
  Parts rest{parts};
  while (!rest.done() && taken < batch_bytes) {
    std::array<iovec, parts_per_piece_max> piece;
    std::size_t count = 0;
    std::size_t bytes = 0;
    const bool large = rest.here() >= large_part;
    while (!rest.done() && count < piece.size() && (count == 0 || !large)) {
      if (count > 0 && (rest.here() >= large_part || bytes + rest.here() > 2 * large_part)) break;
      const std::size_t here = std::min(rest.here(), piece_bytes_max);
      piece[count++] = {rest.at(), here};
      bytes += here;
      rest.offset += here;
    }
    if (!out_.reserve(bytes + piece_overhead)) return Status::exhausted;
    const Status status = bulk_out_->seal({piece.data(), count}, bytes, out_.back());
    if (status != Status::ok) return status;
    out_.grow(bytes + piece_overhead);
    taken += bytes;
  }
  return Status::ok;
}

bool TlsConduit::holds_received() const noexcept {
  if (plain_bytes_ > 0) return true;
  if (!established_) return false;
  if (!bulk_in_ && lib_.SSL_pending(ssl_.get()) > 0) return true;
  std::size_t whole = 0;
  return first_whole(whole) != Status::ok || whole > 0;
}

Status TlsConduit::receive(std::span<const iovec> parts, std::size_t& got,
                           bool& drained) noexcept {
  if (!established_) return Status::would_block;
  got = 0;
  drained = false;
  bool socket_drained = false;
  for (;;) {
    const Status status = bulk_in_ ? read_piece(parts, got) : read_records(parts, got);
    if (status != Status::ok) return status;
    if (got > 0) {
      drained = socket_drained && !holds_received();
      return Status::ok;
    }
    if (socket_drained) return Status::would_block;
    if (const Status pulled = pull(socket_drained); pulled != Status::ok) return pulled;
  }
}

Status TlsConduit::read_records(std::span<const iovec> parts, std::size_t& got) noexcept {
  for (Parts rest{parts}; !rest.done();) {
    std::size_t whole = 0;
    // While OpenSSL has bytes of an opened record, what follows it here may be a piece already: the
    // other side seals in bulk right behind its WELCOME.
    if (lib_.SSL_pending(ssl_.get()) == 0 && first_whole(whole) != Status::ok) {
      return refuse("what came is no TLS record");
    }
    lib_.ERR_clear_error();
    std::size_t count = 0;
    const int result = lib_.SSL_read_ex(ssl_.get(), rest.at(), rest.here(), &count);
    if (result != 1) {
      if (lib_.SSL_get_error(ssl_.get(), result) == error_want_read) break;
      // What came before is passed on first; the end is found again.
      return got > 0 ? Status::ok : failed(result);
    }
    got += count;
    rest.offset += count;
  }
  return flush();  // answers of OpenSSL's own, to a change of keys for instance
}

Status TlsConduit::read_piece(std::span<const iovec> parts, std::size_t& got) noexcept {
  if (plain_bytes_ == 0) {
    std::size_t whole = 0;
    if (const Status status = first_whole(whole); status != Status::ok) return status;
    if (whole == 0) return Status::ok;
    const std::size_t bytes = whole - piece_overhead;
    if (const Status status = bulk_in_->open(in_.front(), bytes, parts); status != Status::ok) {
      return status == Status::protocol ? refuse("a piece of the lane was changed on its way")
                                        : status;
    }
    for (const iovec& part : parts) got += std::min(part.iov_len, bytes - got);
    in_.drop(piece_length_bytes + got);
    plain_bytes_ = bytes - got;
    if (plain_bytes_ == 0) in_.drop(piece_tag_bytes);
    return Status::ok;
  }
  for (const iovec& part : parts) {
    const std::size_t count = std::min(part.iov_len, plain_bytes_);
    if (count == 0) continue;
    std::memcpy(part.iov_base, in_.front(), count);
    in_.drop(count);
    plain_bytes_ -= count;
    got += count;
  }
  if (plain_bytes_ == 0) in_.drop(piece_tag_bytes);
  return Status::ok;
}

// --- what OpenSSL reads and writes ---

int bio_read(Bio* bio, char* to, std::size_t bytes, std::size_t* done) noexcept {
  const Functions& lib = *find();
  lib.BIO_clear_flags(bio, bio_flags_read | bio_flags_write | bio_flags_retry);
  *done = static_cast<TlsConduit*>(lib.BIO_get_data(bio))->give(to, bytes);
  if (*done > 0) return 1;
  lib.BIO_set_flags(bio, bio_flags_read | bio_flags_retry);
  return 0;
}

int bio_write(Bio* bio, const char* from, std::size_t bytes, std::size_t* done) noexcept {
  const Functions& lib = *find();
  lib.BIO_clear_flags(bio, bio_flags_read | bio_flags_write | bio_flags_retry);
  if (!static_cast<TlsConduit*>(lib.BIO_get_data(bio))->take(from, bytes)) return 0;
  *done = bytes;
  return 1;
}

long bio_ctrl(Bio*, int order, long, void*) noexcept { return order == bio_ctrl_flush ? 1 : 0; }

}  // namespace

openssl::BioMethod* bio_method(const Functions& lib) {
  static BioMethod* const method = [&]() -> BioMethod* {
    BioMethod* made = lib.BIO_meth_new(bio_type_own, "pccl");
    const bool set = made != nullptr && lib.BIO_meth_set_read_ex(made, &bio_read) == 1 &&
                     lib.BIO_meth_set_write_ex(made, &bio_write) == 1 &&
                     lib.BIO_meth_set_ctrl(made, &bio_ctrl) == 1;
    return set ? made : nullptr;
  }();
  return method;
}

std::unique_ptr<Conduit> make_tls_conduit(const TlsContext::Impl& context, Fd socket, bool dialled,
                                          const TlsExpectation& expected) {
  const Functions& lib = *context.lib;
  SslPtr ssl(lib.SSL_new(context.context.get()));
  Bio* bio = ssl ? lib.BIO_new(context.method) : nullptr;
  if (bio == nullptr) return nullptr;
  Ssl* session = ssl.get();
  lib.SSL_set_bio(session, bio, bio);  // which owns it now
  auto conduit = std::make_unique<TlsConduit>(context, std::move(socket), std::move(ssl), dialled,
                                              expected);
  lib.BIO_set_data(bio, conduit.get());
  lib.BIO_set_init(bio, 1);
  if (dialled) {
    lib.SSL_set_connect_state(session);
  } else {
    lib.SSL_set_accept_state(session);
  }
  return conduit;
}

}  // namespace pccl
