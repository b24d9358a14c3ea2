// native/include/pccl/tls.hpp — conduits that encrypt, and prove who is at the other end.
//
// TLS 1.3 only, certificates on both sides, no tickets, no early data.  A peer's name is the first
// 16 bytes of SHA-256 over its raw Ed25519 public key, and the same key is in its certificate: so
// the certificate proves the name, and the run's CA proves that it may be here at all.
//
// Ownership: a TlsContext is shared by the conduits made with it.
// Threads:   a TlsContext from any; conduits one at a time.
// Errors:    TlsContext throws TlsUnusable (setup); conduits say a Status.
#pragma once

#include <memory>
#include <optional>
#include <stdexcept>
#include <string>

#include "pccl/conduit.hpp"
#include "pccl/types.hpp"

namespace pccl {

/// PEM texts: the own certificate, its key, and the certificate of the run's CA.
struct TlsMaterial {
  std::string certificate;
  std::string key;
  std::string ca;
};

/// No OpenSSL, or material that does not fit together; the text says which.
class TlsUnusable : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// What the other end must prove.
struct TlsExpectation {
  std::optional<PeerId> peer;            // its key has this name
  std::optional<RunId> coordinator_of;   // its certificate names the coordinator of this run
};

class TlsContext {
 public:
  explicit TlsContext(const TlsMaterial& material);
  ~TlsContext();
  TlsContext(const TlsContext&) = delete;
  TlsContext& operator=(const TlsContext&) = delete;

  /// Of the own key.
  [[nodiscard]] PeerId peer() const noexcept;
  /// The end that begins.  Null: no memory.
  [[nodiscard]] std::unique_ptr<Conduit> dial(Fd socket, const TlsExpectation& expected) const;
  /// The end that was dialled; whoever it is, it must have a certificate of the CA.
  [[nodiscard]] std::unique_ptr<Conduit> accept(Fd socket) const;

  struct Impl;

 private:
  std::unique_ptr<Impl> impl_;
};

/// The library that encrypts here: its version and path, or why there is none.
struct TlsLibrary {
  std::string version;
  std::string path;
  std::string problem;
};
[[nodiscard]] TlsLibrary tls_library();

}  // namespace pccl
