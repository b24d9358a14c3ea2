// native/fuzz/replay.cpp — one fuzz target over the corpus that is kept of it, without a fuzzer.
//
//   replay_NAME FILE ...   FILE is a corpus (tools/corpus.py), or one input as the fuzzer keeps it
//
// Ownership: files are read whole; an input is copied, so that a sanitizer sees its edges.
// Threads:   one.
// Errors:    1 for a file that cannot be read; what fails names the input on stderr and aborts.
#include <unistd.h>

#include <csignal>
#include <fstream>
#include <iterator>
#include <string>
#include <string_view>

#include "fuzz/pieces.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

namespace {

constexpr std::string_view magic = "PCCLFUZZ";
volatile std::sig_atomic_t input_number = 0;

void tell(int signal) {
  char text[] = "replay: input 000000 failed\n";
  int rest = input_number;
  for (char* digit = text + 19; digit > text + 13; --digit, rest /= 10) {
    *digit = static_cast<char>('0' + rest % 10);
  }
  static_cast<void>(!::write(STDERR_FILENO, text, sizeof text - 1));
  std::signal(signal, SIG_DFL);
  std::raise(signal);
}

void run(std::string_view input) {
  const std::vector<std::uint8_t> copy(input.begin(), input.end());
  input_number = input_number + 1;
  static_cast<void>(LLVMFuzzerTestOneInput(copy.data(), copy.size()));
}

/// A corpus: the magic, then each input behind its length (u16, little endian).
bool run_all(std::string_view rest) {
  if (!rest.starts_with(magic)) {
    run(rest);
    return true;
  }
  for (rest.remove_prefix(magic.size()); rest.size() >= 2;) {
    const auto low = static_cast<unsigned char>(rest[0]);
    const auto high = static_cast<unsigned char>(rest[1]);
    const std::size_t size = low | static_cast<std::size_t>(high) << 8;
    rest.remove_prefix(2);
    if (size > rest.size()) return false;
    run(rest.substr(0, size));
    rest.remove_prefix(size);
  }
  return rest.empty();
}

}  // namespace

int main(int count, char** names) {
  std::signal(SIGABRT, &tell);
  for (int i = 1; i < count; ++i) {
    std::ifstream file(names[i], std::ios::binary);
    const std::string content{std::istreambuf_iterator<char>(file), {}};
    if (!file || !run_all(content)) {
      std::fprintf(stderr, "%s: no corpus, or one that was cut\n", names[i]);
      return 1;
    }
  }
  std::printf("%d inputs\n", static_cast<int>(input_number));
  return input_number > 0 ? 0 : 1;
}
