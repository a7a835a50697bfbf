// What options take, and what they set. Numbers are decimal and whole where they count something: "010" and "0x10" are
// refused, not read as octal and hexadecimal, and so are numbers that do not fit.
#include <fmt/format.h>
#include <CLI/CLI.hpp>

#include <signal.h>
#include <unistd.h>

#include <sstream>

#include "cli/command.h"

namespace heed::cli {

CLI::Validator whole_number(std::int64_t low, std::int64_t high) {
  return CLI::Validator(
      [=](std::string& text) {
        try {
          whole(text, low, high);
        } catch (const Error& e) {
          return std::string(e.what());
        }
        return std::string{};
      },
      "", "");
}

std::vector<std::string> names_in(const std::string& list) {
  std::vector<std::string> out;
  std::istringstream in(list);
  for (std::string name; std::getline(in, name, ',');) out.push_back(name);
  if (out.empty() || list.ends_with(',')) fail("'" + list + "' lacks a name");
  return out;
}

CLI::Validator not_empty() {
  return CLI::Validator([](std::string& text) { return text.empty() ? "must not be empty" : std::string{}; }, "", "");
}

void add_data(CLI::App& command, std::string& data, const std::string& group) {
  command.add_option("--data", data, "Folder with the datasets' files; then $HEED_DATA and the cache are searched")
      ->check(CLI::ExistingDirectory)
      ->group(group);
}

void add_source(CLI::App& command, Source& source, const std::string& group) {
  add_data(command, source.data, group);
  command.add_flag("--offline", source.offline, "Never download; otherwise a public dataset that is found nowhere is")
      ->group(group);
}

void add_fields(CLI::App& command, Given& given, const std::string& dataset, const std::string& model, bool trains) {
  for (const Field& f : fields()) {
    const std::string name = f.name;
    const bool positional = name == "dataset";
    auto* option = command.add_option_function<std::string>(
        positional ? name : "--" + name,
        [&given, name, place = positional ? name : "--" + name](const std::string& value) {
          given.typed.push_back({name, value, place});
        },
        positional        ? dataset
        : name == "model" ? model
                          : std::string(f.about));
    const bool shown = trains || f.group != std::string("Training") || name == "threads" || name == "device" ||
                       name == "seed" || name == "metric" || name == "loss";
    if (!positional) option->group(shown ? f.group : "");
    option->type_name(f.quoted ? "TEXT" : "VALUE");
  }
  command
      .add_option("--config", given.config,
                  "TOML file with these options, under their names without --; those given here count more")
      ->check(not_empty())
      ->group("Data");
  add_source(command, given.source, "Data");
}

std::vector<Setting> Given::settings() const {
  std::vector<Setting> out = config ? read_toml(*config) : std::vector<Setting>{};
  out.insert(out.end(), typed.begin(), typed.end());
  return out;
}

namespace {
std::atomic<bool> stop{false};
const bool said = isatty(2);  // to somebody who waits
static_assert(std::atomic<bool>::is_always_lock_free);
}  // namespace

const std::atomic<bool>& interrupted() {
  static const bool installed = [] {
    struct sigaction action {};
    action.sa_handler = [](int) {
      stop = true;
      constexpr char text[] = "\nheed: stops after this epoch; the same signal again stops it at once\n";
      if (said && write(2, text, sizeof(text) - 1) < 0) return;
    };
    action.sa_flags = static_cast<int>(SA_RESETHAND);
    for (int signal : {SIGINT, SIGTERM}) sigaction(signal, &action, nullptr);
    return true;
  }();
  static_cast<void>(installed);
  return stop;
}

}  // namespace heed::cli
