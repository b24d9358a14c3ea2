// native/src/control/origins.cpp — addresses as they are counted, and turns by them.
// Ownership: see origins.hpp.
// Threads:   see origins.hpp.
// Errors:    see origins.hpp.
#include "control/origins.hpp"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <cstring>
#include <map>
#include <tuple>

namespace pccl {
namespace {

constexpr std::size_t network_bytes = 8;  // of IPv6: one customer may use any address in it

Origin of(const in_addr& v4) noexcept {
  Origin origin;
  origin.bytes[10] = origin.bytes[11] = 0xff;
  std::memcpy(&origin.bytes[12], &v4, sizeof v4);
  return origin;
}

Origin of(const in6_addr& v6) noexcept {
  Origin origin;
  const bool mapped = IN6_IS_ADDR_V4MAPPED(&v6);
  std::memcpy(origin.bytes.data(), &v6, mapped ? sizeof v6 : network_bytes);
  return origin;
}

}  // namespace

Origin origin_of(int fd) noexcept {
  sockaddr_storage storage{};
  socklen_t bytes = sizeof storage;
  if (::getpeername(fd, reinterpret_cast<sockaddr*>(&storage), &bytes) != 0) return {};
  if (storage.ss_family == AF_INET) {
    sockaddr_in v4{};
    std::memcpy(&v4, &storage, sizeof v4);
    return of(v4.sin_addr);
  }
  if (storage.ss_family != AF_INET6) return {};
  sockaddr_in6 v6{};
  std::memcpy(&v6, &storage, sizeof v6);
  return of(v6.sin6_addr);
}

std::optional<Origin> origin_of(const std::string& literal) noexcept {
  in_addr v4{};
  in6_addr v6{};
  if (::inet_pton(AF_INET, literal.c_str(), &v4) == 1) return of(v4);
  if (::inet_pton(AF_INET6, literal.c_str(), &v6) == 1) return of(v6);
  return std::nullopt;
}

bool KnownOrigins::holds(const Origin& origin) const noexcept {
  const auto among = [&](const std::vector<Origin>& some) {
    return std::find(some.begin(), some.end(), origin) != some.end();
  };
  return among(expected_) || among(proven_);
}

void KnownOrigins::prove(const Origin& origin) {
  if (origin == Origin{} || std::find(proven_.begin(), proven_.end(), origin) != proven_.end()) {
    return;
  }
  if (proven_.size() >= proven_max) proven_.erase(proven_.begin());
  proven_.push_back(origin);
}

std::optional<std::uint64_t> place_for(const Origin& newcomer, std::span<const Place> held,
                                       PlacesMax most) {
  using Stage = Place::Stage;
  const auto own = static_cast<std::size_t>(std::count_if(
      held.begin(), held.end(), [&](const Place& place) { return place.origin == newcomer; }));
  const bool is_over = own >= most.per_origin;
  if (!is_over && held.size() < most.total) return 0;
  std::map<decltype(Origin::bytes), std::size_t> counts;
  std::size_t fullest = 0;
  for (const Place& place : held) fullest = std::max(fullest, ++counts[place.origin.bytes]);
  const bool own_only = is_over || own + 1 > fullest;
  // Less goes first.
  const auto rank = [&](const Place& place) {
    const std::size_t count = counts[place.origin.bytes];
    const std::uint64_t age = place.stage == Stage::waiting ? ~place.serial : place.serial;
    return std::tuple(place.stage == Stage::under_way, fullest - count, place.stage, age);
  };
  const Place* victim = nullptr;
  for (const Place& place : held) {
    const std::size_t count = counts[place.origin.bytes];
    const bool may_go = own_only ? place.origin == newcomer && place.stage == Stage::silent
                                 : count == fullest || count > own + 1;
    if (may_go && (victim == nullptr || rank(place) < rank(*victim))) victim = &place;
  }
  if (victim == nullptr) return std::nullopt;
  return victim->serial;
}

void HandshakePace::ask(std::uint64_t serial, const Origin& origin) {
  std::uint64_t turn = round_;
  for (const Waiting& other : waiting_) {
    if (other.origin == origin) turn = std::max(turn, other.turn + 1);
  }
  waiting_.push_back({serial, origin, turn});
}

void HandshakePace::forget(std::uint64_t serial) noexcept {
  std::erase_if(waiting_, [&](const Waiting& one) { return one.serial == serial; });
}

std::optional<std::uint64_t> HandshakePace::grant(double now_s) noexcept {
  refill(now_s);
  if (waiting_.empty() || tokens_ < 1) return std::nullopt;
  const auto next =
      std::min_element(waiting_.begin(), waiting_.end(),
                       [](const Waiting& a, const Waiting& b) { return a.turn < b.turn; });
  const std::uint64_t serial = next->serial;
  // Who asks again after this stands behind all that wait for their first.
  round_ = std::max(round_, next->turn + 1);
  waiting_.erase(next);
  tokens_ -= 1;
  return serial;
}

std::optional<double> HandshakePace::wait_s(double now_s) noexcept {
  if (waiting_.empty()) return std::nullopt;
  refill(now_s);
  return tokens_ >= 1 ? 0.0 : (1 - tokens_) / rate_per_s_;
}

void HandshakePace::refill(double now_s) noexcept {
  tokens_ = std::min(burst_, tokens_ + std::max(0.0, now_s - at_s_) * rate_per_s_);
  at_s_ = now_s;
}

}  // namespace pccl
