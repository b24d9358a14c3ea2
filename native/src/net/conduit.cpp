// native/src/net/conduit.cpp — how a conduit that is its descriptor is watched.
// Ownership: see conduit.hpp.
// Threads:   see conduit.hpp.
// Errors:    see conduit.hpp.
#include "pccl/conduit.hpp"

#include "pccl/poller.hpp"

namespace pccl {

Status Conduit::watch(Poller& poller, std::uint64_t token) noexcept {
  return poller.add(fd(), ready::read, token);
}

void Conduit::unwatch(Poller& poller) noexcept { poller.remove(fd()); }

Status Conduit::want_write(Poller& poller, std::uint64_t token, bool wanted) noexcept {
  return poller.modify(fd(), ready::read | (wanted ? ready::write : 0u), token);
}

}  // namespace pccl
