// What options take, and what they set. Numbers are decimal and whole where they count something: "010" and "0x10" are
// refused, not read as octal and hexadecimal, and so are numbers that do not fit.
#include <fmt/format.h>

#include <signal.h>

#include <charconv>
#include <cmath>

#include "cli/command.h"

namespace heed::cli {

CLI::Validator whole_number(std::int64_t low, std::int64_t high) {
  return CLI::Validator(
      [=](std::string& text) {
        std::int64_t value = 0;
        const char* end = text.data() + text.size();
        const auto [at, error] = std::from_chars(text.data(), end, value);
        const std::size_t digits = text.find_first_not_of('-');
        const bool octal = digits != std::string::npos && text[digits] == '0' && text.size() > digits + 1;
        if (error == std::errc{} && at == end && !octal && value >= low && value <= high) return std::string{};
        return high == INT64_MAX ? fmt::format("must be a whole number, at least {}, not '{}'", low, text)
                                 : fmt::format("must be a whole number, {} to {}, not '{}'", low, high, text);
      },
      "", "");
}

CLI::Validator number() {
  return CLI::Validator(
      [](std::string& text) {
        double value = 0;
        const char* end = text.data() + text.size();
        const auto [at, error] = std::from_chars(text.data(), end, value);
        if (error == std::errc{} && at == end && std::isfinite(value)) return std::string{};
        return fmt::format("must be a number, not '{}'", text);
      },
      "", "");
}

CLI::Validator not_empty() {
  return CLI::Validator([](std::string& text) { return text.empty() ? "must not be empty" : std::string{}; }, "", "");
}

void add_fields(CLI::App& command, std::vector<Setting>& settings, const std::string& names) {
  for (const Field& f : fields()) {
    const std::string name = f.name;
    const bool positional = name == "dataset";
    auto* option = command.add_option_function<std::string>(
        positional ? name : "--" + name,
        [&settings, name, place = positional ? name : "--" + name](const std::string& value) {
          settings.push_back({name, value, place});
        },
        positional        ? names + "; default sbm, which is generated"
        : name == "model" ? names + "; default gat"
                          : std::string(f.about));
    if (!positional) option->group(f.group);
  }
}

namespace {
std::atomic<bool> stop{false};
static_assert(std::atomic<bool>::is_always_lock_free);
}  // namespace

const std::atomic<bool>& interrupted() {
  static const bool installed = [] {
    struct sigaction action {};
    action.sa_handler = [](int) { stop = true; };
    action.sa_flags = static_cast<int>(SA_RESETHAND);
    for (int signal : {SIGINT, SIGTERM}) sigaction(signal, &action, nullptr);
    return true;
  }();
  static_cast<void>(installed);
  return stop;
}

}  // namespace heed::cli
