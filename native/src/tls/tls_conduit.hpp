// native/src/tls/tls_conduit.hpp — a TCP socket with TLS 1.3 on it, and sealed pieces for lanes.
//
// OpenSSL never sees the socket: it reads whole records from one window and writes to another, so
// that one system call carries many of them.  It is asked only while a whole record is here; hence
// what lies in the window always begins with a record, and can be looked at before OpenSSL does.
//
//   conduit.cpp    the socket, the two windows, and which of the two kinds of sealing is on
//   handshake.cpp  who the other end is
//   records.cpp    TLS records, by OpenSSL
//   pieces.cpp     sealed pieces, by Bulk
//
// Ownership: see conduit.hpp; the session borrows the library.
// Threads:   see conduit.hpp.
// Errors:    see conduit.hpp.
#pragma once

#include <sys/socket.h>

#include <algorithm>
#include <utility>

#include "tls/bulk.hpp"
#include "tls/context.hpp"
#include "tls/framing.hpp"
#include "tls/window.hpp"

namespace pccl {

inline constexpr std::size_t batch_bytes = 256 * 1024;  // of plaintext, in one system call

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
  TlsConduit(const TlsContext::Impl& context, Fd socket, openssl::SslPtr ssl, bool dialled,
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
  bool names_coordinator(const openssl::X509* certificate) const noexcept;
  Status send_records(std::span<const iovec> parts, std::size_t& taken) noexcept;
  Status send_pieces(std::span<const iovec> parts, std::size_t& taken) noexcept;
  Status read_records(std::span<const iovec> parts, std::size_t& got) noexcept;
  Status read_piece(std::span<const iovec> parts, std::size_t& got) noexcept;
  static bool key_of(void* self, std::uint64_t generation, BulkKey& out, bool of_dialler) noexcept;

  const openssl::Functions& lib_;
  openssl::SslPtr ssl_;
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

}  // namespace pccl
