// native/src/tls/openssl.cpp — looking for OpenSSL, and taking the newest that is whole.
// Ownership: see openssl.hpp.
// Threads:   see openssl.hpp.
// Errors:    see openssl.hpp.
#include "tls/openssl.hpp"

#include <dlfcn.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <optional>
#include <vector>

namespace pccl::openssl {
namespace {

namespace fs = std::filesystem;

constexpr unsigned long oldest = 0x30000000UL;  // 3.0
constexpr const char* advice =
    "; install OpenSSL 3 (on Debian libssl3, with conda openssl), or let PCCL_OPENSSL_LIB name the "
    "directory that holds libssl.so.3 and libcrypto.so.3";

/// Two libraries that belong together.
struct Pair {
  std::string ssl;
  std::string crypto;
  void* crypto_handle = nullptr;
  unsigned long number = 0;
};

/// "libcrypto" in a directory; wheels put a hash into the names of what they carry.
std::string library_in(const fs::path& directory, const std::string& stem) {
  std::error_code error;
  std::string found;
  for (fs::directory_iterator it(directory, error), end; !error && it != end; it.increment(error)) {
    const std::string name = it->path().filename().string();
    const bool fits = name.starts_with(stem) && name.find(".so.3") != std::string::npos;
    if (fits && (found.empty() || name < found)) found = name;
  }
  return found.empty() ? found : (directory / found).string();
}

std::vector<Pair> candidates(bool& told) {
  std::vector<Pair> pairs;
  const auto add = [&](const fs::path& directory) {
    Pair pair{library_in(directory, "libssl"), library_in(directory, "libcrypto")};
    if (!pair.ssl.empty() && !pair.crypto.empty()) pairs.push_back(std::move(pair));
  };
  const char* named = std::getenv("PCCL_OPENSSL_LIB");
  told = named != nullptr && *named != '\0';
  if (told) {
    std::error_code error;
    const fs::path path(named);
    add(fs::is_directory(path, error) ? path : path.parent_path());
    return pairs;
  }
  for (const char* variable : {"VIRTUAL_ENV", "CONDA_PREFIX"}) {
    if (const char* prefix = std::getenv(variable); prefix != nullptr && *prefix != '\0') {
      add(fs::path(prefix) / "lib");
    }
  }
  pairs.push_back({"libssl.so.3", "libcrypto.so.3"});  // where the system's linker finds them
  return pairs;
}

void open_crypto(Pair& pair) {
  pair.crypto_handle = ::dlopen(pair.crypto.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (pair.crypto_handle == nullptr) return;
  using Number = unsigned long (*)();
  const auto number =
      reinterpret_cast<Number>(::dlsym(pair.crypto_handle, "OpenSSL_version_num"));
  if (number != nullptr) pair.number = number();
}

template <class Function>
bool resolve(void* library, const char* name, Function& out) {
  out = reinterpret_cast<Function>(::dlsym(library, name));
  return out != nullptr;
}

bool load(const Pair& pair, Functions& out, std::string& why) {
  void* ssl = ::dlopen(pair.ssl.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (ssl == nullptr) {
    const char* text = ::dlerror();
    why = text != nullptr ? text : "cannot be loaded";
    return false;
  }
  // Another libcrypto of the same name may have been in the process before: then libssl has bound
  // itself to that one, and the two must not be mixed.
  if (::dlsym(ssl, "OpenSSL_version") != ::dlsym(pair.crypto_handle, "OpenSSL_version")) {
    why = pair.ssl + " is bound to another libcrypto that was loaded before";
    return false;
  }
#define PCCL_FROM_SSL(name, ...)                                        \
  if (!resolve(ssl, #name, out.name)) {                                 \
    why = pair.ssl + " has no " #name;                                  \
    return false;                                                       \
  }
#define PCCL_FROM_CRYPTO(name, ...)                                     \
  if (!resolve(pair.crypto_handle, #name, out.name)) {                  \
    why = pair.crypto + " has no " #name;                               \
    return false;                                                       \
  }
  PCCL_OPENSSL_FUNCTIONS(PCCL_FROM_SSL, PCCL_FROM_CRYPTO)
#undef PCCL_FROM_SSL
#undef PCCL_FROM_CRYPTO
  // Reactors may still run when the process exits: OpenSSL must not take itself down under them.
  if (out.OPENSSL_init_crypto(init_no_atexit, nullptr) != 1) {
    why = "OpenSSL does not start";
    return false;
  }
  out.version = out.OpenSSL_version(version_string);
  out.number = pair.number;
  Dl_info where{};
  const bool known = ::dladdr(reinterpret_cast<void*>(out.OpenSSL_version), &where) != 0;
  out.path = known && where.dli_fname != nullptr ? where.dli_fname : pair.crypto;
  return true;
}

struct Found {
  std::optional<Functions> functions;
  std::string problem;
};

Found search() {
  Found found;
  bool told = false;
  std::vector<Pair> pairs = candidates(told);
  for (Pair& pair : pairs) open_crypto(pair);
  std::stable_sort(pairs.begin(), pairs.end(),
                   [](const Pair& a, const Pair& b) { return a.number > b.number; });
  std::string why = told ? "PCCL_OPENSSL_LIB names no directory with libssl and libcrypto" : "";
  for (const Pair& pair : pairs) {
    if (pair.number < oldest) {
      why = pair.crypto + (pair.number == 0 ? " cannot be loaded" : " is older than 3.0");
      continue;
    }
    Functions functions;
    if (load(pair, functions, why)) {
      found.functions = std::move(functions);
      return found;
    }
  }
  found.problem = "encryption needs OpenSSL 3 or later: " + why + advice;
  return found;
}

const Found& the_one() {
  static const Found found = search();
  return found;
}

}  // namespace

const Functions* find() {
  const Found& found = the_one();
  return found.functions ? &*found.functions : nullptr;
}

const std::string& problem() { return the_one().problem; }

}  // namespace pccl::openssl
