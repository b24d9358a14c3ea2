// native/tests/test_wire_messages.cpp — frames of messages: bytes there and back, and what is bad.
// The golden bytes are those of tests/wire/data_frames.json, made from the layout alone.
// Ownership: values of each test.
// Threads:   the main thread.
// Errors:    CHECKs.
#include <array>
#include <string>
#include <vector>

#include "check.hpp"
#include "pccl/wire.hpp"
#include "pccl/xxh3.hpp"

using namespace pccl;

namespace {

using HeaderBytes = std::array<std::byte, header_bytes>;

HeaderBytes bytes_of(const FrameHeader& header) {
  HeaderBytes bytes;
  encode(header, bytes);
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

TEST(frames_of_messages_have_the_bytes_that_the_protocol_page_says) {
  const auto of_type = [](FrameType type) {
    return FrameHeader{.type = type, .epoch = 3, .step = 5, .tag = 2};
  };
  FrameHeader offer = of_type(FrameType::offer);
  std::array<std::byte, offer_bytes> offered;
  encode(OfferBody{{Dtype::f32, 1000}, true, 4}, offered);
  sign(offer, offered);
  CHECK(hex(bytes_of(offer)) ==
        "7063040703000000050000000000000002000000000000000000000100000000"
        "1800000000000000000000000000f03f74454fb904eb5e8300000000ec51fec5");
  CHECK(hex(offered) == "0101000000000000e8030000000000000400000000000000");
  FrameHeader chunk = of_type(FrameType::message);
  chunk.slice = 1;
  const std::array bytes{std::byte{1}, std::byte{2}, std::byte{3}};
  sign(chunk, bytes);
  chunk.payload_hash = xxh3_128(bytes, chunk_seed(5, 1)).low;
  CHECK(hex(bytes_of(chunk)) ==
        "7063040803000000050000000000000002000000000000000000000101000000"
        "0300000000000000000000000000f03f2dd558baddd9312200000000d1f43b30");
  FrameHeader grant = of_type(FrameType::grant);
  grant.slice = 1;
  CHECK(hex(bytes_of(grant)) ==
        "7063040903000000050000000000000002000000000000000000000001000000"
        "0000000000000000000000000000f03f00000000000000000000000004254cb4");
  CHECK(hex(bytes_of(of_type(FrameType::received))) ==
        "7063040a03000000050000000000000002000000000000000000000000000000"
        "0000000000000000000000000000f03f000000000000000000000000f87540b7");
  FrameHeader refused{.type = FrameType::refused, .epoch = 3, .step = 5};
  std::array<std::byte, refused_bytes> why;
  encode(RefusedBody{{Dtype::f64, 1000}, RefusalCode::differs}, why);
  sign(refused, why);
  CHECK(hex(bytes_of(refused)) ==
        "7063040b03000000050000000000000000000000000000000000000100000000"
        "1000000000000000000000000000f03fd50b7b75d8cbfe99000000002ee548be");
  CHECK(hex(why) == "0001000000000000e803000000000000");
  CHECK(hex(bytes_of(of_type(FrameType::withdrawn))) ==
        "7063040c03000000050000000000000002000000000000000000000000000000"
        "0000000000000000000000000000f03f0000000000000000000000005f33449c");
  FrameHeader held = of_type(FrameType::held);
  sign(held, std::array{std::byte{5}, std::byte{6}, std::byte{7}});
  CHECK(hex(bytes_of(held)) ==
        "7063040d03000000050000000000000002000000000000000000000100000000"
        "0300000000000000000000000000f03fbba8de2b15cb371700000000bba31bba");
}

TEST(what_is_said_of_a_ring_has_the_bytes_that_the_protocol_page_says) {
  FrameHeader header{.type = FrameType::data, .epoch = 3, .step = 7, .tag = 2};
  header.shard = 1;
  header.flags = flag_unhashed;
  header.slice = 4;
  header.length = 65536;
  header.descriptor = 5;
  std::array<std::byte, header_bytes> bytes;
  encode(header, bytes);
  mark_in_ring(bytes);
  CHECK(hex(bytes) ==
        "7063040203000000070000000000000002000000000000000100000604000000"
        "0000010005000000000000000000f03f000000000000000000000000cba40ab0");
  encode(FrameHeader{.type = FrameType::opened}, bytes);
  CHECK(hex(bytes) ==
        "7063040f00000000000000000000000000000000000000000000000000000000"
        "0000000000000000000000000000f03f000000000000000000000000b35dc796");
  encode(FrameHeader{.type = FrameType::room}, bytes);
  CHECK(hex(bytes) ==
        "7063041000000000000000000000000000000000000000000000000000000000"
        "0000000000000000000000000000f03f000000000000000000000000cf7b3673");
  RingName name{4711, 12, 1u << 21, {}};
  for (unsigned i = 0; i < name.token.size(); ++i) name.token[i] = static_cast<std::byte>(0xa0 + i);
  std::array<std::byte, ring_name_bytes> body;
  encode(name, body);
  CHECK(hex(body) == "671200000c0000000000200000000000a0a1a2a3a4a5a6a7a8a9aaabacadaeaf");
  RingName got;
  CHECK(decode(body, got) == Status::ok && got.process == 4711 && got.descriptor == 12 &&
        got.bytes == 1u << 21 && got.token == name.token);
  body[12] = std::byte{1};
  CHECK(decode(body, got) == Status::protocol);
}

TEST(offers_and_refusals_survive_the_wire_and_unknown_numbers_are_refused) {
  std::array<std::byte, offer_bytes> offered;
  encode(OfferBody{{Dtype::c128, 1u << 30}, false, ~std::uint64_t{0}}, offered);
  OfferBody offer;
  CHECK(decode(offered, offer) == Status::ok);
  CHECK(offer.what == (Content{Dtype::c128, 1u << 30}));
  CHECK(!offer.eager && offer.after == ~std::uint64_t{0});
  const auto offer_with = [&](std::size_t at, unsigned value) {
    auto bytes = offered;
    bytes[at] = static_cast<std::byte>(value);
    return decode(bytes, offer);
  };
  CHECK(offer_with(0, 19) == Status::ok && offer_with(0, 20) == Status::protocol);
  CHECK(offer_with(1, 1) == Status::ok && offer_with(1, 2) == Status::protocol);
  for (std::size_t at = 2; at < 8; ++at) CHECK(offer_with(at, 1) == Status::protocol);
  CHECK(offer_with(14, 1) == Status::protocol);  // more than a message can have
  encode(OfferBody{{.nothing = true}, true, 4}, offered);
  CHECK(hex(offered) == "ff0100000000000000000000000000000400000000000000");
  CHECK(decode(offered, offer) == Status::ok && offer.what == (Content{.nothing = true}));
  CHECK(offer.what != Content{} && offer.what.chunks() == 0 && offer.eager && offer.after == 4);
  CHECK(offer_with(8, 1) == Status::protocol);  // nothing has no elements
  for (const std::uint64_t more : {0, 1}) {
    const Content most{Dtype::f64, message_bytes_max / 8 + more};
    encode(OfferBody{most, false, 0}, offered);
    CHECK(decode(offered, offer) == (more == 0 ? Status::ok : Status::protocol));
    if (more == 0) CHECK(offer.what.chunks() == have_bytes_max * 8);
  }

  std::array<std::byte, refused_bytes> refused;
  encode(RefusedBody{{Dtype::i16, 7}, RefusalCode::given_up}, refused);
  RefusedBody why;
  CHECK(decode(refused, why) == Status::ok);
  CHECK(why.expected == (Content{Dtype::i16, 7}) && why.code == RefusalCode::given_up);
  encode(RefusedBody{{.nothing = true}, RefusalCode::differs}, refused);
  CHECK(hex(refused) == "ff010000000000000000000000000000");
  CHECK(decode(refused, why) == Status::ok && why.expected == (Content{.nothing = true}));
  for (unsigned code = 0; code < 256; ++code) {
    refused[1] = static_cast<std::byte>(code);
    CHECK((decode(refused, why) == Status::ok) == (code == 1 || code == 2));
  }
}

TEST(a_worker_frame_has_the_bytes_that_the_protocol_page_says_and_no_short_one_is_taken) {
  const std::array of_worker{std::byte{0xa0}, std::byte{0xa1}, std::byte{0xa2}, std::byte{0xa3}};
  const std::vector<std::byte> worker =
      worker_body({.name = 0x0102030405060708, .ucx_major = 1, .ucx_minor = 0x0116,
                   .address = of_worker});
  CHECK(hex(worker) == "080706050403020101001601a0a1a2a3");
  FrameHeader reached{.type = FrameType::worker};
  sign(reached, worker);
  CHECK(hex(bytes_of(reached)) ==
        "7063041100000000000000000000000000000000000000000000000100000000"
        "1000000000000000000000000000f03f18121dff1f3e17d5000000008ed5721c");
  CHECK(hex(bytes_of(FrameHeader{.type = FrameType::worker})) ==
        "7063041100000000000000000000000000000000000000000000000000000000"
        "0000000000000000000000000000f03f000000000000000000000000ce841a6a");
  WorkerBody body;
  CHECK(decode(worker, body) == Status::ok && body.name == 0x0102030405060708);
  CHECK(body.ucx_major == 1 && body.ucx_minor == 0x0116);
  CHECK(body.address.size() == 4 && body.address.data() == worker.data() + 12);
  for (std::size_t length = 0; length <= 12; ++length) {
    CHECK(decode(std::span(worker).first(length), body) == Status::protocol);
  }
}
