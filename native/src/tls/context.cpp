// native/src/tls/context.cpp — certificates, keys, and the rules that every connection gets.
// Ownership: see tls.hpp.
// Threads:   see tls.hpp.
// Errors:    see tls.hpp.
#include "tls/context.hpp"

#include <algorithm>
#include <climits>

namespace pccl {
namespace {

using namespace openssl;

constexpr const char* suites =
    "TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256";

BioPtr memory_of(const Functions& lib, const std::string& text) {
  if (text.size() > INT_MAX) return nullptr;
  return BioPtr(lib.BIO_new_mem_buf(text.data(), static_cast<int>(text.size())));
}

[[noreturn]] void refuse(const Functions& lib, const char* what) {
  const char* reason = lib.ERR_reason_error_string(lib.ERR_peek_error());
  std::string text = what;
  if (reason != nullptr) text = text + ": " + reason;
  lib.ERR_clear_error();
  throw TlsUnusable(text);
}

X509Ptr certificate_of(const Functions& lib, const std::string& pem, const char* what) {
  const BioPtr bio = memory_of(lib, pem);
  X509Ptr certificate(bio ? lib.PEM_read_bio_X509(bio.get(), nullptr, nullptr, nullptr) : nullptr);
  if (!certificate) refuse(lib, what);
  return certificate;
}

void set_rules(const Functions& lib, SslContext* context) {
  const bool set =
      lib.SSL_CTX_ctrl(context, ctrl_set_min_version, version_tls13, nullptr) == 1 &&
      lib.SSL_CTX_ctrl(context, ctrl_set_max_version, version_tls13, nullptr) == 1 &&
      lib.SSL_CTX_set_ciphersuites(context, suites) == 1 &&
      lib.SSL_CTX_set_num_tickets(context, 0) == 1;
  if (!set) refuse(lib, "TLS 1.3 cannot be set");
  (void)lib.SSL_CTX_ctrl(context, ctrl_mode, mode_partial_write | mode_moving_buffer, nullptr);
  (void)lib.SSL_CTX_set_options(context, option_no_ticket | option_no_renegotiation);
  lib.SSL_CTX_set_verify(context, verify_peer | verify_fail_if_none, nullptr);
}

}  // namespace

bool peer_of(const Functions& lib, const Key* key, PeerId& out) noexcept {
  std::array<unsigned char, 32> raw{};
  std::array<unsigned char, 32> digest{};
  std::size_t length = raw.size();
  if (key == nullptr || lib.EVP_PKEY_get_raw_public_key(key, raw.data(), &length) != 1 ||
      length != raw.size() || lib.SHA256(raw.data(), length, digest.data()) == nullptr) {
    return false;
  }
  std::copy_n(digest.begin(), out.bytes.size(), out.bytes.begin());
  return true;
}

TlsContext::TlsContext(const TlsMaterial& material) : impl_(std::make_unique<Impl>()) {
  const Functions* found = find();
  if (found == nullptr) throw TlsUnusable(problem());
  const Functions& lib = *found;
  lib.ERR_clear_error();
  impl_->lib = found;
  impl_->method = bio_method(lib);
  impl_->context.reset(lib.SSL_CTX_new(lib.TLS_method()));
  SslContext* context = impl_->context.get();
  if (context == nullptr || impl_->method == nullptr) refuse(lib, "TLS cannot be set up");
  set_rules(lib, context);
  const X509Ptr own = certificate_of(lib, material.certificate, "the own certificate is no PEM");
  const X509Ptr ca = certificate_of(lib, material.ca, "the certificate of the CA is no PEM");
  const BioPtr bio = memory_of(lib, material.key);
  const KeyPtr key(bio ? lib.PEM_read_bio_PrivateKey(bio.get(), nullptr, nullptr, nullptr)
                       : nullptr);
  if (!key) refuse(lib, "the own key is no PEM without a password");
  if (lib.SSL_CTX_use_certificate(context, own.get()) != 1 ||
      lib.SSL_CTX_use_PrivateKey(context, key.get()) != 1 ||
      lib.SSL_CTX_check_private_key(context) != 1) {
    refuse(lib, "the own key and certificate do not belong together");
  }
  if (lib.X509_STORE_add_cert(lib.SSL_CTX_get_cert_store(context), ca.get()) != 1) {
    refuse(lib, "the certificate of the CA cannot be used");
  }
  if (!peer_of(lib, lib.X509_get0_pubkey(own.get()), impl_->own)) {
    refuse(lib, "the own key is not Ed25519");
  }
}

TlsContext::~TlsContext() = default;

PeerId TlsContext::peer() const noexcept { return impl_->own; }

std::unique_ptr<Conduit> TlsContext::dial(Fd socket, const TlsExpectation& expected) const {
  return make_tls_conduit(*impl_, std::move(socket), true, expected);
}

std::unique_ptr<Conduit> TlsContext::accept(Fd socket) const {
  return make_tls_conduit(*impl_, std::move(socket), false, {});
}

TlsLibrary tls_library() {
  const Functions* lib = find();
  if (lib == nullptr) return {{}, {}, problem()};
  return {lib->version, lib->path, {}};
}

}  // namespace pccl
