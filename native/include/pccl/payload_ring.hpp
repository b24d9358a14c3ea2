// native/include/pccl/payload_ring.hpp — memory through which two processes of one machine pass
// payloads.
//
// One side makes it and writes, the other one opens it by the maker's process number and descriptor
// and reads; each direction of a lane has its own.  Headers stay on the lane's socket, so order,
// wake-ups, silence and death are the socket's matter, and where there is no ring payloads go that
// way, too.
//
//   token, produced, consumed (both only grow), whether the writer waits for room, the payloads,
//   each in one piece: what does not fit before the end begins at the front again; bytes:
//   ring_layout
//
// The two trust each other's payloads (they take them into their sums), not each other's counters:
// whatever those say, no access is out of bounds.  The file cannot shrink (it is sealed), so no
// access faults either.
//
// Ownership: unmaps and closes what it holds.
// Threads:   under the engine's turn; the counters are shared with another process.
// Errors:    null where memory, descriptor or /proc say no: the lane goes without.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "pccl/fd.hpp"
#include "pccl/wire.hpp"

namespace pccl {

inline constexpr std::uint32_t ring_bytes = 2u << 20;
/// Below it a copy through the kernel costs no more than what it is sent with anyway.
inline constexpr std::uint32_t ring_payload_min = 16384;
// Who waits has room when half of the ring is free, whatever is lost at its end; and all that one
// lane holds back behind a parked frame fits into the other half, so it is read without that room.
static_assert(ring_bytes / 2 >= 2 * slice_bytes_max && slice_bytes_max >= chunk_bytes_max);

/// Where it is in the file; counters have cache lines of their own, payloads their own pages.
namespace ring_layout {
inline constexpr std::size_t token_at = 0;
inline constexpr std::size_t produced_at = 64;
inline constexpr std::size_t consumed_at = 128;
inline constexpr std::size_t waits_at = 192;
inline constexpr std::size_t payloads_at = 4096;
}  // namespace ring_layout

class PayloadRing {
 public:
  /// A new one, to write to.
  static std::unique_ptr<PayloadRing> make() noexcept;
  /// The other side's, to read from.
  static std::unique_ptr<PayloadRing> open(const RingName& name) noexcept;
  ~PayloadRing();
  PayloadRing(const PayloadRing&) = delete;
  PayloadRing& operator=(const PayloadRing&) = delete;

  // --- the writer's side ---
  [[nodiscard]] const RingName& name() const noexcept { return name_; }
  /// The reader has it open; from now on the descriptor is not needed.
  void opened() noexcept;
  [[nodiscard]] bool ready() const noexcept { return ready_; }
  /// Room for one payload, or null.
  [[nodiscard]] std::byte* reserve(std::size_t bytes) noexcept;
  /// There was no room: asks to be told when there is.  False: there is room by now.
  [[nodiscard]] bool await_room(std::size_t bytes) noexcept;
  /// How far the reader has come, as the sum of what it has taken.
  [[nodiscard]] std::uint64_t taken() const noexcept;
  /// The reader has taken everything.
  [[nodiscard]] bool empty() const noexcept { return taken() == position_; }
  /// What was reserved is written.
  void produce(std::size_t bytes) noexcept;

  // --- the reader's side ---
  /// The next payload, or null if the writer has not written that much.
  [[nodiscard]] const std::byte* front(std::size_t bytes) const noexcept;
  /// The front payload is not needed any more.  True: the writer waits for room and has some now.
  [[nodiscard]] bool consume(std::size_t bytes) noexcept;

 private:
  PayloadRing(std::byte* memory, const RingName& name, Fd file) noexcept;
  /// Where a payload that comes at `position` begins, as a position.
  [[nodiscard]] static std::uint64_t begin_of(std::uint64_t position, std::size_t bytes) noexcept;

  std::byte* memory_;
  RingName name_;
  Fd file_;
  bool ready_ = false;
  std::uint64_t position_ = 0;  // of this side
};

}  // namespace pccl
