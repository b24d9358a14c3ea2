// native/src/tls/records.cpp — TLS records: what OpenSSL reads from a window and writes to one.
// Ownership: see tls_conduit.hpp.
// Threads:   see conduit.hpp.
// Errors:    see conduit.hpp.
#include "tls/tls_conduit.hpp"

namespace pccl {

using namespace openssl;

namespace {

constexpr unsigned char alert_type = 20;  // ... to 23: what a record may begin with
constexpr unsigned char data_type = 23;

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

Status record_length(std::span<const std::byte> bytes, std::size_t& out) noexcept {
  out = 0;
  const auto* head = reinterpret_cast<const unsigned char*>(bytes.data());
  if (!bytes.empty() && (head[0] < alert_type || head[0] > data_type)) return Status::protocol;
  if (bytes.size() > 1 && head[1] != 3) return Status::protocol;
  if (bytes.size() < record_head_bytes) return Status::ok;
  const std::size_t body = static_cast<std::size_t>(head[3]) << 8 | head[4];
  if (body > record_body_max) return Status::protocol;
  out = record_head_bytes + body;
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

BioMethod* bio_method(const Functions& lib) {
  static BioMethod* const method = [&]() -> BioMethod* {
    BioMethod* made = lib.BIO_meth_new(bio_type_own, "pccl");
    const bool set = made != nullptr && lib.BIO_meth_set_read_ex(made, &bio_read) == 1 &&
                     lib.BIO_meth_set_write_ex(made, &bio_write) == 1 &&
                     lib.BIO_meth_set_ctrl(made, &bio_ctrl) == 1;
    return set ? made : nullptr;
  }();
  return method;
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

}  // namespace pccl
