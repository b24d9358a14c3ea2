// native/fuzz/fuzz_ring.cpp — the two ends of a payload ring, and a third hand in its counters.
//
// While nobody else writes there, what is produced comes out once, whole and in order.  Once the
// counters say what they like, as the other process's may, no place that is given out lies outside
// the payloads' part of the file, and a name that was changed opens nothing.
//
// To make a ring costs a file, three mappings and all of their pages, so one serves all inputs:
// each begins where both sides' positions are one and the same multiple of the ring's size, on
// which nothing depends but how high the counters are.
//
// Ownership: one ring for all inputs; the third hand maps its first page.
// Threads:   one.
// Errors:    abort.
#include <sys/mman.h>

#include <deque>

#include "fuzz/pieces.hpp"
#include "pccl/payload_ring.hpp"

using namespace pccl;
using fuzz::require;

namespace {

using namespace ring_layout;
constexpr std::size_t steps_max = 48;

/// Both ends, and the counters.
struct Ring {
  Ring() : writer(PayloadRing::make()) {
    require(writer != nullptr);
    reader = PayloadRing::open(writer->name());
    require(reader != nullptr);
    page = static_cast<std::byte*>(::mmap(nullptr, payloads_at, PROT_READ | PROT_WRITE, MAP_SHARED,
                                          static_cast<int>(writer->name().descriptor), 0));
    require(page != MAP_FAILED);
    written = writer->reserve(1);  // of a ring that is empty: its front
    read = reader->front(0);
    require(written != nullptr && read != nullptr);
  }
  std::uint64_t get(std::size_t at) const {
    std::uint64_t value = 0;
    std::memcpy(&value, page + at, sizeof value);
    return value;
  }
  void put(std::size_t at, std::uint64_t value) const {
    std::memcpy(page + at, &value, sizeof value);
  }
  /// Both sides go on at the next multiple of the ring's size.
  void begin() const {
    writer->produce(0);  // says where it is
    static_cast<void>(reader->consume(0));
    const std::uint64_t far = std::max(get(produced_at), get(consumed_at));
    const std::uint64_t target = (far / ring_bytes + 1) * ring_bytes;
    while (get(produced_at) < target) {
      writer->produce(ring_bytes - get(produced_at) % ring_bytes);
    }
    while (get(consumed_at) < target) {
      static_cast<void>(reader->consume(ring_bytes - get(consumed_at) % ring_bytes));
    }
    put(waits_at, 0);
  }
  std::unique_ptr<PayloadRing> writer;
  std::unique_ptr<PayloadRing> reader;
  std::byte* page = nullptr;
  std::byte* written = nullptr;     // where the writer's payloads begin
  const std::byte* read = nullptr;  // and the reader's
};

class Story {
 public:
  Story(const Ring& ring, fuzz::Pieces input)
      : input_(input), ring_(ring), writer_(*ring.writer), reader_(*ring.reader) {}

  void run() {
    if (input_.number<std::uint8_t>() >= 250) return change(writer_.name());
    ring_.begin();
    for (std::size_t i = 0; i < steps_max && !input_.empty(); ++i) step();
  }

 private:
  /// Of another size, file or token there is no ring.
  void change(RingName name) {
    const auto how = input_.number<std::uint8_t>();
    const auto by = static_cast<std::uint8_t>(1 + input_.number<std::uint8_t>() % 255);
    switch (how % 3) {
      case 0: name.token[by % name.token.size()] ^= static_cast<std::byte>(by); break;
      case 1: name.descriptor = by % 3u; break;
      default: name.bytes ^= by;
    }
    require(PayloadRing::open(name) == nullptr);
  }

  std::size_t bytes() {
    const auto some = input_.number<std::uint16_t>();
    return 1 + (some % 5 == 0 ? some * 4u : some % 5 == 1 ? slice_bytes_max - 1 - some % 9 : some);
  }

  void step() {
    const auto kind = input_.number<std::uint8_t>();
    switch (kind % 16) {
      case 0:
      case 1:
      case 2:
      case 3:
      case 4: produce(bytes()); break;
      case 5:
      case 6:
      case 7:
      case 8: consume(); break;
      case 9: produce(ring_payload_min); break;
      case 10: static_cast<void>(writer_.await_room(bytes())); break;
      case 11: {
        require(honest_ ? writer_.empty() == sent_.empty() : true);
        break;
      }
      case 12: put(produced_at); break;
      case 13: put(consumed_at); break;
      case 14: put(waits_at); break;
      default: any_front(bytes()); break;
    }
  }

  void put(std::size_t at) {
    if (input_.number<std::uint8_t>() < 128) return;  // so that some stories stay honest for long
    const auto by = input_.number<std::uint64_t>();
    const bool near = (by & 1) != 0;
    ring_.put(at, near ? ring_.get(at) + (by >> 1) % (4 * ring_bytes) - 2 * ring_bytes : by);
    honest_ = false;
  }

  /// It lies within the payloads of its side's mapping; its ends can be touched.
  template <class Byte>
  static void check_place(Byte* place, Byte* front, std::size_t bytes) {
    require(place >= front && place + bytes <= front + ring_bytes);
  }

  void produce(std::size_t bytes) {
    std::byte* room = writer_.reserve(bytes);
    if (room == nullptr) {
      require(!honest_ || !sent_.empty());  // an empty ring has room for any payload
      return;
    }
    check_place(room, ring_.written, bytes);
    const auto stamp = static_cast<std::byte>(++stamps_);
    room[0] = room[bytes / 2] = room[bytes - 1] = stamp;
    writer_.produce(bytes);
    sent_.push_back({bytes, stamp});
  }

  void consume() {
    if (sent_.empty()) return;
    const auto [bytes, stamp] = sent_.front();
    const std::byte* found = reader_.front(bytes);
    require(!honest_ || found != nullptr);
    if (found == nullptr) return;
    check_place(found, ring_.read, bytes);
    if (honest_) {
      require(found[0] == stamp && found[bytes / 2] == stamp && found[bytes - 1] == stamp);
    }
    touched_ += std::to_integer<unsigned>(found[bytes - 1]);
    static_cast<void>(reader_.consume(bytes));
    sent_.pop_front();
    require(!honest_ || writer_.empty() == sent_.empty());
  }

  /// A header may name a length that nobody has written.
  void any_front(std::size_t bytes) {
    const std::byte* found = reader_.front(bytes);
    if (found == nullptr) return;
    check_place(found, ring_.read, bytes);
    require(!honest_ || !sent_.empty());
    if (honest_) return;  // to take it would be to leave the order
    static_cast<void>(reader_.consume(bytes));
  }

  struct Sent {
    std::size_t bytes;
    std::byte stamp;
  };

  fuzz::Pieces input_;
  const Ring& ring_;
  PayloadRing& writer_;
  PayloadRing& reader_;
  std::deque<Sent> sent_;
  unsigned stamps_ = 0;
  unsigned touched_ = 0;
  bool honest_ = true;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const Ring ring;
  Story(ring, fuzz::Pieces(data, size)).run();
  return 0;
}
