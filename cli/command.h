// What the subcommands of `heed` share. Each lives in one file and enters itself through a function named here.
#pragma once

#include <CLI/CLI.hpp>
#include <string>
#include <vector>

namespace heed::cli {

void add_train(CLI::App& app);  // train a node classifier
void add_list(CLI::App& app);   // show what can be named

// A table with aligned columns, or in Markdown.
std::string table(const std::vector<std::vector<std::string>>& rows, bool markdown);

// Writes the text beside the file, syncs it and renames it into place: the old file or the new one, never half of one.
// Throws Error naming the file.
void write_file(const std::string& path, const std::string& text);
// Throws Error where write_file could not work, before hours are spent.
void check_writable(const std::string& path);
// To standard output, or Error where it does not take all of it.
void print(const std::string& text);

}  // namespace heed::cli
