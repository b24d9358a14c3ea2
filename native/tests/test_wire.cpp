// native/tests/test_wire.cpp — data frames: bytes there and back, and everything that is refused.
// The golden bytes are those of tests/wire/data_frames.json, made from the layout alone.
// Ownership: values of each test.
// Threads:   the main thread.
// Errors:    CHECKs.
#include <algorithm>
#include <array>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "check.hpp"
#include "pccl/wire.hpp"
#include "pccl/xxh3.hpp"

using namespace pccl;

namespace {

using HeaderBytes = std::array<std::byte, header_bytes>;

constexpr FrameType types[] = {
    FrameType::open,  FrameType::data,     FrameType::seal,    FrameType::done,
    FrameType::have,  FrameType::ask,      FrameType::offer,   FrameType::message,
    FrameType::grant, FrameType::received, FrameType::refused, FrameType::withdrawn,
    FrameType::held,  FrameType::memory,   FrameType::opened,  FrameType::room,
    FrameType::worker};

constexpr Descriptor averaged{Dtype::f32, ReduceOp::avg, {}, Algorithm::direct, 1u << 20, true};

std::uint32_t good_length(FrameType type) {
  switch (type) {
    case FrameType::open: return open_bytes;
    case FrameType::data:
    case FrameType::message: return 4096;
    case FrameType::seal: return seal_bytes;
    case FrameType::done: return done_bytes;
    case FrameType::have:
    case FrameType::held: return 17;
    case FrameType::offer: return offer_bytes;
    case FrameType::refused: return refused_bytes;
    case FrameType::memory: return ring_name_bytes;
    case FrameType::worker: return 8 + 60;
    case FrameType::ask:
    case FrameType::grant:
    case FrameType::received:
    case FrameType::withdrawn:
    case FrameType::opened:
    case FrameType::room: return 0;
  }
  return 0;
}

FrameHeader sample(FrameType type) {
  FrameHeader header;
  header.type = type;
  header.epoch = 0x01020304;
  header.step = 0x1112131415161718;
  header.tag = 0x21222324;
  header.group = 0x31323334;
  header.shard = 0x4142;
  header.phase = Phase::gather;
  header.flags = good_length(type) > 0 ? flag_hashed : 0;
  header.slice = 0x51525354;
  header.length = good_length(type);
  header.descriptor = 0x61626364;
  header.weight = 1.5;
  header.payload_hash = 0x7172737475767778;
  return header;
}

HeaderBytes bytes_of(const FrameHeader& header) {
  HeaderBytes bytes;
  encode(header, bytes);
  return bytes;
}

bool accepted(const HeaderBytes& bytes) {
  FrameHeader header;
  return decode(bytes, header) == Status::ok;
}

/// `change` is made by somebody who knows how to compute the check field.
template <class Value>
HeaderBytes forged(const FrameHeader& header, std::size_t offset, Value value) {
  HeaderBytes bytes = bytes_of(header);
  std::memcpy(bytes.data() + offset, &value, sizeof value);
  const auto check = static_cast<std::uint32_t>(xxh3_64({bytes.data(), 60}));
  std::memcpy(bytes.data() + 60, &check, sizeof check);
  return bytes;
}

std::string hex(std::span<const std::byte> bytes) {
  constexpr char digits[] = "0123456789abcdef";
  std::string text;
  for (const std::byte byte : bytes) {
    text += digits[std::to_integer<unsigned>(byte) >> 4];
    text += digits[std::to_integer<unsigned>(byte) & 15];
  }
  return text;
}

}  // namespace

TEST(every_field_of_a_header_survives_the_wire) {
  for (const FrameType type : types) {
    const FrameHeader sent = sample(type);
    FrameHeader got;
    CHECK(decode(bytes_of(sent), got) == Status::ok);
    CHECK(got.type == sent.type && got.epoch == sent.epoch && got.step == sent.step);
    CHECK(got.tag == sent.tag && got.group == sent.group && got.shard == sent.shard);
    CHECK(got.phase == sent.phase && got.flags == sent.flags && got.slice == sent.slice);
    CHECK(got.length == sent.length && got.descriptor == sent.descriptor);
    CHECK(got.weight == sent.weight && got.payload_hash == sent.payload_hash);
    CHECK(bytes_of(got) == bytes_of(sent));
  }
}

