// native/src/tls/openssl.hpp — the functions of OpenSSL that are used, found at run time.
//
// Nothing of OpenSSL is needed to build or to run without encryption.  The first use looks for
// libcrypto and libssl of version 3 or later: where PCCL_OPENSSL_LIB says (a directory or either
// file), else the newest of what the virtual environment, conda and the system hold.
//
// Declarations are written here from OpenSSL's documented interface; types stay opaque.
//
// Ownership: the libraries stay loaded until the process ends; handles free themselves.
// Threads:   any; the search happens once.
// Errors:    OpenSsl::get() is null where there is none, and problem() says what to install.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <type_traits>

namespace pccl::openssl {

struct Ssl;
struct SslContext;
struct Method;
struct Bio;
struct BioMethod;
struct X509;
struct X509Store;
struct X509StoreContext;
struct Key;
struct Cipher;
struct CipherContext;
struct Stack;
struct Asn1String;

// Values of the interface's constants.
inline constexpr int ctrl_set_min_version = 123;
inline constexpr int ctrl_set_max_version = 124;
inline constexpr int ctrl_mode = 33;
inline constexpr long version_tls13 = 0x0304;
inline constexpr long mode_partial_write = 0x1;
inline constexpr long mode_moving_buffer = 0x2;
inline constexpr long mode_release_buffers = 0x10;
inline constexpr std::uint64_t option_no_ticket = std::uint64_t{1} << 14;
inline constexpr std::uint64_t option_no_renegotiation = std::uint64_t{1} << 30;
inline constexpr int verify_peer = 0x01;
inline constexpr int verify_fail_if_none = 0x02;
inline constexpr int error_want_read = 2;
inline constexpr int error_want_write = 3;
inline constexpr int error_zero_return = 6;
inline constexpr int name_uri = 6;           // GEN_URI
inline constexpr int nid_subject_alt_name = 85;
inline constexpr int bio_ctrl_flush = 11;
inline constexpr int bio_flags_read = 0x01;
inline constexpr int bio_flags_write = 0x02;
inline constexpr int bio_flags_retry = 0x08;
inline constexpr int bio_type_own = 0x0400 | 100;  // a source or sink of one's own
inline constexpr int ctrl_gcm_get_tag = 0x10;
inline constexpr int ctrl_gcm_set_tag = 0x11;
inline constexpr std::uint64_t init_no_atexit = 0x00080000;
inline constexpr int version_string = 0;

// Every function: its name there, its type here.  S: from libssl, C: from libcrypto.
#define PCCL_OPENSSL_FUNCTIONS(S, C)                                                              \
  S(TLS_method, const Method* (*)())                                                              \
  S(SSL_CTX_new, SslContext* (*)(const Method*))                                                  \
  S(SSL_CTX_free, void (*)(SslContext*))                                                          \
  S(SSL_CTX_ctrl, long (*)(SslContext*, int, long, void*))                                        \
  S(SSL_CTX_set_options, std::uint64_t (*)(SslContext*, std::uint64_t))                           \
  S(SSL_CTX_set_ciphersuites, int (*)(SslContext*, const char*))                                  \
  S(SSL_CTX_set_num_tickets, int (*)(SslContext*, std::size_t))                                   \
  S(SSL_CTX_use_certificate, int (*)(SslContext*, X509*))                                         \
  S(SSL_CTX_use_PrivateKey, int (*)(SslContext*, Key*))                                           \
  S(SSL_CTX_check_private_key, int (*)(const SslContext*))                                        \
  S(SSL_CTX_set_verify, void (*)(SslContext*, int, int (*)(int, X509StoreContext*)))              \
  S(SSL_CTX_get_cert_store, X509Store* (*)(const SslContext*))                                    \
  S(SSL_new, Ssl* (*)(SslContext*))                                                               \
  S(SSL_free, void (*)(Ssl*))                                                                     \
  S(SSL_set_bio, void (*)(Ssl*, Bio*, Bio*))                                                      \
  S(SSL_set_connect_state, void (*)(Ssl*))                                                        \
  S(SSL_set_accept_state, void (*)(Ssl*))                                                         \
  S(SSL_do_handshake, int (*)(Ssl*))                                                              \
  S(SSL_read_ex, int (*)(Ssl*, void*, std::size_t, std::size_t*))                                 \
  S(SSL_write_ex, int (*)(Ssl*, const void*, std::size_t, std::size_t*))                          \
  S(SSL_get_error, int (*)(const Ssl*, int))                                                      \
  S(SSL_pending, int (*)(const Ssl*))                                                             \
  S(SSL_shutdown, int (*)(Ssl*))                                                                  \
  S(SSL_version, int (*)(const Ssl*))                                                             \
  S(SSL_get1_peer_certificate, X509* (*)(const Ssl*))                                             \
  S(SSL_get_verify_result, long (*)(const Ssl*))                                                  \
  S(SSL_export_keying_material,                                                                   \
    int (*)(Ssl*, unsigned char*, std::size_t, const char*, std::size_t, const unsigned char*,    \
            std::size_t, int))                                                                    \
  C(OPENSSL_init_crypto, int (*)(std::uint64_t, const void*))                                     \
  C(OpenSSL_version, const char* (*)(int))                                                        \
  C(OpenSSL_version_num, unsigned long (*)())                                                     \
  C(ERR_clear_error, void (*)())                                                                  \
  C(ERR_peek_error, unsigned long (*)())                                                          \
  C(ERR_reason_error_string, const char* (*)(unsigned long))                                      \
  C(BIO_meth_new, BioMethod* (*)(int, const char*))                                               \
  C(BIO_meth_set_read_ex,                                                                         \
    int (*)(BioMethod*, int (*)(Bio*, char*, std::size_t, std::size_t*)))                         \
  C(BIO_meth_set_write_ex,                                                                        \
    int (*)(BioMethod*, int (*)(Bio*, const char*, std::size_t, std::size_t*)))                   \
  C(BIO_meth_set_ctrl, int (*)(BioMethod*, long (*)(Bio*, int, long, void*)))                     \
  C(BIO_new, Bio* (*)(const BioMethod*))                                                          \
  C(BIO_new_mem_buf, Bio* (*)(const void*, int))                                                  \
  C(BIO_free, int (*)(Bio*))                                                                      \
  C(BIO_set_data, void (*)(Bio*, void*))                                                          \
  C(BIO_get_data, void* (*)(Bio*))                                                                \
  C(BIO_set_init, void (*)(Bio*, int))                                                            \
  C(BIO_set_flags, void (*)(Bio*, int))                                                           \
  C(BIO_clear_flags, void (*)(Bio*, int))                                                         \
  C(PEM_read_bio_X509, X509* (*)(Bio*, X509**, void*, void*))                                     \
  C(PEM_read_bio_PrivateKey, Key* (*)(Bio*, Key**, void*, void*))                                 \
  C(X509_free, void (*)(X509*))                                                                   \
  C(X509_get0_pubkey, Key* (*)(const X509*))                                                      \
  C(X509_get_ext_d2i, void* (*)(const X509*, int, int*, int*))                                    \
  C(X509_STORE_add_cert, int (*)(X509Store*, X509*))                                              \
  C(X509_verify_cert_error_string, const char* (*)(long))                                         \
  C(EVP_PKEY_free, void (*)(Key*))                                                                \
  C(EVP_PKEY_get_raw_public_key, int (*)(const Key*, unsigned char*, std::size_t*))               \
  C(SHA256, unsigned char* (*)(const unsigned char*, std::size_t, unsigned char*))                \
  C(OPENSSL_sk_num, int (*)(const Stack*))                                                        \
  C(OPENSSL_sk_value, void* (*)(const Stack*, int))                                               \
  C(GENERAL_NAME_get0_value, void* (*)(const void*, int*))                                        \
  C(GENERAL_NAMES_free, void (*)(Stack*))                                                         \
  C(ASN1_STRING_get0_data, const unsigned char* (*)(const Asn1String*))                           \
  C(ASN1_STRING_length, int (*)(const Asn1String*))                                               \
  C(EVP_aes_256_gcm, const Cipher* (*)())                                                         \
  C(EVP_CIPHER_CTX_new, CipherContext* (*)())                                                     \
  C(EVP_CIPHER_CTX_free, void (*)(CipherContext*))                                                \
  C(EVP_CIPHER_CTX_ctrl, int (*)(CipherContext*, int, int, void*))                                \
  C(EVP_EncryptInit_ex,                                                                           \
    int (*)(CipherContext*, const Cipher*, void*, const unsigned char*, const unsigned char*))    \
  C(EVP_EncryptUpdate,                                                                            \
    int (*)(CipherContext*, unsigned char*, int*, const unsigned char*, int))                     \
  C(EVP_EncryptFinal_ex, int (*)(CipherContext*, unsigned char*, int*))                           \
  C(EVP_DecryptInit_ex,                                                                           \
    int (*)(CipherContext*, const Cipher*, void*, const unsigned char*, const unsigned char*))    \
  C(EVP_DecryptUpdate,                                                                            \
    int (*)(CipherContext*, unsigned char*, int*, const unsigned char*, int))                     \
  C(EVP_DecryptFinal_ex, int (*)(CipherContext*, unsigned char*, int*))                           \
  C(OPENSSL_cleanse, void (*)(void*, std::size_t))

struct Functions {
#define PCCL_MEMBER(name, ...) std::type_identity_t<__VA_ARGS__> name = nullptr;
  PCCL_OPENSSL_FUNCTIONS(PCCL_MEMBER, PCCL_MEMBER)
#undef PCCL_MEMBER
  std::string version;  // "OpenSSL 3.0.19 27 Jan 2026"
  std::string path;     // of libcrypto
  unsigned long number = 0;
};

/// Null where no fit library was found.
[[nodiscard]] const Functions* find();
/// What was looked for and what to install; empty if there is one.
[[nodiscard]] const std::string& problem();

/// Frees with the function of that name.
template <auto Free>
struct Freed {
  template <class T>
  void operator()(T* object) const noexcept {
    (find()->*Free)(object);
  }
};
using SslPtr = std::unique_ptr<Ssl, Freed<&Functions::SSL_free>>;
using SslContextPtr = std::unique_ptr<SslContext, Freed<&Functions::SSL_CTX_free>>;
using BioPtr = std::unique_ptr<Bio, Freed<&Functions::BIO_free>>;
using X509Ptr = std::unique_ptr<X509, Freed<&Functions::X509_free>>;
using KeyPtr = std::unique_ptr<Key, Freed<&Functions::EVP_PKEY_free>>;
using CipherContextPtr = std::unique_ptr<CipherContext, Freed<&Functions::EVP_CIPHER_CTX_free>>;

}  // namespace pccl::openssl
