// native/src/tls/context.hpp — what conduits of one TlsContext share.
// Ownership: see tls.hpp.
// Threads:   see tls.hpp; nothing changes after it was made.
// Errors:    see tls.hpp.
#pragma once

#include "pccl/tls.hpp"
#include "tls/openssl.hpp"

namespace pccl {

struct TlsContext::Impl {
  const openssl::Functions* lib = nullptr;
  openssl::SslContextPtr context;
  openssl::BioMethod* method = nullptr;  // of the process; never freed
  PeerId own;
};

/// The name of a key; false if it is not Ed25519.
bool peer_of(const openssl::Functions& lib, const openssl::Key* key, PeerId& out) noexcept;
/// Reads and writes of a conduit's two buffers; null: no memory.
openssl::BioMethod* bio_method(const openssl::Functions& lib);
std::unique_ptr<Conduit> make_tls_conduit(const TlsContext::Impl& context, Fd socket, bool dialled,
                                          const TlsExpectation& expected);

}  // namespace pccl