TEST(a_header_has_the_bytes_that_the_protocol_page_says) {
  CHECK(hex(bytes_of(sample(FrameType::data))) ==
        "7063040204030201181716151413121124232221343332314241010154535251"
        "0010000064636261000000000000f83f787776757473727100000000f095aabe");
  FrameHeader open{.type = FrameType::open, .epoch = 3, .step = 7, .tag = 2};
  std::array<std::byte, descriptor_bytes> descriptor;
  encode(averaged, descriptor);
  std::array<std::byte, open_bytes> opened;
  encode(OpenBody{averaged, 1u << 20, 1u << 20}, opened);
  sign(open, opened);
  open.descriptor = static_cast<std::uint32_t>(averaged.digest());
  open.weight = 2.0;
  CHECK(hex(bytes_of(open)) ==
        "7063040103000000070000000000000002000000000000000000000100000000"
        "30000000697c0cd100000000000000409579a7ba545764eb000000008e521bdc");
  FrameHeader seal{.type = FrameType::seal, .epoch = 3, .step = 7};
  std::array<std::byte, seal_bytes> sealed;
  encode(SealBody{{0x0102030405060708, 0x1112131415161718}, 0x2122232425262728}, sealed);
  sign(seal, sealed);
  CHECK(hex(bytes_of(seal)) ==
        "7063040303000000070000000000000000000000000000000000000100000000"
        "1800000000000000000000000000f03f7626095ce036404400000000afabc2ae");
  FrameHeader done{.type = FrameType::done, .epoch = 3, .step = 7};
  std::array<std::byte, done_bytes> finished;
  encode(DoneBody{{0x0102030405060708, 0x1112131415161718},
                  {0x3132333435363738, 0x4142434445464748}}, finished);
  sign(done, finished);
  CHECK(hex(bytes_of(done)) ==
        "7063040403000000070000000000000000000000000000000000000100000000"
        "2000000000000000000000000000f03f79415aef23c72c99000000002f388f7f");
  FrameHeader have{.type = FrameType::have, .epoch = 3, .step = 7, .tag = 2};
  have.shard = 1;
  have.phase = Phase::gather;
  sign(have, std::array{std::byte{5}, std::byte{6}, std::byte{7}});
  have.descriptor = open.descriptor;
  CHECK(hex(bytes_of(have)) ==
        "7063040503000000070000000000000002000000000000000100010100000000"
        "03000000697c0cd1000000000000f03fbba8de2b15cb371700000000558fc541");
  CHECK(hex(bytes_of(FrameHeader{.type = FrameType::ask})) ==
        "7063040600000000000000000000000000000000000000000000000000000000"
        "0000000000000000000000000000f03f000000000000000000000000ba39ffe3");
  CHECK(hex(descriptor) == "0101000201000000000010000000000000000000000000000000000000000000");
  Descriptor scatter{Dtype::c64, ReduceOp::sum, {}, Algorithm::automatic, 0, false,
                     Collective::scatter, true, {}};
  for (std::uint8_t i = 0; i < 16; ++i) scatter.root.bytes[i] = static_cast<std::uint8_t>(0xa0 + i);
  std::array<std::byte, open_bytes> scattered;
  encode(OpenBody{scatter, 5, 0}, scattered);
  CHECK(hex(scattered) ==
        "0d000000000601000000000000000000a0a1a2a3a4a5a6a7a8a9aaabacadaeaf"
        "05000000000000000000000000000000");
}

TEST(every_flipped_bit_of_a_control_frames_body_is_noticed) {
  std::array<std::byte, done_bytes> body;
  encode(DoneBody{{1, 2}, {3, 4}}, body);
  FrameHeader header{.type = FrameType::done};
  sign(header, body);
  CHECK(intact(header, body.data()));
  for (std::size_t bit = 0; bit < body.size() * 8; ++bit) {
    auto bad = body;
    bad[bit / 8] ^= static_cast<std::byte>(1u << (bit % 8));
    CHECK(!intact(header, bad.data()));
  }
  header.flags = 0;  // who says that it is not hashed is not believed
  CHECK(!intact(header, body.data()));
  FrameHeader ask{.type = FrameType::ask};
  sign(ask, {});
  CHECK(intact(ask, nullptr));
}

TEST(every_flipped_bit_of_a_header_is_noticed) {
  for (const FrameType type : types) {
    const HeaderBytes good = bytes_of(sample(type));
    for (std::size_t bit = 0; bit < header_bytes * 8; ++bit) {
      HeaderBytes bad = good;
      bad[bit / 8] ^= static_cast<std::byte>(1u << (bit % 8));
      CHECK(!accepted(bad));
    }
  }
}

