// native/src/tls/conduit.cpp — between the socket and the two windows of a TLS conduit.
// Ownership: see tls_conduit.hpp.
// Threads:   see conduit.hpp.
// Errors:    see conduit.hpp.
#include <cerrno>

#include "tls/tls_conduit.hpp"

namespace pccl {
namespace {

Status status_of(int error) noexcept {
  if (error == EAGAIN || error == EWOULDBLOCK) return Status::would_block;
  return error == ECONNRESET || error == EPIPE ? Status::closed : Status::io_error;
}

}  // namespace

Status TlsConduit::first_whole(std::size_t& bytes) const noexcept {
  bytes = 0;
  const std::span<const std::byte> held{in_.front(), in_.held()};
  std::size_t length = 0;
  if (bulk_in_) {
    if (const Status status = piece_length(held, length); status != Status::ok) return status;
    if (length > 0) length += piece_overhead;
  } else {
    if (const Status status = record_length(held, length); status != Status::ok) return status;
  }
  if (held.size() >= length) bytes = length;
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

std::unique_ptr<Conduit> make_tls_conduit(const TlsContext::Impl& context, Fd socket, bool dialled,
                                          const TlsExpectation& expected) {
  const openssl::Functions& lib = *context.lib;
  openssl::SslPtr ssl(lib.SSL_new(context.context.get()));
  openssl::Bio* bio = ssl ? lib.BIO_new(context.method) : nullptr;
  if (bio == nullptr) return nullptr;
  openssl::Ssl* session = ssl.get();
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
