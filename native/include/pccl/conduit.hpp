// native/include/pccl/conduit.hpp — a connected, ordered, reliable stream of bytes.
//
// Lanes and control connections move their frames through one and do not know what it is made of: a
// TCP socket (make_socket_conduit), or something that encrypts, or another kind of wire.
//
// Invariants: bytes come out in the order in which they went in, or not at all.  The poller tells
//             of fd() whenever receive() may give something after it said `drained`, and, if it is
//             asked for ready::write, whenever send() or flush() may get further.
// Ownership:  owns its descriptor.  Bytes that send() has taken are the conduit's; it keeps no
//             reference to memory of the caller.
// Threads:    one at a time.
// Errors:     a Status; after any other than ok and would_block it is of no more use.
#pragma once

#include <sys/uio.h>

#include <cstdint>
#include <memory>
#include <span>
#include <string_view>

#include "pccl/fd.hpp"
#include "pccl/sockets.hpp"
#include "pccl/status.hpp"
#include "pccl/types.hpp"

namespace pccl {

class Poller;

class Conduit {
 public:
  Conduit() = default;
  Conduit(const Conduit&) = delete;
  Conduit& operator=(const Conduit&) = delete;
  virtual ~Conduit() = default;

  /// Gets further with what must happen before bytes can pass.  ok: they pass now.  would_block: it
  /// waits for the other side, or, if wants_write(), for room.  protocol: the other end did not
  /// prove what it has to; refusal() says what was wrong.
  virtual Status establish() noexcept { return Status::ok; }
  [[nodiscard]] virtual std::string_view refusal() const noexcept { return {}; }
  /// Whether the other end may call itself that; a stream that proves nothing believes it.
  [[nodiscard]] virtual bool proves(const PeerId&) const noexcept { return true; }
  /// From the next byte on, both ways, each frame-sized piece is sealed by itself: for lanes, whose
  /// bytes cost less that way.  Both ends call it at the same place of the stream.
  virtual Status seal_in_bulk() noexcept { return Status::ok; }

  /// What the poller watches.
  [[nodiscard]] virtual int fd() const noexcept = 0;
  /// Has the poller tell of this conduit under `token`, if it can read.  One that is more than its
  /// descriptor tells of itself in other ways, too, under the same token.
  virtual Status watch(Poller& poller, std::uint64_t token) noexcept;
  virtual void unwatch(Poller& poller) noexcept;
  /// From now on, or no longer, tells also that it can write.
  virtual Status want_write(Poller& poller, std::uint64_t token, bool wanted) noexcept;

  /// Takes bytes of the parts, in order; with ok `sent` says how many, at least one.
  /// would_block: none, for now.
  virtual Status send(std::span<const iovec> parts, std::size_t& sent) noexcept = 0;
  /// Passes on what was taken and still lies here.  ok also if some of it must wait.
  virtual Status flush() noexcept { return Status::ok; }
  /// Something that was taken still lies here; flush() when the descriptor is writable.
  [[nodiscard]] virtual bool wants_write() const noexcept { return false; }

  /// Fills the parts, in order; with ok `got` says how far, at least one byte.  `drained`: there
  /// was no more, neither here nor, as far as a short read shows, in the kernel.
  /// would_block: nothing has come.  closed: the other side ended the stream, between two bytes.
  virtual Status receive(std::span<const iovec> parts, std::size_t& got,
                         bool& drained) noexcept = 0;
  /// Bytes that have come and lie here, of which the poller does not tell.
  [[nodiscard]] virtual bool holds_received() const noexcept { return false; }

  /// Counts what the other side's machine has acknowledged, in bytes of the wire; never goes down.
  /// One system call, and none while all is acknowledged.
  [[nodiscard]] virtual std::uint64_t acknowledged() noexcept = 0;
  /// As of the last call of acknowledged(): there was more that was not.
  [[nodiscard]] virtual bool owing() const noexcept = 0;
  /// Bytes have come that nobody has received.
  [[nodiscard]] virtual bool unread() const noexcept = 0;
  [[nodiscard]] virtual PathState path() const noexcept = 0;
  /// Both ends are in one and the same machine's network.
  [[nodiscard]] virtual bool local() const noexcept = 0;

  /// Ends the stream both ways at once; whoever looks at it next finds it closed.
  virtual void shut() noexcept = 0;
  /// Gives the descriptor away and leaves nothing behind; null (no descriptor) if the stream is
  /// more than its descriptor.
  [[nodiscard]] virtual Fd release() noexcept { return {}; }
  /// Gives the descriptor away although the stream was more than that: what follows is bare, at
  /// both ends.  Null if bytes of the stream still lie here.
  [[nodiscard]] virtual Fd strip() noexcept { return release(); }
};

/// A TCP socket as it is.
std::unique_ptr<Conduit> make_socket_conduit(Fd socket);

}  // namespace pccl