TEST(another_magic_version_type_phase_or_flag_is_refused_though_its_check_is_right) {
  const FrameHeader header = sample(FrameType::data);
  CHECK(accepted(forged(header, 0, std::uint16_t{0x6370})));
  CHECK(!accepted(forged(header, 0, std::uint16_t{0x7063})));
  for (unsigned version = 0; version < 256; ++version) {
    CHECK(accepted(forged(header, 2, static_cast<std::uint8_t>(version))) == (version == 4));
  }
  CHECK(!accepted(forged(header, 3, std::uint8_t{0})));
  for (unsigned type = 18; type < 256; ++type) {
    CHECK(!accepted(forged(header, 3, static_cast<std::uint8_t>(type))));
  }
  for (unsigned phase = 2; phase < 256; ++phase) {
    CHECK(!accepted(forged(header, 26, static_cast<std::uint8_t>(phase))));
  }
  for (unsigned flags = 0; flags < 256; ++flags) {
    const bool fits = flags == flag_hashed || flags == (flag_hashed | flag_ring);
    CHECK(accepted(forged(header, 27, static_cast<std::uint8_t>(flags))) == fits);
    FrameHeader contribution = header;
    contribution.phase = Phase::reduce;
    const bool also = flags == (flag_unhashed | flag_ring);
    CHECK(accepted(forged(contribution, 27, static_cast<std::uint8_t>(flags))) == (fits || also));
    const FrameHeader done = sample(FrameType::done);
    CHECK(accepted(forged(done, 27, static_cast<std::uint8_t>(flags))) == (flags == flag_hashed));
  }
  CHECK(!accepted(forged(header, 56, std::uint32_t{1})));
}

TEST(each_type_has_the_lengths_it_can_have_and_no_other) {
  const auto lengths = [](FrameType type, std::uint32_t length) {
    FrameHeader header = sample(type);
    header.length = length;
    return accepted(bytes_of(header));
  };
  for (std::uint32_t length = 0; length < 128; ++length) {
    CHECK(lengths(FrameType::open, length) == (length == 48));
    CHECK(lengths(FrameType::seal, length) == (length == 24));
    CHECK(lengths(FrameType::done, length) == (length == 32));
    CHECK(lengths(FrameType::ask, length) == (length == 0));
    CHECK(lengths(FrameType::data, length) == (length > 0));
    CHECK(lengths(FrameType::have, length) == (length > 0));
    CHECK(lengths(FrameType::message, length) == (length > 0));
    CHECK(lengths(FrameType::held, length) == (length > 0));
    CHECK(lengths(FrameType::offer, length) == (length == 24));
    CHECK(lengths(FrameType::refused, length) == (length == 16));
    CHECK(lengths(FrameType::memory, length) == (length == 32));
    CHECK(lengths(FrameType::worker, length) == (length > 0));
    for (const auto type : {FrameType::grant, FrameType::received, FrameType::withdrawn,
                            FrameType::opened, FrameType::room}) {
      CHECK(lengths(type, length) == (length == 0));
    }
  }
  for (const FrameType type : types) {
    const bool sized = type == FrameType::data || type == FrameType::have ||
                       type == FrameType::message || type == FrameType::held;
    CHECK(lengths(type, 8193) == sized);
    CHECK(lengths(type, 256 * 1024) == sized);
    CHECK(!lengths(type, 256 * 1024 + 1));
    CHECK(!lengths(type, std::numeric_limits<std::uint32_t>::max()));
  }
}

TEST(a_weight_is_finite_and_not_negative) {
  const FrameHeader header = sample(FrameType::data);
  for (const double bad : {std::numeric_limits<double>::quiet_NaN(),
                           std::numeric_limits<double>::infinity(),
                           -std::numeric_limits<double>::infinity(), -1.0, -5e-324}) {
    CHECK(!accepted(forged(header, 40, bad)));
  }
  for (const double good : {0.0, -0.0, 5e-324, 1.0, std::numeric_limits<double>::max()}) {
    CHECK(accepted(forged(header, 40, good)));
  }
}

TEST(descriptors_survive_the_wire_and_differ_in_their_digests) {
  std::vector<std::uint64_t> digests;
  for (unsigned dtype = 0; dtype < dtype_count; ++dtype) {
    for (unsigned op = 0; op < reduce_op_count; ++op) {
      for (unsigned algorithm = 0; algorithm < algorithm_count; ++algorithm) {
        for (const bool deterministic : {false, true}) {
          const Descriptor sent{static_cast<Dtype>(dtype), static_cast<ReduceOp>(op), {},
                                static_cast<Algorithm>(algorithm), 1ull << 40, deterministic};
          std::array<std::byte, descriptor_bytes> bytes;
          encode(sent, bytes);
          Descriptor got;
          CHECK(decode(bytes, got) == Status::ok);
          CHECK(got == sent && got.digest() == sent.digest());
          digests.push_back(sent.digest());
        }
      }
    }
  }
  for (unsigned kind = 1; kind < codec_kind_count; ++kind) {
    for (std::uint8_t block_log2 = block_log2_min; block_log2 <= block_log2_max; ++block_log2) {
      for (const bool stochastic : {false, true}) {
        Descriptor sent{};
        sent.codec = {static_cast<CodecKind>(kind), block_log2, stochastic};
        std::array<std::byte, descriptor_bytes> bytes;
        encode(sent, bytes);
        Descriptor got;
        CHECK(decode(bytes, got) == Status::ok && got == sent);
        digests.push_back(sent.digest());
      }
    }
  }
  std::sort(digests.begin(), digests.end());
  CHECK(std::adjacent_find(digests.begin(), digests.end()) == digests.end());
}

