// The program `heed`: finds the subcommand, and turns every error into one line and an exit code: 0 done, 2 the input
// or the command line is wrong, 1 anything else.
#include <fcntl.h>
#include <fmt/format.h>
#include <signal.h>
#include <CLI/CLI.hpp>

#include <algorithm>
#include <cstdio>
#include <iostream>
#include <new>

#include "bench/bench.h"
#include "cli/command.h"
#include "graph/error.h"

namespace {

std::vector<std::string> option_names(const CLI::App& app) {
  std::vector<std::string> out;
  for (const CLI::Option* option : app.get_options())
    for (const auto& name : option->get_lnames()) out.push_back("--" + name);
  return out;
}

// What CLI11 leaves over: an unknown subcommand or option, named with what is nearest to it.
[[noreturn]] void refuse_extra(const CLI::App& app, const CLI::App* command) {
  while (command && !command->get_subcommands().empty()) command = command->get_subcommands().front();
  const CLI::App& where = command ? *command : app;
  auto left = app.remaining(true);
  std::string word = left.empty() ? "" : left.front();
  for (const auto& w : left)
    if (w.rfind("--", 0) == 0) word = w;
  word = word.substr(0, word.find('='));
  if (!command && word.rfind('-', 0) == 0 && !app.get_subcommands({}).empty())
    heed::fail("'" + word + "' stands before the command; options come after it, as in: heed train " + word);
  const auto names = option_names(where);
  if (std::find(names.begin(), names.end(), word) != names.end())
    heed::fail("'" + word + "' stands after '--', where names come and no options");
  if (word.rfind('-', 0) == 0) heed::unknown("option of '" + where.get_name() + "'", word, names);
  if (command) heed::fail("'" + word + "' is one word too many for '" + command->get_name() + "'");
  std::vector<std::string> commands;
  for (const CLI::App* sub : app.get_subcommands({})) commands.push_back(sub->get_name());
  heed::unknown("command", word, commands);
}

int run(int argc, char** argv) {
  CLI::App app("heed: graph neural networks built on node attention", "heed");
  app.set_version_flag("--version", "heed " HEED_VERSION);
  app.footer("Start with: heed train");
  app.require_subcommand(1);
  heed::cli::add_train(app);
  heed::cli::add_sweep(app);
  heed::cli::add_predict(app);
  heed::cli::add_list(app);
  heed::cli::add_datasets(app);
  heed::cli::add_info(app);
  heed::cli::add_convert(app);
  heed::bench::add_bench(app);
  try {
    app.parse(argc, argv);
    return 0;
  } catch (const CLI::ExtrasError&) {
    auto used = app.get_subcommands();
    refuse_extra(app, used.empty() ? nullptr : used.front());
  } catch (const CLI::RequiredError&) {
    if (!app.remaining().empty()) refuse_extra(app, nullptr);
    if (!app.get_subcommands().empty()) throw;
    std::fputs(app.help().c_str(), stderr);
    return 2;
  } catch (const CLI::Success& e) {  // --help, --version
    const int code = app.exit(e);
    if (!std::cout.flush()) heed::fail("cannot write standard output");
    return code;
  }
}

}  // namespace

int main(int argc, char** argv) {
  // A stream that is closed would be given to the first file that is opened. Writing to standard output then fails.
  for (const auto& [stream, place] : {std::pair{0, "/dev/null"}, {1, "/dev/full"}, {2, "/dev/null"}})
    if (fcntl(stream, F_GETFD) < 0 && open(place, stream == 0 ? O_RDONLY : O_WRONLY) != stream) return 1;
  signal(SIGXFSZ, SIG_IGN);  // a file over the user's limit is an error of writing, as a full disk is
  auto complain = [](std::string text, int code) {
    for (char& c : text)  // one line, and nothing that a terminal obeys
      if ((c >= 0 && c < ' ') || c == 127) c = ' ';
    heed::cli::note(fmt::format("heed: {}\n", text));
    return code;
  };
  try {
    return run(argc, argv);
  } catch (const heed::Error& e) {
    return complain(e.what(), 2);
  } catch (const heed::Interrupted& e) {
    return complain(e.what(), 130);
  } catch (const CLI::ParseError& e) {
    return complain(e.what(), 2);
  } catch (const std::bad_alloc&) {
    return complain("out of memory", 2);
  } catch (const std::exception& e) {
    return complain(e.what(), 1);
  }
}
