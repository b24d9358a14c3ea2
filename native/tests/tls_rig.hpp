// native/tests/tls_rig.hpp — a run's CA and certificates, made in memory by the libcrypto found.
// Ownership: values.
// Threads:   one.
// Errors:    CHECKs.
#pragma once

#include <dlfcn.h>

#include <memory>
#include <string>
#include <vector>

#include "check.hpp"
#include "pccl/tls.hpp"

namespace rig_tls {

using namespace pccl;

/// What only tests need of libcrypto, called by name.
class Crypto {
 public:
  Crypto() : handle_(::dlopen(tls_library().path.c_str(), RTLD_NOW | RTLD_LOCAL)) {
    CHECK(handle_ != nullptr);
  }
  template <class Result = int, class... Args>
  Result call(const char* name, Args... args) const {
    const auto function = reinterpret_cast<Result (*)(Args...)>(::dlsym(handle_, name));
    CHECK(function != nullptr);
    return function(args...);
  }

 private:
  void* handle_;
};

struct Who {
  void* key = nullptr;
  void* certificate = nullptr;
  std::string key_pem;
  std::string certificate_pem;
};

class Authority {
 public:
  Authority() { ca_ = make("pccl test CA", nullptr, true, 0, 3600, {}); }
  Authority(const Authority&) = delete;
  Authority& operator=(const Authority&) = delete;
  ~Authority() {
    for (const Who& who : made_) {
      crypto_.call<void>("X509_free", who.certificate);
      crypto_.call<void>("EVP_PKEY_free", who.key);
    }
  }

  /// A certificate of this CA, good from `from_s` to `until_s` from now; `uri` as its only name.
  Who issue(long from_s = -300, long until_s = 3600, const std::string& uri = {}) const {
    return make("peer", &ca_, false, from_s, until_s, uri);
  }
  TlsMaterial material(const Who& who) const {
    return {who.certificate_pem, who.key_pem, ca_.certificate_pem};
  }
  std::shared_ptr<const TlsContext> context(const Who& who) const {
    return std::make_shared<const TlsContext>(material(who));
  }
  std::shared_ptr<const TlsContext> context() const { return context(issue()); }

 private:
  using Text = const char*;
  std::string pem(const char* writer, void* object, bool is_key) const {
    const auto* memory = crypto_.call<const void*>("BIO_s_mem");
    void* bio = crypto_.call<void*>("BIO_new", memory);
    void* null = nullptr;
    const int written =
        is_key ? crypto_.call(writer, bio, object, null, null, 0, null, null)
               : crypto_.call(writer, bio, object);
    CHECK(written == 1);
    std::string text(4096, '\0');
    const int bytes = crypto_.call("BIO_read", bio, static_cast<void*>(text.data()), 4096);
    crypto_.call("BIO_free", bio);
    text.resize(static_cast<std::size_t>(bytes));
    return text;
  }
  void extend(void* certificate, int nid, const std::string& value) const {
    void* null = nullptr;
    void* extension = crypto_.call<void*>("X509V3_EXT_conf_nid", null, null, nid, value.c_str());
    CHECK(extension != nullptr);
    CHECK(crypto_.call("X509_add_ext", certificate, extension, -1) == 1);
    crypto_.call<void>("X509_EXTENSION_free", extension);
  }
  Who make(Text name, const Who* issuer, bool is_ca, long from_s, long until_s,
           const std::string& uri) const {
    Who who;
    void* null = nullptr;
    who.key = crypto_.call<void*>("EVP_PKEY_Q_keygen", null, null, Text{"ED25519"});
    who.certificate = crypto_.call<void*>("X509_new");
    void* certificate = who.certificate;
    crypto_.call("X509_set_version", certificate, 2L);
    void* serial = crypto_.call<void*>("X509_get_serialNumber", certificate);
    crypto_.call("ASN1_INTEGER_set", serial, static_cast<long>(++serials()));
    crypto_.call<void*>("X509_gmtime_adj", crypto_.call<void*>("X509_getm_notBefore", certificate),
                        from_s);
    crypto_.call<void*>("X509_gmtime_adj", crypto_.call<void*>("X509_getm_notAfter", certificate),
                        until_s);
    void* subject = crypto_.call<void*>("X509_get_subject_name", certificate);
    constexpr int utf8 = 0x1000 | 1;  // MBSTRING_ASC
    crypto_.call("X509_NAME_add_entry_by_txt", subject, Text{"CN"}, utf8,
                 static_cast<const void*>(name), -1, -1, 0);
    const void* by = issuer != nullptr ? issuer->certificate : certificate;
    crypto_.call("X509_set_issuer_name", certificate,
                 crypto_.call<void*>("X509_get_subject_name", by));
    crypto_.call("X509_set_pubkey", certificate, who.key);
    if (is_ca) extend(certificate, 87, "critical,CA:TRUE");
    if (!uri.empty()) extend(certificate, 85, "URI:" + uri);
    CHECK(crypto_.call("X509_sign", certificate, issuer != nullptr ? issuer->key : who.key,
                       static_cast<const void*>(nullptr)) > 0);
    who.certificate_pem = pem("PEM_write_bio_X509", certificate, false);
    who.key_pem = pem("PEM_write_bio_PrivateKey", who.key, true);
    made_.push_back(who);
    return who;
  }
  static long& serials() {
    static long last = 0;
    return last;
  }

  Crypto crypto_;
  mutable std::vector<Who> made_;  // their objects are freed with this
  Who ca_;
};

}  // namespace rig_tls