TEST(a_descriptor_of_unknown_numbers_is_refused) {
  const auto with = [](std::size_t offset, unsigned value) {
    std::array<std::byte, descriptor_bytes> bytes;
    encode(Descriptor{}, bytes);
    bytes[offset] = static_cast<std::byte>(value);
    Descriptor got;
    return decode(bytes, got);
  };
  CHECK(with(0, 19) == Status::ok);
  CHECK(with(0, 20) == Status::protocol);
  CHECK(with(1, 4) == Status::ok);
  CHECK(with(1, 5) == Status::protocol);
  CHECK(with(3, 5) == Status::ok);
  CHECK(with(3, 6) == Status::protocol);
  CHECK(with(4, 1) == Status::ok);
  CHECK(with(4, 2) == Status::protocol);
  CHECK(with(5, 8) == Status::ok);
  CHECK(with(5, 9) == Status::protocol);
  CHECK(with(6, 1) == Status::ok);
  CHECK(with(6, 2) == Status::protocol);
  CHECK(with(2, 1) == Status::protocol);  // a codec without a block
  CHECK(with(7, 8) == Status::protocol);  // and a block without a codec
}

TEST(a_codec_of_unknown_numbers_is_refused) {
  const auto with = [](std::size_t offset, unsigned value) {
    std::array<std::byte, descriptor_bytes> bytes;
    Descriptor quantised{};
    quantised.codec = {CodecKind::int4, 8, false};
    encode(quantised, bytes);
    bytes[offset] = static_cast<std::byte>(value);
    Descriptor got;
    return decode(bytes, got);
  };
  CHECK(with(2, 0) == Status::protocol);
  CHECK(with(2, 3) == Status::ok);
  CHECK(with(2, 4) == Status::protocol);
  CHECK(with(7, 4) == Status::protocol);
  CHECK(with(7, 5) == Status::ok);
  CHECK(with(7, 0x80 | 12) == Status::ok);
  CHECK(with(7, 13) == Status::protocol);
  CHECK(with(7, 0x40 | 8) == Status::protocol);
}

TEST(every_field_of_a_descriptor_is_in_its_digest_and_survives_the_wire) {
  Descriptor other{.collective = Collective::scatter};
  Descriptor uneven{.uneven = true};
  Descriptor rooted;
  rooted.root.bytes[15] = 1;
  Descriptor quantised;
  quantised.codec = {CodecKind::int8, 9, true};
  for (const Descriptor& sent : {other, uneven, rooted, quantised}) {
    CHECK(sent.digest() != Descriptor{}.digest());
    std::array<std::byte, open_bytes> bytes;
    encode(OpenBody{sent, 3, 4}, bytes);
    OpenBody got;
    CHECK(decode(bytes, got) == Status::ok);
    CHECK(got.descriptor == sent && got.sends == 3 && got.receives == 4);
  }
}

TEST(frames_of_unequal_parts_fit_only_who_counts_on_the_same_sizes) {
  const OpenBody even{{}, 3, 4};
  CHECK(even.digest() == even.mirrored().digest());
  CHECK(even.digest() == Descriptor{}.digest());
  const OpenBody mine{{.uneven = true}, 3, 4};
  const OpenBody theirs{{.uneven = true}, 4, 3};
  CHECK(mine.digest() == theirs.mirrored().digest());
  CHECK(mine.digest() != theirs.digest());
  CHECK(mine.digest() != (OpenBody{{.uneven = true}, 3, 5}).digest());
}

TEST(the_bodies_of_seal_and_done_survive_the_wire) {
  const SealBody seal{{0x0102030405060708, 0x1112131415161718}, 0x2122232425262728};
  std::array<std::byte, seal_bytes> sealed;
  encode(seal, sealed);
  CHECK(hex(sealed) == "080706050403020118171615141312112827262524232221");
  SealBody seal_got;
  decode(sealed, seal_got);
  CHECK(seal_got.manifest == seal.manifest && seal_got.operations == seal.operations);

  const DoneBody done{{0x0102030405060708, 0x1112131415161718},
                      {0x3132333435363738, 0x4142434445464748}};
  std::array<std::byte, done_bytes> finished;
  encode(done, finished);
  CHECK(hex(finished) == "0807060504030201181716151413121138373635343332314847464544434241");
  DoneBody done_got;
  decode(finished, done_got);
  CHECK(done_got.manifest == done.manifest && done_got.digest == done.digest);
}
