// native/bindings/tls.cpp — certificates and keys from Python, and which OpenSSL was found.
// Ownership: values; a key's bytes are copied into OpenSSL, and the copy here is freed at once.
// Threads:   with the GIL.
// Errors:    EngineFailure "usage".
#include "bindings/tls.hpp"

#include <nanobind/stl/string.h>

#include <string>

namespace nb = nanobind;
using namespace nb::literals;

namespace pccl {

std::shared_ptr<const TlsContext> to_tls(const TlsTuple& material) {
  const auto text = [](const nb::bytes& pem) { return std::string(pem.c_str(), pem.size()); };
  const auto& [certificate, key, ca] = material;
  try {
    return std::make_shared<const TlsContext>(
        TlsMaterial{text(certificate), text(key), text(ca)});
  } catch (const TlsUnusable& unusable) {
    throw EngineFailure("usage", unusable.what());
  }
}

void bind_tls(nb::module_& module, nb::class_<Engine>& engine) {
  engine.def("set_tls",
             [](Engine& self, const nb::bytes& certificate, const nb::bytes& key,
                const nb::bytes& ca) { self.set_tls(to_tls({certificate, key, ca})); },
             "certificate_pem"_a, "key_pem"_a, "ca_pem"_a);
  module.def("tls_library", [] {
    const TlsLibrary found = tls_library();
    return nb::make_tuple(found.version, found.path, found.problem);
  });
}

}  // namespace pccl
