// native/src/ucx/stream.hpp — one conduit's half of a stream of messages, as UCX sees it.
//
// Invariant: message k lies in place k modulo messages_max of either side's memory, and is sent
//            only when the other end has said that message k - messages_max has been taken.
//            Whatever a header says, nothing is written outside these places, nor over one that is
//            not free.
//
// Ownership: the worker owns streams; an ended one lives until UCX has completed all its requests.
// Threads:   under the engine's turn; UCX calls back within progress and within calls to it.
// Errors:    Status; a stream that failed stays so.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "pccl/conduit.hpp"
#include "ucx/library.hpp"

namespace pccl {

/// What every stream of a worker uses.
struct UcpContext {
  const UcpLibrary& library;
  ucp::Context context = nullptr;
  ucp::Worker worker = nullptr;
};

class UcxStream {
 public:
  static constexpr std::uint32_t messages_max = 8;  // under way, per direction
  /// A slice of 256 KiB with its header and a few small frames before it.
  static constexpr std::size_t message_bytes = (256 + 4) * 1024;
  static constexpr unsigned data_id = 1;
  static constexpr unsigned taken_id = 2;  // a header alone

  struct Header {
    std::uint64_t stream = 0;    // its receiver's name for it, which strangers cannot know
    std::uint32_t sequence = 0;
    std::uint32_t taken = 0;     // messages of the other direction that the sender has taken
  };
  static_assert(sizeof(Header) == 16);

  /// Null without memory.
  static std::unique_ptr<UcxStream> make(const UcpContext& ucp, std::uint64_t name) noexcept;
  ~UcxStream();
  UcxStream(const UcxStream&) = delete;
  UcxStream& operator=(const UcxStream&) = delete;

  const std::uint64_t name;

  /// Says also a first word, so that the other end hears whether UCX gets through.
  bool connect(std::uint64_t other, const void* address) noexcept;
  Status send(std::span<const iovec> parts, std::size_t& sent) noexcept;
  Status receive(std::span<const iovec> parts, std::size_t& got, bool& drained) noexcept;
  /// Says how much has been taken, unless that was said.
  void tell_taken() noexcept;
  /// The same once it is worth a message.
  void tell_if_due() noexcept;

  /// Time passes, of which no more counts than a running reactor lets pass between two calls: who
  /// owes bytes and has never heard a word fails.
  void wait(double now_s) noexcept;
  /// Something has come through UCX, ever.
  [[nodiscard]] bool heard() const noexcept { return heard_; }
  /// It has failed, or has waited for the first word for longer than that takes.
  [[nodiscard]] bool doubtful() const noexcept;

  [[nodiscard]] bool failed() const noexcept { return failed_; }
  [[nodiscard]] bool readable() const noexcept;
  [[nodiscard]] bool writable() const noexcept;
  /// What whoever watches it is to be told.  Before connect() nothing: what has come by then, or
  /// gone wrong, waits for the answer on the connection, and the reactor sleeps until that is here.
  [[nodiscard]] std::uint32_t ready_bits() const noexcept;
  [[nodiscard]] std::uint64_t sent_bytes() const noexcept { return sent_bytes_; }
  [[nodiscard]] std::uint64_t taken_bytes() const noexcept { return taken_bytes_; }
  [[nodiscard]] std::size_t requests() const noexcept { return requests_; }
  /// True once, when the first message has come: by then UCX has chosen its transports.
  [[nodiscard]] bool settled() noexcept;
  /// "tcp/eth0", ...; `rdma`: by more than that.
  [[nodiscard]] std::string transports(bool& rdma) const;

  /// Nothing more is sent or received; over() once UCX holds nothing of it.
  void end() noexcept;
  [[nodiscard]] bool over() const noexcept { return ended_ && requests_ == 0; }

  /// UCX has a message for this stream.
  ucp::Ucs hear(unsigned id, const Header& header, void* data, std::size_t bytes,
                bool rendezvous) noexcept;

  // Of whoever watches it.
  std::uint64_t token = 0;
  bool watched = false;
  bool wants_write = false;

 private:
  enum class State : std::uint8_t { free, coming, here };
  struct Place {
    UcxStream* stream = nullptr;
    std::byte* memory = nullptr;
    void* request = nullptr;
    std::size_t length = 0;
    State state = State::free;  // of a place to send from: coming means that UCX still reads it
    Header header;
  };

  UcxStream(const UcpContext& ucp, std::uint64_t its_name, std::byte* memory,
            ucp::Memory registered) noexcept;
  static void on_sent(void* request, ucp::Ucs status, void* place) noexcept;
  static void on_received(void* request, ucp::Ucs status, std::size_t length,
                          void* place) noexcept;
  static void on_closed(void* request, ucp::Ucs status, void* stream) noexcept;
  static void on_error(void* stream, ucp::Endpoint endpoint, ucp::Ucs status) noexcept;
  void start(unsigned id, Place& place) noexcept;
  ucp::Ucs take_in(Place& place, void* data, std::size_t bytes, bool rendezvous) noexcept;

  const UcpContext& ucp_;
  std::byte* memory_;
  ucp::Memory registered_;
  ucp::Endpoint endpoint_ = nullptr;
  std::uint64_t other_ = 0;
  std::array<Place, messages_max> in_;
  std::array<Place, messages_max> out_;
  Place word_;                    // the message that only says what has been taken
  std::uint32_t sent_ = 0;        // messages
  std::uint32_t other_took_ = 0;
  std::uint32_t taken_ = 0;
  std::uint32_t told_ = 0;        // of taken_
  std::size_t read_ = 0;          // bytes of the message that is being taken
  std::uint64_t sent_bytes_ = 0;
  std::uint64_t taken_bytes_ = 0; // by the other end
  double looked_s_ = 0;           // when wait() was called
  double silent_s_ = 0;           // for so long bytes have been owed and no word was heard
  std::size_t requests_ = 0;
  bool failed_ = false;
  bool ended_ = false;
  bool settled_ = false;
  bool heard_ = false;
};

}  // namespace pccl
