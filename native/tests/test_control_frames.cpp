// native/tests/test_control_frames.cpp — the control frame codec, byte for byte.
// Ownership: none.
// Threads:   one.
// Errors:    CHECK.
#include <string>
#include <string_view>
#include <vector>

#include "check.hpp"
#include "pccl/control_frames.hpp"
#include "pccl/crc32.hpp"

namespace {

using namespace pccl;
using Bytes = std::vector<std::byte>;

template <class Id>
Id id(std::uint8_t fill) {
  Id value;
  value.bytes.fill(fill);
  return value;
}

Digest digest(std::uint8_t fill) {
  const std::uint64_t word = 0x0101010101010101ULL * fill;
  return {word, word};
}

struct Vector {
  frames::Frame frame;
  std::string_view hex;  // as the coordinator's codec writes it
};

/// One of each type, with every field set.
std::vector<Vector> vectors() {
  HeartbeatStatus status{1, 2, 3, 4, 5, 9, Waiting::peers, {}, {}, {}};
  status.waits = {{id<PeerId>(10), WaitKind::credit}};
  status.down = {id<PeerId>(7), id<PeerId>(8)};
  status.relayed = {id<PeerId>(11)};
  Report report{1, 2, 3, true, 4, 5, 6, {7, 8}, {}, {}};
  report.open.push_back({9, 10, true, false, true, digest(11), digest(12), 13, true});
  report.failed.push_back({4, SuspectCode::deadline});
  return {
      {frames::Hello{Purpose::data_lane, id<RunId>(1), id<PeerId>(2), 3, id<Secret>(4), 5, 6, 7},
       "4c00000095a36ea1332f1f10c10104010101010101010101010101010101010102020202020202020202020202"
       "02020203000000000000000404040404040404040404040404040405000000060000000000000007000000"},
      {frames::Welcome{7}, "0b00000074ca7c585e0817a6c102040700000000000000"},
      {frames::Refused{3, "n\xC3\xA9"}, "09000000c051d5ff14b013b0c103040303006ec3a9"},
      {frames::Heartbeat{status, 6, 7},
       "7f00000039cd7fc56bbdaf47c10404010000000000000002000000030000000000000004000000000000000500"
       "000000000000060000000700000009000000000000000201000a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a03020007"
       "0707070707070707070707070707070808080808080808080808080808080801000b0b0b0b0b0b0b0b0b0b0b0b"
       "0b0b0b0b"},
      {frames::Pong{9, 10}, "0f000000c78d5a5ca83bfc9cc1050409000000000000000a000000"},
      {frames::Flush{11, 12}, "0f0000005f696be92ecab537c106040b000000000000000c000000"},
      {report,
       "80000000842e09979bad58d9c10704010000000000000002000000030000000104000000000000000500000000"
       "0000000600000000000000020007000000000000000800000000000000010009000000000000000a0000000d0b"
       "0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0d00000000000000010004000000"
       "0000000003"},
      {Suspect{1, 2, SuspectCode::deadline, {id<PeerId>(4)}, "late"},
       "2800000068b99ba6f5e9acd6c10804010000000200000000000000030100040404040404040404040404040404"
       "0404006c617465"},
      {frames::Evicted{14, "gone"}, "110000009078528ddbf61529c109040e000000000000000400676f6e65"},
      {frames::PeerBeat{15, 16, 17},
       "17000000f171ce489ca7cb55c10a040f00000010000000000000001100000000000000"},
      {frames::Routes{18, 19, {{id<PeerId>(20), id<PeerId>(21)}}},
       "31000000b21a2b273f64f559c10b04120000000000000013000000010014141414141414141414141414141414"
       "15151515151515151515151515151515"},
      {frames::Relay{id<PeerId>(22), 23, 24, true},
       "240000003f7b24e4441b7dbec10c04161616161616161616161616161616161700000000000000180000000000"
       "000001"},
      {frames::Call{id<PeerId>(25), 26, 27},
       "230000003055592f62752f48c10d04191919191919191919191919191919191a000000000000001b0000000000"
       "0000"},
  };
}

std::string hex(const Bytes& bytes) {
  constexpr std::string_view digits = "0123456789abcdef";
  std::string text;
  for (const std::byte b : bytes) {
    text += digits[std::to_integer<std::size_t>(b) >> 4];
    text += digits[std::to_integer<std::size_t>(b) & 15];
  }
  return text;
}

Bytes encoded(const frames::Frame& frame) {
  Bytes out;
  CHECK(frames::encode(frame, out) == Status::ok);
  return out;
}

Bytes body_of(const frames::Frame& frame) {
  Bytes out = encoded(frame);
  out.erase(out.begin(), out.begin() + frames::head_bytes);
  return out;
}

bool refused(const Bytes& body) {
  frames::Frame out;
  return frames::decode(body, out) == Status::protocol;
}

TEST(every_type_has_the_bytes_that_the_coordinator_writes) {
  for (const Vector& vector : vectors()) CHECK(hex(encoded(vector.frame)) == vector.hex);
}

TEST(every_type_survives_a_round_trip) {
  for (const Vector& vector : vectors()) {
    frames::Frame out;
    CHECK(frames::decode(body_of(vector.frame), out) == Status::ok);
    CHECK(out.index() == vector.frame.index());
    CHECK(hex(encoded(out)) == vector.hex);
  }
}

TEST(fields_arrive_where_they_belong) {
  const std::vector<Vector> all = vectors();
  frames::Frame out;
  CHECK(frames::decode(body_of(all[0].frame), out) == Status::ok);
  CHECK(std::get<frames::Hello>(out) == std::get<frames::Hello>(all[0].frame));
  CHECK(frames::decode(body_of(all[6].frame), out) == Status::ok);
  const Report& report = std::get<Report>(out);
  CHECK(report.switched && report.switch_step == 4 && report.watermark == 5);
  CHECK(report.next_step == 6 && report.committed == (std::vector<StepId>{7, 8}));
  CHECK(report.open.size() == 1 && report.open[0].step == 9 && report.open[0].epoch == 10);
  CHECK(report.open[0].sealed && !report.open[0].complete && report.open[0].waiting);
  CHECK(report.open[0].manifest == digest(11) && report.open[0].digest == digest(12));
  CHECK(report.open[0].name_hash == 13);
  CHECK(report.failed == (std::vector<FailedStep>{{4, SuspectCode::deadline}}));
  CHECK(frames::decode(body_of(all[3].frame), out) == Status::ok);
  const frames::Heartbeat& beat = std::get<frames::Heartbeat>(out);
  CHECK(beat.lag_ms == 6 && beat.rtt_us == 7 && beat.status.progress == 5);
  CHECK(beat.status.waiting == Waiting::peers);
  CHECK(beat.status.step == 9);
  CHECK(beat.status.waits == (std::vector<WaitOn>{{id<PeerId>(10), WaitKind::credit}}));
  CHECK(beat.status.down == (std::vector<PeerId>{id<PeerId>(7), id<PeerId>(8)}));
  CHECK(beat.status.relayed == (std::vector<PeerId>{id<PeerId>(11)}));
  CHECK(frames::decode(body_of(all[10].frame), out) == Status::ok);
  const frames::Routes& table = std::get<frames::Routes>(out);
  CHECK(table.routes == (std::vector<Route>{{id<PeerId>(20), id<PeerId>(21)}}));
}

TEST(every_truncation_is_refused) {
  for (const Vector& vector : vectors()) {
    const Bytes whole = body_of(vector.frame);
    for (std::size_t bytes = 0; bytes < whole.size(); ++bytes) {
      CHECK(refused(Bytes(whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(bytes))));
    }
  }
}

TEST(every_extension_by_one_byte_is_refused) {
  for (const Vector& vector : vectors()) {
    for (int value = 0; value < 256; ++value) {
      Bytes longer = body_of(vector.frame);
      longer.push_back(static_cast<std::byte>(value));
      CHECK(refused(longer));
    }
  }
}

TEST(a_flipped_byte_is_refused_or_read_as_another_frame_of_the_same_size) {
  for (const Vector& vector : vectors()) {
    const Bytes whole = body_of(vector.frame);
    for (std::size_t i = 0; i < whole.size(); ++i) {
      for (int value = 0; value < 256; ++value) {
        Bytes changed = whole;
        changed[i] = static_cast<std::byte>(value);
        frames::Frame out;
        if (frames::decode(changed, out) == Status::ok) CHECK(body_of(out) == changed);
      }
    }
  }
}

TEST(marks_types_versions_and_ranges_outside_the_protocol_are_refused) {
  const auto with = [](const frames::Frame& frame, std::size_t at, int value) {
    Bytes body = body_of(frame);
    body[at] = static_cast<std::byte>(value);
    return body;
  };
  const std::vector<Vector> all = vectors();
  CHECK(refused(with(all[1].frame, 0, 0xC0)));  // not our mark
  CHECK(refused(with(all[1].frame, 1, 0)));     // no such type
  CHECK(refused(with(all[1].frame, 1, 13)));
  CHECK(refused(with(all[1].frame, 2, 1)));     // another version
  CHECK(refused(with(all[0].frame, 3, 6)));     // purpose
  CHECK(refused(with(all[2].frame, 3, 0)));     // refusal code
  CHECK(refused(with(all[2].frame, 3, 10)));
  CHECK(refused(with(all[2].frame, 7, 0x20)));  // text: a lone continuation byte is left
  CHECK(refused(with(all[3].frame, 55, 4)));    // waiting
  CHECK(refused(with(all[3].frame, 74, 0)));    // kind of a wait
  CHECK(refused(with(all[3].frame, 74, 5)));
  CHECK(refused(with(all[6].frame, 19, 2)));    // switched
  CHECK(refused(with(all[6].frame, 76, 16)));    // flags of the open step
  CHECK(refused(with(all[7].frame, 15, 0)));    // suspect code
  for (const unsigned code : {6u, 8u, 11u}) CHECK(refused(with(all[7].frame, 15, code)));
}

TEST(bad_utf8_is_refused_on_the_way_in) {
  const std::vector<std::string> bad = {"\x80", "\xC0\xAF", "\xC1\xBF", "\xE0\x9F\xBF",
                                        "\xED\xA0\x80", "\xF0\x8F\xBF\xBF", "\xF4\x90\x80\x80",
                                        "\xF5\x80\x80\x80", "\xE2\x82", "\xFF"};
  for (const std::string& text : bad) {
    Bytes body = body_of(frames::Evicted{1, std::string(text.size(), 'x')});
    std::memcpy(body.data() + body.size() - text.size(), text.data(), text.size());
    CHECK(refused(body));
  }
  const std::string good = "a\xC2\x80\xE0\xA0\x80\xED\x9F\xBF\xF0\x90\x80\x80\xF4\x8F\xBF\xBF";
  frames::Frame out;
  CHECK(frames::decode(body_of(frames::Evicted{1, good}), out) == Status::ok);
  CHECK(std::get<frames::Evicted>(out).text == good);
}

TEST(texts_are_cut_between_characters_and_cleaned_on_the_way_out) {
  frames::Frame out;
  const std::string text = std::string(frames::text_bytes_max - 1, 'a') + "\xC3\xA9";
  CHECK(frames::decode(body_of(frames::Evicted{1, text}), out) == Status::ok);
  CHECK(std::get<frames::Evicted>(out).text == std::string(frames::text_bytes_max - 1, 'a'));
  CHECK(frames::decode(body_of(frames::Evicted{1, "a\xFF\xC3"}), out) == Status::ok);
  CHECK(std::get<frames::Evicted>(out).text == "a??");
}

TEST(a_text_longer_than_the_limit_is_refused) {
  Bytes body = body_of(frames::Evicted{1, std::string(frames::text_bytes_max, 'a')});
  frames::Frame out;
  CHECK(frames::decode(body, out) == Status::ok);
  body.push_back(std::byte{'a'});
  const auto bytes = static_cast<std::uint16_t>(frames::text_bytes_max + 1);
  std::memcpy(body.data() + 11, &bytes, sizeof bytes);
  CHECK(refused(body));
}

TEST(lists_of_peers_are_cut_but_a_report_never_is) {
  frames::Frame out;
  HeartbeatStatus status;
  status.down.resize(frames::peers_max + 1);
  const Bytes heartbeat = body_of(frames::Heartbeat{status, 0, 0});
  CHECK(heartbeat.size() <= frames::read_body_bytes_max);
  CHECK(frames::decode(heartbeat, out) == Status::ok);
  CHECK(std::get<frames::Heartbeat>(out).status.down.size() == frames::peers_max);

  Report report;
  report.committed.resize(frames::steps_max);
  report.open.resize(frames::steps_max);
  report.failed.resize(frames::steps_max);
  CHECK(frames::decode(body_of(report), out) == Status::ok);
  CHECK(std::get<Report>(out).open.size() == frames::steps_max);
  for (const bool committed : {false, true}) {
    Report more = report;
    if (committed) more.committed.push_back(1);
    if (!committed) more.open.push_back({});
    Bytes bytes(3);
    CHECK(frames::encode(more, bytes) == Status::exhausted);
    CHECK(bytes.size() == 3);
  }
}

TEST(a_count_beyond_its_limit_is_refused_even_if_the_entries_are_there) {
  Bytes body = body_of(frames::Heartbeat{});
  const auto count = static_cast<std::uint16_t>(frames::peers_max + 1);
  std::memcpy(body.data() + body.size() - 2, &count, sizeof count);
  body.resize(body.size() + count * sizeof(PeerId));
  CHECK(refused(body));
}

TEST(a_suspicion_without_a_reason_to_flush_is_not_encoded) {
  Bytes bytes;
  CHECK(frames::encode(Suspect{}, bytes) == Status::usage);
  CHECK(frames::encode(Suspect{1, 1, SuspectCode::underflow, {}, {}}, bytes) == Status::usage);
  CHECK(frames::encode(Suspect{1, 1, SuspectCode::left, {}, {}}, bytes) == Status::usage);
  CHECK(bytes.empty());
}

TEST(frames_are_appended_one_behind_the_other) {
  Bytes bytes;
  CHECK(frames::encode(frames::Welcome{1}, bytes) == Status::ok);
  const std::size_t first = bytes.size();
  CHECK(frames::encode(frames::Pong{2, 3}, bytes) == Status::ok);
  frames::Head head;
  CHECK(frames::decode_head(std::span(bytes).subspan(first).first<frames::head_bytes>(), head));
  CHECK(first + frames::head_bytes + head.length == bytes.size());
}

TEST(every_flipped_bit_is_found_by_one_of_the_two_checks) {
  for (const Vector& vector : vectors()) {
    const Bytes whole = encoded(vector.frame);
    for (std::size_t bit = 0; bit < 8 * whole.size(); ++bit) {
      Bytes damaged = whole;
      damaged[bit / 8] ^= static_cast<std::byte>(1u << bit % 8);
      frames::Head head;
      const auto all = std::span<const std::byte>(damaged);
      const bool head_fits = frames::decode_head(all.first<frames::head_bytes>(), head);
      CHECK(head_fits == (bit >= 8 * frames::head_bytes));
      if (head_fits) CHECK(crc32(all.subspan(frames::head_bytes)) != head.body_check);
    }
  }
}

}  // namespace
