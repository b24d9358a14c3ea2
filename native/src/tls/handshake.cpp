// native/src/tls/handshake.cpp — the TLS handshake, and who the other end must be.
// Ownership: see tls_conduit.hpp.
// Threads:   see conduit.hpp.
// Errors:    see conduit.hpp.
#include "tls/tls_conduit.hpp"

namespace pccl {

using namespace openssl;

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

}  // namespace pccl
