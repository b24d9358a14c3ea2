// native/src/control/origins.hpp — where strangers come from, and whose turn it is among them.
//
// Anybody may connect, and ask for a handshake that costs a millisecond of computing.  So origins
// take turns, as much as possible is left to those where members of the view are, and only so many
// handshakes begin per second, whoever asks.  Pure: told the time.
//
// An origin is an IPv4 address, or the network that one customer gets of IPv6.
//
// Ownership: values.
// Threads:   one.
// Errors:    only std::bad_alloc is thrown.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace pccl {

struct Origin {
  std::array<std::uint8_t, 16> bytes{};
  friend bool operator==(const Origin&, const Origin&) = default;
};

/// Of the other end of a connected socket; zeros if it is gone.
[[nodiscard]] Origin origin_of(int fd) noexcept;
/// Of a literal address; none if it is no such thing.
[[nodiscard]] std::optional<Origin> origin_of(const std::string& literal) noexcept;

/// Where members are: as the view tells, and as they have proved, who may come from where nobody
/// knew of, from behind a NAT or a proxy.
class KnownOrigins {
 public:
  void expect(std::vector<Origin> origins) noexcept { expected_ = std::move(origins); }
  /// Somebody from there has shown to be a member.  Beyond proven_max the eldest is forgotten.
  void prove(const Origin& origin);
  [[nodiscard]] bool holds(const Origin& origin) const noexcept;
  static constexpr std::size_t proven_max = 1024;

 private:
  std::vector<Origin> expected_;
  std::vector<Origin> proven_;  // in order of their first proof
};

/// A connection of somebody who has not proved himself yet.
struct Place {
  enum class Stage : std::uint8_t {
    silent,    // has not said what it wants
    waiting,   // for its turn
    under_way  // its handshake has begun, or it has proved itself
  };
  std::uint64_t serial = 0;  // grows with every one that comes; never 0
  Origin origin;
  Stage stage = Stage::silent;
};

struct PlacesMax {
  std::size_t total = 0;
  std::size_t per_origin = 0;
};

/// Whose place one more from `newcomer` takes; 0: there is a free one; none: it is refused.
/// The fullest origin gives: its eldest silent one, then its newest that waits.  One that is under
/// way goes only where all of the fullest origin are and no other has more than the newcomer's
/// would.  Who comes from the fullest origin takes the place of a silent one from there or none, so
/// that a crowd of one origin does not keep itself from ending handshakes.
[[nodiscard]] std::optional<std::uint64_t> place_for(const Origin& newcomer,
                                                     std::span<const Place> held, PlacesMax most);

/// Grants `burst` at once and `rate_per_s` in the long run; origins take turns.
class HandshakePace {
 public:
  HandshakePace(double rate_per_s, double burst) noexcept
      : rate_per_s_(rate_per_s), burst_(burst), tokens_(burst) {}

  void ask(std::uint64_t serial, const Origin& origin);
  void forget(std::uint64_t serial) noexcept;
  /// Whose handshake begins now; none if nobody waits, or all must wait a little.
  std::optional<std::uint64_t> grant(double now_s) noexcept;
  /// Seconds until grant() has somebody; none while nobody waits.
  [[nodiscard]] std::optional<double> wait_s(double now_s) noexcept;
  [[nodiscard]] std::size_t waiting() const noexcept { return waiting_.size(); }

 private:
  struct Waiting {
    std::uint64_t serial = 0;
    Origin origin;
    std::uint64_t turn = 0;  // the round of turns in which it is served
  };
  void refill(double now_s) noexcept;

  double rate_per_s_;
  double burst_;
  double tokens_;
  double at_s_ = 0;
  std::uint64_t round_ = 0;
  std::vector<Waiting> waiting_;  // in order of arrival; some dozens
};

}  // namespace pccl
